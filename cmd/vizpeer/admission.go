package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/peer"
	"vizpeer/peer/httpapi"
)

// Who comes into the farm, and who is removed from it.

func (c *cli) inviteLs() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the tickets that would admit a machine now",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			tickets, err := cl.tickets(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(orEmpty(tickets), func() {
				rows := make([][]any, len(tickets))
				for i, t := range tickets {
					rows[i] = []any{t.ID, t.Role, fmt.Sprintf("%d of %d", t.Used, t.Uses), t.ExpiresAt.Local().Format(time.DateTime), t.By}
				}
				c.table([]string{"ID", "ROLE", "USED", "EXPIRES", "MADE BY"}, rows)
			})
		},
	}
}

func (c *cli) inviteRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Let a ticket admit nobody any more; whom it admitted stays",
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var t httpapi.OpenTicket
			err = cl.call(cmd.Context(), http.MethodDelete, "/v1/tickets/"+url.PathEscape(args[0]), nil, &t)
			if p, ok := errors.AsType[*httpapi.Problem](err); ok && (p.Status == http.StatusNotFound || p.Status == http.StatusUnprocessableEntity) {
				// What was typed may be a ticket: it is not repeated.
				return notFoundf("there is no open ticket of that ID: vizpeer invite ls")
			}
			if err != nil {
				return err
			}
			return c.print(t, func() { fmt.Fprintf(c.out, "The ticket %s admits nobody any more\n", plain(t.ID)) })
		},
	}
}

func (c *cli) peerRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME|ID",
		Short: "Remove a machine from the farm",
		Long: `Remove a machine from the farm, as an admin: within seconds every machine closes its
connections to it, what it renders is given to others, and its API keys are good for nothing.
It can come back with a new ticket, or by "peer approve".`,
		Args: takes("NAME|ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, p, err := c.machine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var r httpapi.Revoked
			if err := cl.call(cmd.Context(), http.MethodPost, "/v1/peers/"+url.PathEscape(string(p.ID))+"/revoke", nil, &r); err != nil {
				return err
			}
			return c.print(r, func() {
				fmt.Fprintf(c.out, "%s (%s) is no member of the farm any more\n", plain(r.Peer.Name), r.Peer.ID.Short())
				for _, t := range r.Tickets {
					c.hint("The ticket that admitted it is good for %s more: vizpeer invite revoke %s", count(t.Uses-t.Used, "machine"), t.ID)
				}
			})
		},
	}
}

// pendingTable lists who waits to be let in.
func (c *cli) pendingTable(ctx context.Context) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	waiting, err := cl.pending(ctx)
	if err != nil {
		return err
	}
	return c.print(orEmpty(waiting), func() {
		rows := make([][]any, len(waiting))
		for i, a := range waiting {
			rows[i] = []any{a.Words, a.Name, a.ID.Short(), a.Addr, ago(a.Since, time.Now())}
		}
		c.table([]string{"WORDS", "NAME", "ID", "ADDRESS", "SINCE"}, rows)
		if len(waiting) > 0 {
			c.hint("Let one in only if its own screen shows the same words: vizpeer peer approve WORDS")
		}
	})
}

func (c *cli) peerApprove() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:   "approve WORDS|ID",
		Short: "Let a machine in that waits without a ticket",
		Long: `Let a machine in that asks by "vizpeer join", without a ticket. Compare the four words with
those on its own screen first: another machine in between would show others.`,
		Example: `  vizpeer peer ls --pending
  vizpeer peer approve copper-lunar-tide-fox
  vizpeer peer approve copper-lunar-tide-fox --role operator`,
		Args: takes("WORDS|ID", "[WORD...]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := authz.ParseRole(role)
			if err != nil {
				return &usageError{err}
			}
			cl, a, err := c.applicant(cmd.Context(), args)
			if err != nil {
				return err
			}
			var p httpapi.Peer
			if err := cl.decide(cmd.Context(), a.ID, "approve", httpapi.Approval{Role: r}, &p); err != nil {
				return err
			}
			return c.print(p, func() { fmt.Fprintf(c.out, "%s (%s) is a member of the farm\n", plain(p.Name), p.ID.Short()) })
		},
	}
	cmd.Flags().StringVar(&role, "role", string(authz.Node), "node, operator, viewer or admin, as that of a ticket")
	return cmd
}

