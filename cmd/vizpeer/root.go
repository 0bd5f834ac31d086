package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vizpeer/authz/level"
	"vizpeer/peer"
)

// cli is one run of the program: its streams and the flags of every command.
type cli struct {
	in          io.Reader
	out, errOut io.Writer

	dataDir   string
	api       string
	tokenFile string
	caFile    string
	caPin     string
	json      bool
	quiet     bool
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vizpeer",
		Short: "A render farm without a server",
		Long: `vizpeer is a render farm without a server: every machine runs this program, they
find each other, share one queue, and bring the frames to where they were asked for.

  vizpeer demo                       three peers on this machine, one job, a contact sheet
  vizpeer init --name attic          start a farm, then: vizpeer up
  vizpeer invite --role operator     a ticket for another machine
  vizpeer join TICKET                on that machine, then: vizpeer up
  vizpeer render shot.blend --frames 1-40 --output ./out --wait

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found or not allowed, 4 no peer or no
coordinator to be reached, 5 the job failed or was cancelled, 130 interrupted.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.errOut)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w: see `%s --help`", flagError(err), cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	defaultDir, _ := peer.DefaultDataDir() // without one, folder asks for --data-dir
	flags.StringVar(&c.dataDir, "data-dir", defaultDir, "folder of this machine's peer ($VIZPEER_DATA_DIR)")
	flags.StringVar(&c.api, "api", os.Getenv("VIZPEER_API"), "URL of the peer's API, if not the one of --data-dir ($VIZPEER_API)")
	flags.StringVar(&c.tokenFile, "token-file", os.Getenv("VIZPEER_TOKEN"), "file with the API token, if not the one of --data-dir ($VIZPEER_TOKEN)")
	flags.StringVar(&c.caFile, "ca-file", os.Getenv("VIZPEER_CA_FILE"), "for an --api with https: the farm's ca.crt, if not the one of --data-dir ($VIZPEER_CA_FILE)")
	flags.StringVar(&c.caPin, "ca-fingerprint", os.Getenv("VIZPEER_CA_FINGERPRINT"), "for the same, instead of a file: the SHA-256 fingerprint of the farm's CA ($VIZPEER_CA_FINGERPRINT)")
	flags.BoolVar(&c.json, "json", false, "print one JSON document, or JSON lines for a stream")
	flags.BoolVarP(&c.quiet, "quiet", "q", false, "no progress and no hints")

	c.group(root,
		c.initCommand(), c.inviteCommand(), c.joinCommand(), c.upCommand(),
		c.statusCommand(), c.doctorCommand(), c.versionCommand(), c.demoCommand(),
		c.renderCommand(), c.jobCommand(), c.peerCommand(), c.coordCommand(), c.blobCommand(), c.blenderCommand(),
		c.userCommand(), c.keyCommand(), c.loginCommand(), c.logoutCommand(), c.whoamiCommand(), c.auditCommand(), c.backupCommand(), c.restoreCommand(),
	)
	return root
}

// group makes parent a command that only holds others: alone it prints its
// help, and an unknown word is a usage error that names the nearest known one.
func (c *cli) group(parent *cobra.Command, children ...*cobra.Command) *cobra.Command {
	parent.AddCommand(children...)
	parent.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := fmt.Sprintf("see `%s --help`", cmd.CommandPath())
		cmd.SuggestionsMinimumDistance = min(2, len(args[0])/3) // of a short word nothing would be left
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), nearest(args[0], near))
		}
		return usagef("unknown command %q for `%s`: %s", args[0], cmd.CommandPath(), hint)
	}
	parent.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return parent
}

// takes demands the named arguments; those in brackets, at the end, may be left out.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names) && !strings.HasPrefix(names[len(args)], "["): // [optional]
			return usagef("%s is missing: %s", names[len(args)], cmd.UseLine())
		case len(args) > len(names) && (len(names) == 0 || !strings.HasSuffix(names[len(names)-1], "...]")): // [any...]
			return usagef("%q is one argument too many: %s", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  takes(),
		RunE: func(*cobra.Command, []string) error {
			return c.print(map[string]any{
				"version": version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				"level": level.Known, "protocols": peer.Protocols(),
			}, func() {
				fmt.Fprintf(c.out, "vizpeer %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
				c.facts("level", level.Known, "protocols", strings.Join(peer.Protocols(), " "))
			})
		},
	}
}

// folder is the absolute data folder.
func (c *cli) folder() (string, error) {
	if c.dataDir == "" {
		return "", usagef("this machine names no home folder: say where the data goes with --data-dir")
	}
	dir, err := filepath.Abs(c.dataDir)
	if err != nil {
		return "", fmt.Errorf("the data folder %q: %w", c.dataDir, err)
	}
	return dir, nil
}

// live tells whether standard error is a terminal that wants progress.
func (c *cli) live() bool {
	f, ok := c.errOut.(*os.File)
	return ok && !c.quiet && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// hint prints advice for a person on standard error, where it is in no script's
// way.
func (c *cli) hint(format string, args ...any) {
	if !c.quiet && !c.json {
		fmt.Fprintf(c.errOut, strings.TrimSuffix(format, "\n")+"\n", args...)
	}
}

// warn prints what a person must know although the command goes on.
func (c *cli) warn(format string, args ...any) {
	fmt.Fprintf(c.errOut, "vizpeer: warning: %s\n", plainLines(fmt.Sprintf(format, args...)))
}
