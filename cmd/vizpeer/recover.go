package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/peer"
	"vizpeer/peer/httpapi"
)

// What is done when the machines that hold the queue are gone for good, and before.

// maxRecoveryText bounds what is read as a recovery file, in bytes: it says itself what
// is too much.
const maxRecoveryText = 64 << 10

// recovering reads the recovery file of the flags.
func (c *cli) recovering(file string, epoch uint64) (r peer.Recovering, err error) {
	if file == "" {
		return r, usagef("--recovery-file is missing: it names the file that `vizpeer init` wrote, and that was moved to a safe place; - reads it from standard input")
	}
	in := c.in
	if file != "-" {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return r, notFoundf("there is no file %s: --recovery-file names the one that `vizpeer init` wrote", file)
		}
		if err != nil {
			return r, fmt.Errorf("the recovery file could not be read: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxRecoveryText))
	if err != nil {
		return r, fmt.Errorf("the recovery file could not be read: %w", err)
	}
	r, err = peer.ReadRecovery(text)
	r.Epoch = epoch
	return r, err
}

// recovered is the --json of `coord recover` and of `restore`.
type recovered struct {
	Farm   string         `json:"farm"`
	Name   string         `json:"name"`
	Peer   authz.PeerID   `json:"peer"`
	Epoch  uint64         `json:"epoch"`
	At     time.Time      `json:"at,omitzero"` // how old what it was made of is
	Jobs   int            `json:"open_jobs"`
	Voters []authz.PeerID `json:"former_voters"`
}

func (c *cli) printRecovered(r peer.Recovered, of string) error {
	return c.print(recovered{string(r.Farm), r.Name, r.Peer, r.Epoch, r.At, r.Jobs, orEmpty(r.Voters)}, func() {
		fmt.Fprintf(c.out, "The farm %s goes on in epoch %d, with this machine as its only voter.\n", plain(r.Name), r.Epoch)
		at := "unknown"
		if !r.At.IsZero() {
			at = r.At.Local().Format(time.DateTime)
		}
		c.facts("  made of", of, "  as of", at, "  open jobs", r.Jobs)
		c.hint("\nWhat the farm was told after that is lost: look through `vizpeer job ls`, `peer ls` and `user ls`.")
		c.hint("Next: vizpeer up\nThe other machines follow by themselves. Then see `vizpeer coord status`, and let more machines\nhold the queue: vizpeer invite --coordinator")
	})
}

func (c *cli) coordRecover() *cobra.Command {
	var (
		file  string
		epoch uint64
		s     settings
	)
	cmd := &cobra.Command{
		Use:   "recover --recovery-file FILE",
		Short: "Take the farm over with this machine's copy of the queue, where its voters are gone for good",
		Long: `Take the farm over with this machine's copy of the queue, where the machines that vote, or most
of them, are gone for good: their disks are lost, or they will never be switched on again. Where
they will come back, wait for them: nothing is lost while they are away.

Run it on one coordinator, the one whose copy is the latest, with its peer stopped. It needs the
recovery file that "vizpeer init" wrote, and begins a new epoch of the farm: all machines follow the
latest epoch that the farm's key has signed, so that the old voters, should they come back after
all, follow, too. What they had accepted and this machine has not copied is lost.

It may be run again if it was interrupted. Take the recovery file away from the machine afterwards.`,
		Example: `  vizpeer service stop
  vizpeer coord recover --recovery-file /media/safe/farm.recovery
  vizpeer service start`,
		Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			r, err := c.recovering(file, epoch)
			if err != nil {
				return err
			}
			cfg, err := c.peerConfig(&s, s.flags(), slog.LevelError)
			if err != nil {
				return err
			}
			out, err := peer.Recover(cfg, r)
			if err != nil {
				return err
			}
			return c.printRecovered(out, "this machine's copy of the queue")
		},
	}
	recoveryFlags(cmd, &file, &epoch)
	return cmd
}

func recoveryFlags(cmd *cobra.Command, file *string, epoch *uint64) {
	cmd.Flags().StringVar(file, "recovery-file", "", "the farm's recovery file; - reads it from standard input")
	cmd.Flags().Uint64Var(epoch, "epoch", 0, "number of the new epoch, where others may have begun one that this machine has not heard of (default: the next)")
}

// saved is the --json of `backup`.
type saved struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	httpapi.BackupMade
}

