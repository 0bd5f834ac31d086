package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// sessionFile is where the session is of whoever has logged in and uses this data
// folder; while it is there, commands act as that person. It is among the person's own
// files, not in the data folder: a session is nothing that a stolen machine's store
// should give away.
func (c *cli) sessionFile() (string, error) {
	dir, err := c.folder()
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	own := os.Getenv("XDG_RUNTIME_DIR") // in memory, and gone when its user is
	if own == "" {
		if own, err = os.UserCacheDir(); err != nil {
			return "", fmt.Errorf("there is no place for the session: %w: use --json and --token-file", err)
		}
	}
	return filepath.Join(own, "vizpeer", fmt.Sprintf("session-%x", sha256.Sum256([]byte(dir)))), nil
}

func (c *cli) loginCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "login USER",
		Short: "Begin a session as a user of the farm",
		Long: `Begin a session as a user of the farm. The password is asked for, or is the first line of
standard input. From then on commands with this data folder act as that user, until the
session ends, after an hour, or "vizpeer logout" ends it; then they act with this machine's
own key again. --json prints the session instead of keeping it.`,
		Args: takes("USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			cl, err := c.guest()
			if err != nil {
				return err
			}
			password, err := c.secrets().ask(ctx, "password of "+args[0])
			if err != nil {
				return err
			}
			var s httpapi.Session
			if err := cl.call(ctx, http.MethodPost, "/v1/auth/login", httpapi.Credentials{Username: args[0], Password: password}, &s); err != nil {
				return err
			}
			if !c.json {
				if err := c.keepSession(s.Token); err != nil {
					return err
				}
			}
			return c.print(s, func() {
				fmt.Fprintf(c.out, "You are %s, %s, until %s.\n", plain(s.Username), s.Role, s.ExpiresAt.Local().Format(time.DateTime))
				if s.MustChange {
					c.hint(changeFirst)
				}
				if c.tokenFile != "" {
					c.hint("But --token-file, or $VIZPEER_TOKEN, goes before the session: commands act by that while it is set.")
				}
			})
		},
	}
}

const changeFirst = "The password is a one-time one: choose your own with `vizpeer user passwd` before anything else."

func (c *cli) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "End the session that `login` began",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := c.sessionFile()
			if err != nil {
				return err
			}
			if c.tokenFile == "" && !c.loggedIn() {
				return notFoundf("nobody is logged in on this machine: see `vizpeer whoami`")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			var done httpapi.Health
			err = cl.call(cmd.Context(), http.MethodPost, "/v1/auth/logout", nil, &done)
			// A session that is over already needs no more than to be forgotten here.
			if p, ok := errors.AsType[*httpapi.Problem](err); ok && p.Code == httpapi.CodeUnauthorised && c.tokenFile == "" {
				err = nil
			}
			if err != nil {
				return err
			}
			if c.tokenFile == "" {
				if err := os.Remove(path); err != nil {
					return fmt.Errorf("the session has ended, but its file stays: %w", err)
				}
			}
			return c.print(httpapi.Health{Status: "ok"}, func() { fmt.Fprintln(c.out, "The session has ended.") })
		},
	}
}

func (c *cli) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who commands act as on this machine",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var me httpapi.Whoami
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/auth/whoami", nil, &me); err != nil {
				return err
			}
			return c.print(me, func() {
				by := "the API key " + me.Key
				if me.Session != "" {
					by = "a session until " + me.Expires.Local().Format(time.DateTime)
				}
				c.facts("user", me.User, "role", me.Role, "by", by, "peer", me.Peer, "farm", me.Farm)
				if me.MustChange {
					c.hint(changeFirst)
				}
			})
		},
	}
}

// loggedIn tells whether commands act by a session that `login` began.
func (c *cli) loggedIn() bool {
	path, err := c.sessionFile()
	if err != nil || c.tokenFile != "" {
		return false
	}
	_, err = os.Stat(path)
	return err == nil
}

// keepSession writes the session's file, readable by its owner alone.
func (c *cli) keepSession(token string) error {
	path, err := c.sessionFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("the session could not be kept: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".session-*") // 0600
	if err != nil {
		return fmt.Errorf("the session could not be kept: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(token + "\n")
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("the session could not be kept: %w", err)
	}
	return nil
}

func (c *cli) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Accounts of people: make, list, change and disable them",
	}
	c.group(cmd, c.userAdd(), c.userList(), c.userPasswd(),
		c.userSwitch("disable", "Refuse a user's sessions, and the API keys in the user's name, as an admin"),
		c.userSwitch("enable", "Let a user log in again who was disabled, as an admin"),
		c.userRole())
	return cmd
}