func (c *cli) peerDeny() *cobra.Command {
	return &cobra.Command{
		Use:   "deny WORDS|ID",
		Short: "Send a machine away that waits without a ticket",
		Args:  takes("WORDS|ID", "[WORD...]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, a, err := c.applicant(cmd.Context(), args)
			if err != nil {
				return err
			}
			if err := cl.decide(cmd.Context(), a.ID, "deny", nil, &a); err != nil {
				return err
			}
			return c.print(a, func() { fmt.Fprintf(c.out, "%s (%s) was sent away\n", plain(a.Name), a.ID.Short()) })
		},
	}
}

// applicant finds the one machine that waits with these words, or that ID or end of it.
// A name is not enough: each gives itself its own.
func (c *cli) applicant(ctx context.Context, args []string) (*client, httpapi.Applicant, error) {
	cl, err := c.client()
	if err != nil {
		return nil, httpapi.Applicant{}, err
	}
	waiting, err := cl.pending(ctx)
	if err != nil {
		return nil, httpapi.Applicant{}, err
	}
	named := strings.Join(strings.Fields(strings.ReplaceAll(strings.Join(args, " "), "-", " ")), "-")
	for _, a := range waiting {
		if strings.EqualFold(a.Words, named) || string(a.ID) == named || a.ID.Short() == named {
			return cl, a, nil
		}
	}
	return nil, httpapi.Applicant{}, notFoundf("no machine with these words, or of that ID, waits to be let in: vizpeer peer ls --pending")
}

func (cl *client) tickets(ctx context.Context) ([]httpapi.OpenTicket, error) {
	var answer httpapi.TicketList
	err := cl.call(ctx, http.MethodGet, "/v1/tickets", nil, &answer)
	return answer.Tickets, err
}

func (cl *client) pending(ctx context.Context) ([]httpapi.Applicant, error) {
	var answer httpapi.ApplicantList
	err := cl.call(ctx, http.MethodGet, "/v1/peers/pending", nil, &answer)
	return answer.Pending, err
}

// decide tells the leader what becomes of a machine that waits.
func (cl *client) decide(ctx context.Context, id authz.PeerID, verdict string, body, out any) error {
	err := cl.call(ctx, http.MethodPost, "/v1/peers/pending/"+url.PathEscape(string(id))+"/"+verdict, body, out)
	if p, ok := errors.AsType[*httpapi.Problem](err); ok && p.Status == http.StatusNotFound {
		return notFoundf("it does not wait any more: vizpeer peer ls --pending")
	}
	return err
}

// joinWithout asks to be let in without a ticket, and waits.
func (c *cli) joinWithout(ctx context.Context, cfg peer.Config, addrs []string, j peer.Joining, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s have passed: give more with --timeout", limit))
	defer cancel()
	if len(addrs) == 0 {
		c.hint("Looking for farms on the local network ...")
	}
	shown := make(chan peer.Waiting)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for w := range shown {
			// Without these words nobody can let the machine in: they are no hint.
			fmt.Fprintf(c.errOut, "The farm %s was asked to let this machine in. Its words: %s\n", plain(cmp.Or(w.Name, string(w.Farm))), w.Words)
			c.hint("An admin there lets it in with: vizpeer peer approve %s", w.Words)
		}
	}()
	joined, err := peer.Ask(ctx, cfg, addrs, j, func(w peer.Waiting) { shown <- w })
	close(shown)
	<-ended
	if err != nil {
		return err
	}
	return c.welcome(joined)
}
