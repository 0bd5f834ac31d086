package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

func (c *cli) coordCommand() *cobra.Command {
	return c.group(&cobra.Command{Use: "coord", Short: "Who holds and who leads the queue"}, c.coordStatus(), c.coordPromote(), c.coordDemote(), c.coordTransfer(), c.coordRecover())
}

func (c *cli) coordStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the leader, the voters and the standbys",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			farm, err := cl.farm(cmd.Context())
			if err != nil {
				return err
			}
			return c.printCoordination(farm.Coord, cl.names(cmd.Context()))
		},
	}
}

// printCoordination shows who holds the queue.
func (c *cli) printCoordination(co httpapi.Coordination, names map[authz.PeerID]string) error {
	co.Voters, co.Standbys, co.Coordinators = orEmpty(co.Voters), orEmpty(co.Standbys), orEmpty(co.Coordinators)
	return c.print(co, func() {
		leader := "none"
		if co.Leader != "" {
			leader = machineText(names, co.Leader)
		}
		c.facts("leader", leader, "term", co.Term, "voters", machinesText(names, co.Voters),
			"standbys", machinesText(names, co.Standbys), "applied index", co.AppliedIndex, "level", levelText(co, names))
		rows := make([][]any, len(co.Coordinators))
		for i, one := range co.Coordinators {
			role := "standby"
			switch {
			case one.Votes:
				role = "voter"
			case one.Held:
				role = "standby, held"
			}
			rows[i] = []any{machineText(names, one.Peer), role, one.State, ago(one.Since, time.Now()), one.Applied, one.Version}
		}
		fmt.Fprintln(c.out)
		c.table([]string{"COORDINATOR", "ROLE", "STATE", "SINCE", "APPLIED", "VERSION"}, rows)
		for _, one := range co.Coordinators {
			if one.State == "old" {
				fmt.Fprintf(c.out, "%s cannot hold the queue: its vizpeer knows level %d, and the farm's is %d: update it there\n", machineText(names, one.Peer), one.Level, co.Level)
			}
		}
		if text := survives(co); text != "" {
			fmt.Fprintln(c.out, text)
		}
	})
}

// survives says what the queue would survive.
func survives(co httpapi.Coordination) string {
	up := 0
	for _, one := range co.Coordinators {
		if one.Votes && one.State != "away" {
			up++
		}
	}
	spare := up - (len(co.Voters)/2 + 1)
	switch {
	case len(co.Coordinators) == 0:
		return ""
	case len(co.Voters) == 1 && len(co.Standbys) < 2:
		return "The queue stops while its one voter is away. With three coordinators any one may fail: vizpeer invite --coordinator"
	case len(co.Voters) == 1:
		return "The queue stops while its one voter is away. The standbys vote once two of them have been ready for a minute, or at once: vizpeer coord promote NAME"
	case spare == 1:
		return "The queue goes on if any one more of its voters fails."
	case spare > 1:
		return fmt.Sprintf("The queue goes on if any %d more of its voters fail.", spare)
	}
	return "The queue stops if one more of its voters fails: start those that are away, or let another machine join with vizpeer invite --coordinator"
}

func (c *cli) coordPromote() *cobra.Command {
	return c.coordChange(httpapi.PromoteCoordinator, &cobra.Command{
		Use:   "promote NAME|ID",
		Short: "Let a standby vote, without waiting",
		Long: `Let a coordinator vote, without waiting until it has been up for a minute, and also where
"demote" kept it from voting. The number of voters stays odd, since an even one survives
no more than the odd one below it: a second voter comes with a third.`,
	})
}

func (c *cli) coordDemote() *cobra.Command {
	return c.coordChange(httpapi.DemoteCoordinator, &cobra.Command{
		Use:   "demote NAME|ID",
		Short: "Keep a coordinator from voting; it only copies the queue",
		Long: `Keep a coordinator from voting until "promote": it only copies the queue. The number of
voters stays odd, so that another one may lose its vote with it, or get one in its place.`,
	})
}

func (c *cli) coordTransfer() *cobra.Command {
	return c.coordChange(httpapi.TransferTo, &cobra.Command{
		Use:   "transfer NAME|ID",
		Short: "Have a coordinator lead the queue",
		Long: `Have a coordinator lead the queue: a voter, or a standby where the leader alone votes, which
then gets its vote. Nothing is lost or rendered twice by it. A leader that is stopped does
so by itself.`,
	})
}

// coordChange makes the command of one wish about a coordinator.
func (c *cli) coordChange(what httpapi.CoordinatorChange, cmd *cobra.Command) *cobra.Command {
	cmd.Args = takes("NAME|ID")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cl, p, err := c.machine(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		var co httpapi.Coordination
		if err := cl.call(cmd.Context(), http.MethodPost, "/v1/coordinators/"+url.PathEscape(string(p.ID))+"/"+string(what), nil, &co); err != nil {
			return err
		}
		return c.printCoordination(co, cl.names(cmd.Context()))
	}
	return cmd
}