// account asks for a change of an account, or for a new one.
func (cl *client) account(ctx context.Context, path string, body any) (u httpapi.User, err error) {
	err = cl.call(ctx, http.MethodPost, "/v1/admin/users"+path, body, &u)
	return u, err
}

func userPath(user, what string) string { return "/" + url.PathEscape(user) + "/" + what }

// printUser prints an account after a change of it, and the one-time password that was
// drawn for it.
func (c *cli) printUser(u httpapi.User, what string) error {
	return c.print(u, func() {
		if u.Password == "" {
			fmt.Fprintf(c.out, "%s %s\n", plain(u.Username), what)
			return
		}
		fmt.Fprintln(c.out, u.Password)
		c.hint("%s %s. The password above is shown this once, and is good for one thing: to choose another.\nThere: vizpeer login %s && vizpeer user passwd", plain(u.Username), what, plain(u.Username))
	})
}

func (c *cli) userAdd() *cobra.Command {
	var role string
	var given bool
	cmd := &cobra.Command{
		Use:   "add USER",
		Short: "Make an account, as an admin",
		Long: `Make an account, as an admin. Its one-time password is printed once; its owner chooses
another after the first login. An account in the name of a machine's user, or of the user of
an API key, is the same person's: its role and its being disabled then count for those too.`,
		Args: takes("USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := personRole(role)
			if err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			password, err := c.given(cmd.Context(), given)
			if err != nil {
				return err
			}
			u, err := cl.account(cmd.Context(), "", httpapi.NewUser{Username: args[0], Role: r, Password: password})
			if err != nil {
				return err
			}
			return c.printUser(u, "has an account, as "+string(u.Role))
		},
	}
	cmd.Flags().StringVar(&role, "role", string(authz.Operator), "admin, operator or viewer")
	cmd.Flags().BoolVar(&given, "password-stdin", false, "read the one-time password from standard input instead of drawing one")
	return cmd
}

// given reads a one-time password where an admin brings one.
func (c *cli) given(ctx context.Context, given bool) (string, error) {
	if !given {
		return "", nil
	}
	return c.secrets().choose(ctx, "one-time password")
}

// personRole reads a role that an account may have.
func personRole(text string) (authz.Role, error) {
	r, err := authz.ParseRole(text)
	if err == nil && r == authz.Node {
		err = errors.New("an account is a person's: use one of admin, operator, viewer; a machine joins with a ticket")
	}
	if err != nil {
		return "", &usageError{err}
	}
	return r, nil
}

func (c *cli) userList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the accounts, as an admin",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var answer httpapi.UserList
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/admin/users", nil, &answer); err != nil {
				return err
			}
			return c.print(orEmpty(answer.Users), func() {
				var rows [][]any
				for _, u := range answer.Users {
					state := "enabled"
					switch {
					case u.Disabled:
						state = "disabled"
					case u.MustChange:
						state = "has a one-time password"
					}
					rows = append(rows, []any{u.Username, u.Role, state})
				}
				c.table([]string{"USER", "ROLE", "STATE"}, rows)
			})
		},
	}
}

func (c *cli) userPasswd() *cobra.Command {
	var given bool
	cmd := &cobra.Command{
		Use:   "passwd [USER]",
		Short: "Change your own password, or reset another's as an admin",
		Long: `Change your own password: the old one and the new one are asked for, or are two lines of
standard input. All your sessions end, and this one begins anew.
With USER, as an admin, give that user a one-time password, which is printed once.`,
		Args: takes("[USER]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if len(args) == 0 && given {
				return usagef("--password-stdin is for another's password: name the user")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				password, err := c.given(ctx, given)
				if err != nil {
					return err
				}
				u, err := cl.account(ctx, userPath(args[0], "password"), httpapi.NewPassword{Password: password})
				if err != nil {
					return err
				}
				return c.printUser(u, "has a one-time password")
			}
			s := c.secrets()
			var change httpapi.PasswordChange
			if change.Old, err = s.ask(ctx, "old password"); err != nil {
				return err
			}
			if change.New, err = s.choose(ctx, "new password"); err != nil {
				return err
			}
			if err := authz.CheckPassword(change.New); err != nil {
				return &usageError{err}
			}
			var session httpapi.Session
			if err := cl.call(ctx, http.MethodPost, "/v1/auth/password", change, &session); err != nil {
				return err
			}
			if c.loggedIn() {
				if err := c.keepSession(session.Token); err != nil {
					return err
				}
			}
			return c.print(session, func() {
				fmt.Fprintln(c.out, "The password is changed, and other sessions with the old one have ended.")
			})
		},
	}
	cmd.Flags().BoolVar(&given, "password-stdin", false, "read USER's one-time password from standard input instead of drawing one")
	return cmd
}

