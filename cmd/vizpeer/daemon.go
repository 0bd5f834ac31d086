package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
)

// The three commands that make or run the peer in this process; every other
// command only talks to one.

func (c *cli) initCommand() *cobra.Command {
	var (
		farm, machine string
		s             settings
	)
	flags := s.flags()
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Start a farm on this machine",
		Long: `Start a farm on this machine: make its key, the first admin, a ticket for a render box
and an operator key. Each secret is printed once. "vizpeer up" then runs the peer. The
ticket names the addresses of --p2p-listen: give "up" the same, best in config.toml.`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkName("--name", farm); err != nil {
				return err
			}
			if cmd.Flags().Changed("machine") {
				if err := checkName("--machine", machine); err != nil {
					return err
				}
			}
			cfg, err := c.peerConfig(&s, flags, slog.LevelWarn)
			if err != nil {
				return err
			}
			f, err := peer.Init(cfg, peer.Founding{FarmName: farm, MachineName: machine})
			if err != nil {
				return err
			}
			type admin struct {
				Username string `json:"username"`
				Password string `json:"password"`
			}
			return c.print(struct {
				Farm         string `json:"farm"`
				Peer         string `json:"peer"`
				Admin        admin  `json:"admin"`
				NodeTicket   string `json:"node_ticket"`
				OperatorKey  string `json:"operator_key"`
				RecoveryFile string `json:"recovery_file"`
				CA           string `json:"ca_fingerprint"`
			}{string(f.Farm), string(f.Peer), admin{f.AdminUser, f.AdminPassword}, f.NodeTicket, f.OperatorKey, f.RecoveryFile, f.CAFingerprint}, func() {
				fmt.Fprintf(c.out, "The farm %s is made, with this machine as its first coordinator.\n\nShown only now, so keep them:\n", plain(farm))
				c.facts("  farm", f.Farm, "  admin", f.AdminUser, "  password", f.AdminPassword,
					"  operator key", f.OperatorKey, "  node ticket", f.NodeTicket)
				fmt.Fprintf(c.out, "\nMove %s to a safe place outside this machine: it is the farm's key.\n", f.RecoveryFile)
				fmt.Fprintf(c.out, "Fingerprint of its CA, for callers over HTTPS: %s\n", f.CAFingerprint)
				// A ticket that init has just made can be read.
				if t, _ := authz.ParseTicket(f.NodeTicket); len(t.Addrs) == 0 {
					c.hint("\nThe node ticket names no address, for the peer's port is not known yet: it is good on this\nlocal network only. For elsewhere make one with `vizpeer invite` while the peer is up.")
				}
				c.hint("\nThe password is a one-time one: vizpeer login %s && vizpeer user passwd", f.AdminUser)
				c.hint("\nNext: vizpeer up\nThen on a render box: vizpeer join NODE_TICKET && vizpeer up\nFor a workstation make another ticket: vizpeer invite --role operator")
			})
		},
	}
	cmd.Flags().StringVar(&farm, "name", "farm", "the farm's name")
	cmd.Flags().StringVar(&machine, "machine", "", "this machine's name (default: its host name)")
	cmd.Flags().AddFlag(flags.Lookup("p2p-listen"))
	cmd.Flags().AddFlag(flags.Lookup("p2p-announce"))
	return cmd
}

// joined is the --json of `join`.
type joined struct {
	Farm  string   `json:"farm"`
	Peer  string   `json:"peer"`
	Roles []string `json:"roles"`
	// Already tells that the machine was a member before: nothing was changed,
	// and only the farm is filled in.
	Already bool `json:"already,omitempty"`
}

func (c *cli) joinCommand() *cobra.Command {
	var (
		name    string
		noWork  bool
		addrs   []string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "join [TICKET]",
		Short: "Join a farm with a ticket, or ask one to let this machine in",
		Long: `Join a farm with a ticket that "vizpeer invite" made there. "-" reads the ticket from
standard input, so that it stands in no process list. "vizpeer up" then runs the peer.

Without a ticket this machine asks the farms of the local network, or the coordinator that
--addr names, to let it in: it shows four words and waits until an admin, who sees the same
words in "vizpeer peer ls --pending", approves it.`,
		Args: takes("[TICKET]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("name") {
				if err := checkName("--name", name); err != nil {
					return err
				}
			}
			j := peer.Joining{Name: name, NoWork: noWork}
			var s settings
			switch {
			case len(args) == 1 && len(addrs) > 0:
				return usagef("--addr is for joining without a ticket: the ticket names its coordinators itself")
			case timeout <= 0:
				return usagef("--timeout %s is not possible: use a time such as 10m", timeout)
			case len(args) == 0:
				cfg, err := c.peerConfig(&s, s.flags(), slog.LevelWarn)
				if err != nil {
					return err
				}
				return c.joinWithout(cmd.Context(), cfg, addrs, j, timeout)
			}
			ticket := args[0]
			if ticket == "-" {
				text, err := io.ReadAll(io.LimitReader(c.in, 64<<10))
				if err != nil {
					return fmt.Errorf("the ticket could not be read: %w", err)
				}
				ticket = string(text)
			}
			ticket = strings.TrimSpace(ticket)
			cfg, err := c.peerConfig(&s, s.flags(), slog.LevelWarn)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			joinedTo, err := peer.Join(ctx, cfg, ticket, j)
			if errors.Is(err, peer.ErrMember) {
				// What the ticket is for is so already.
				t, _ := authz.ParseTicket(ticket) // or it would be no member of its farm
				return c.print(joined{Farm: string(t.Farm), Roles: []string{}, Already: true}, func() {
					fmt.Fprintln(c.out, "This machine is a member of that farm already.")
					c.hint("Next: vizpeer up")
				})
			}
			if err != nil {
				return err
			}
			return c.welcome(joinedTo)
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "this machine's name (default: its host name)")
	f.BoolVar(&noWork, "no-work", false, "do not render on this machine")
	f.StringArrayVar(&addrs, "addr", nil, "without a ticket: a coordinator's address, as its `up --json` shows it (repeatable)")
	f.DurationVar(&timeout, "timeout", 10*time.Minute, "without a ticket: how long to wait for an admin")
	return cmd
}