func (c *cli) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Save the farm's state to a file while it runs, as an admin",
		Long: `Save the farm's state to a file while it runs, as an admin: the queue, the members, accounts and
keys, and the audit, all as of one moment. "vizpeer restore FILE" brings the farm back with it where
all its coordinators are lost. Projects and frames are not in it: machines hold those.

The file holds no secret that could be used, but the hashes of passwords, at which somebody with
time may guess: it is written for you alone (0600), and is to be kept so. It is checked before it
gets its name; one of that name is replaced then.`,
		Args: takes("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := c.saveBackup(cmd.Context(), cl, args[0])
			if err != nil {
				return err
			}
			return c.print(s, func() {
				fmt.Fprintf(c.out, "%s, the farm as of %s, written to %s\n", bytesText(s.Size), s.At.Local().Format(time.DateTime), plain(s.File))
				c.hint("Keep it on another machine, and the recovery file on none: vizpeer restore FILE needs both.")
			})
		},
	}
}

// saveBackup writes a backup to a file that has its name only once it is whole.
func (c *cli) saveBackup(ctx context.Context, cl *client, name string) (s saved, err error) {
	if s.File, err = filepath.Abs(name); err != nil {
		return s, fmt.Errorf("the file: %w", err)
	}
	if info, err := os.Stat(s.File); err == nil && !info.Mode().IsRegular() {
		return s, usagef("%s is no file: name one to write", s.File)
	}
	f, err := os.CreateTemp(filepath.Dir(s.File), ".vizpeer-backup-*") // 0600
	if err != nil {
		return s, fmt.Errorf("the backup cannot be written: %w", err)
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	body, err := cl.open(ctx, "/v1/backup")
	if err != nil {
		return s, err
	}
	defer body.Close()
	if s.Size, err = io.Copy(f, body); err != nil {
		if ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
		return s, unreachablef("the backup broke off, and nothing was written: %w: try again", err)
	}
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return s, err
	}
	if s.BackupMade, err = peer.CheckBackup(f); err != nil {
		return s, fmt.Errorf("the backup did not come whole, and nothing was written: %w", err)
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return s, fmt.Errorf("the backup cannot be written: %w", err)
	}
	return s, os.Rename(f.Name(), s.File)
}

func (c *cli) restoreCommand() *cobra.Command {
	var (
		file, name string
		epoch      uint64
		noWork     bool
		s          settings
	)
	cmd := &cobra.Command{
		Use:   "restore FILE --recovery-file FILE",
		Short: "Bring the farm back on this machine with a backup, where all its coordinators are lost",
		Long: `Bring the farm back on this machine with a file that "vizpeer backup" wrote, where all its
coordinators are lost. Where one is left, "vizpeer coord recover" there loses less.

The machine may be a new one, or any of the farm, with its peer stopped. It begins a new epoch of the
farm, as "coord recover" does, with itself as the only coordinator: the farm's machines follow it, and
the frames that they hold are found again. Machines that joined after the backup was made must
join again; those that were removed after it are members again: see "vizpeer peer ls".`,
		Example: `  vizpeer restore attic.backup --recovery-file /media/safe/farm.recovery
  vizpeer up`,
		Args: takes("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("name") {
				if err := checkName("--name", name); err != nil {
					return err
				}
			}
			r, err := c.recovering(file, epoch)
			if err != nil {
				return err
			}
			r.Name, r.NoWork = name, noWork
			f, err := os.Open(args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return notFoundf("there is no file %s", args[0])
			}
			if err != nil {
				return fmt.Errorf("the backup could not be read: %w", err)
			}
			defer f.Close()
			cfg, err := c.peerConfig(&s, s.flags(), slog.LevelError)
			if err != nil {
				return err
			}
			out, err := peer.Restore(cfg, f, r)
			if err != nil {
				return err
			}
			return c.printRecovered(out, args[0])
		},
	}
	recoveryFlags(cmd, &file, &epoch)
	cmd.Flags().StringVar(&name, "name", "", "a new machine's name (default: its host name)")
	cmd.Flags().BoolVar(&noWork, "no-work", false, "do not render on a new machine")
	return cmd
}