// userSwitch is the command that disables an account, or the one that enables it.
func (c *cli) userSwitch(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " USER",
		Short: short,
		Args:  takes("USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			u, err := cl.account(cmd.Context(), userPath(args[0], verb), nil)
			if err != nil {
				return err
			}
			if u.Disabled {
				c.hint("Machines of theirs stay in the farm: see `vizpeer peer ls`, and `vizpeer peer revoke` for one that shall not.")
			}
			return c.printUser(u, "is "+verb+"d")
		},
	}
}

func (c *cli) userRole() *cobra.Command {
	return &cobra.Command{
		Use:   "role USER ROLE",
		Short: "Give a user another role, as an admin",
		Long: `Give a user another role, as an admin: admin, operator or viewer. It counts at once, for the
user's sessions and API keys too.`,
		Args: takes("USER", "ROLE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := personRole(args[1])
			if err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			u, err := cl.account(cmd.Context(), userPath(args[0], "role"), httpapi.NewRole{Role: r})
			if err != nil {
				return err
			}
			return c.printUser(u, "is now "+string(u.Role))
		},
	}
}

func (c *cli) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "API keys: make, list and revoke them",
	}
	c.group(cmd, c.keyCreate(), c.keyList(), c.keyRevoke())
	return cmd
}

func (c *cli) keyCreate() *cobra.Command {
	var role string
	var k httpapi.NewKey
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make an API key, as an admin",
		Long: `Make an API key, as an admin, for programs and for machines that nobody sits at: it has no
end until it is revoked. It is printed once: the farm keeps only its hash. Write it to a file
that you alone can read, and name that with --token-file.`,
		Example: "  vizpeer key create --role operator --user pipeline --name 'the nightly build' > pipeline.key",
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if k.Role, err = authz.ParseRole(role); err != nil {
				return &usageError{err}
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			var made httpapi.APIKey
			if err := cl.call(cmd.Context(), http.MethodPost, "/v1/admin/keys", k, &made); err != nil {
				return err
			}
			return c.print(made, func() {
				fmt.Fprintln(c.out, made.Key)
				c.hint("An API key for %s, as %s. It is shown this once. To end it: vizpeer key revoke %s", plain(made.Username), made.Role, made.ID)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", string(authz.Operator), "admin, operator, viewer or node")
	cmd.Flags().StringVar(&k.Username, "user", "", "who acts with it: a user, or a name of its own for a program (default: you)")
	cmd.Flags().StringVar(&k.Name, "name", "", "what it is for")
	return cmd
}

func (c *cli) keyList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the API keys, those of machines too, as an admin",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var answer httpapi.KeyList
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/admin/keys", nil, &answer); err != nil {
				return err
			}
			return c.print(orEmpty(answer.Keys), func() {
				var rows [][]any
				for _, k := range answer.Keys {
					rows = append(rows, []any{k.ID, k.Username, k.Role, k.PeerName, k.Name, ago(k.Created, time.Now())})
				}
				c.table([]string{"ID", "USER", "ROLE", "MACHINE", "FOR", "MADE"}, rows)
			})
		},
	}
}

func (c *cli) keyRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Refuse an API key from now on, as an admin",
		Long: `Refuse an API key from now on, on every machine, as an admin. A machine whose own key is
revoked goes on rendering; its command line and add-on need another key, or a login.`,
		Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var k httpapi.APIKey
			if err := cl.call(cmd.Context(), http.MethodDelete, "/v1/admin/keys/"+url.PathEscape(args[0]), nil, &k); err != nil {
				return err
			}
			return c.print(k, func() { fmt.Fprintf(c.out, "The key %s of %s is refused from now on.\n", k.ID, plain(k.Username)) })
		},
	}
}