// welcome says what this machine has become.
func (c *cli) welcome(j peer.Joined) error {
	return c.print(joined{Farm: string(j.Farm), Peer: string(j.Peer), Roles: orEmpty(j.Roles)}, func() {
		fmt.Fprintf(c.out, "This machine is a member of the farm %s: %s\n", plain(j.Name), strings.Join(j.Roles, ", "))
		c.hint("Next: vizpeer up")
	})
}

var errParentGone = errors.New("standard input was closed")

func (c *cli) upCommand() *cobra.Command {
	var (
		s        settings
		level    string
		lifeline bool
	)
	flags := s.flags()
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run this machine's peer until it is stopped",
		Long: `Run this machine's peer until it is stopped. Every setting below is also a key of
config.toml in the data folder (p2p_listen for --p2p-listen) and a variable
(VIZPEER_P2P_LISTEN): the flag wins over the variable, the variable over the file.`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return usagef("--log-level %q is not known: use debug, info, warn or error", level)
			}
			if c.quiet {
				l = max(l, slog.LevelWarn)
			}
			cfg, err := c.peerConfig(&s, flags, l)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancelCause(cmd.Context())
			defer cancel(nil)
			if lifeline {
				go func() {
					_, _ = io.Copy(io.Discard, c.in)
					cancel(errParentGone)
				}()
			}
			c.announceProbe(cfg.DataDir)
			err = peer.Run(ctx, cfg, c.ready)
			if err == nil && errors.Is(context.Cause(ctx), errInterrupted) {
				return fmt.Errorf("%w: %w", errSilent, errInterrupted) // it was meant to end so
			}
			return err
		},
	}
	f := cmd.Flags()
	f.AddFlagSet(flags)
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&lifeline, "stop-with-stdin", false, "stop when standard input is closed, as a child of another program")
	_ = f.MarkHidden("stop-with-stdin")
	return cmd
}

// ready says that the peer serves.
func (c *cli) ready(r peer.Ready) {
	// Standard output that is gone is no reason to stop serving.
	_ = c.print(struct {
		Ready bool     `json:"ready"`
		Peer  string   `json:"peer"`
		API   string   `json:"api"`
		P2P   []string `json:"p2p"`
	}{true, string(r.Peer), r.API, orEmpty(r.P2P)}, func() {
		fmt.Fprintf(c.out, "vizpeer is up: %s (peer %s). Try `vizpeer status` in another terminal; Ctrl-C stops it.\n", r.API, r.Peer)
	})
}

// peerConfig is what the peer of this data folder runs with: what the flags
// left open comes from the environment and from config.toml.
func (c *cli) peerConfig(s *settings, flags *pflag.FlagSet, level slog.Level) (peer.Config, error) {
	dir, err := c.folder()
	if err != nil {
		return peer.Config{}, err
	}
	if err := s.load(flags, dir, os.Getenv); err != nil {
		return peer.Config{}, err
	}
	caps, err := s.caps()
	if err != nil {
		return peer.Config{}, err
	}
	proxies, err := s.trustedProxies()
	if err != nil {
		return peer.Config{}, err
	}
	return peer.Config{
		DataDir:    dir,
		P2PListen:  s.p2pListen,
		APIListen:  s.apiListen,
		APIRate:    s.apiRate,
		APINames:   s.apiNames,
		Blender:    s.blender,
		Labels:     s.labels,
		Slots:      s.slots,
		NoWork:     s.noWork,
		NoFetch:    s.noFetch,
		SpotNotice: s.spotNotice,
		NoMDNS:     s.noMDNS,
		Relay:      peer.Relay(s.relay),
		Announce:   s.announce,
		Quota:      int64(s.cacheQuota),
		High:       float64(s.cacheHigh),
		Low:        float64(s.cacheLow),
		MinFree:    int64(s.minFree),
		Limits:     lease.Limits{Tasks: s.maxTasks, OpenJobs: s.maxOpenJobs, OpenTasks: s.maxOpenTasks},
		Caps:       caps,
		Stable:     s.voteAfter,

		TrustedProxies: proxies,
		NoPortMapping:  s.noPortMap,

		Version: version,
		Logger:  slog.New(slog.NewTextHandler(c.errOut, &slog.HandlerOptions{Level: level})),
	}, nil
}
