package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

func (c *cli) inviteCommand() *cobra.Command {
	var (
		role        string
		uses        int
		expires     time.Duration
		coordinator bool
	)
	cmd := &cobra.Command{
		Use:   "invite",
		Short: "Make a ticket that lets another machine join",
		Long: `Make a ticket that lets another machine join with "vizpeer join TICKET". It is printed
once: the farm keeps only its hash.

  --role node       a render box: it renders and can do nothing else
  --role operator   a workstation: its person may also submit jobs
  --coordinator     it also keeps the queue. From three such machines on, any one of them
                    may fail and the queue goes on: see "vizpeer coord status"`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := authz.ParseRole(role)
			if err != nil {
				return &usageError{err}
			}
			if uses < 1 || uses > authz.MaxMembers {
				return usagef("--uses %d is not possible: use 1 to %d", uses, authz.MaxMembers)
			}
			if expires <= 0 {
				return usagef("--expires %s is not possible: use a time such as 24h", expires)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			t, err := cl.invite(cmd.Context(), httpapi.Invitation{Role: r, Coordinator: coordinator, Uses: uses, ExpiresIn: expires.Seconds()})
			if err != nil {
				return err
			}
			return c.print(t, func() {
				fmt.Fprintln(c.out, t.Ticket)
				machines := "one machine"
				if t.Uses > 1 {
					machines = fmt.Sprintf("%d machines", t.Uses)
				}
				what := string(t.Role)
				if t.Coordinator {
					what += ", coordinator"
				}
				c.hint("A ticket for %s (%s), good until %s. There: vizpeer join TICKET && vizpeer up", machines, what, t.ExpiresAt.Local().Format(time.DateTime))
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", string(authz.Node), "node, operator, viewer or admin")
	f.BoolVar(&coordinator, "coordinator", false, "the machine also keeps the queue")
	f.IntVar(&uses, "uses", 1, "machines that may join with it")
	f.DurationVar(&expires, "expires", 24*time.Hour, "how long it is good for")
	cmd.AddCommand(c.inviteLs(), c.inviteRevoke())
	return cmd
}
