package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

func (c *cli) auditCommand() *cobra.Command {
	return c.group(&cobra.Command{Use: "audit", Short: "Who did what, from where and with what result; for admins"},
		c.auditLs(), c.auditVerify())
}

func (c *cli) auditLs() *cobra.Command {
	var (
		q            = url.Values{}
		filters      = map[string]*string{}
		since, until string
		limit        int
		all          bool
	)
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what was done, the latest first",
		Long: `List what people and machines did to the farm, the latest first: logins, submissions,
changes of jobs, machines, users, keys and tickets, and what was refused for want of a right.

With --json each record is a line, as "vizpeer audit verify --file" checks it:

  vizpeer audit ls --all --json > audit.jsonl`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for name, value := range filters {
				if *value != "" {
					q.Set(name, *value)
				}
			}
			for name, text := range map[string]string{"since": since, "until": until} {
				if text == "" {
					continue
				}
				at, err := parseMoment(text, time.Now())
				if err != nil {
					return usagef("--%s %w", name, err)
				}
				q.Set(name, at.UTC().Format(time.RFC3339Nano))
			}
			if limit < 1 {
				return usagef("--limit %d is not possible: use 1 or more, or --all", limit)
			}
			if all {
				limit = 0
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			return c.listAudit(cmd.Context(), cl, q, limit)
		},
	}
	f := cmd.Flags()
	for _, filter := range [][2]string{
		{"user", "of this user only"},
		{"action", "this action only, such as cancel-job, login or join"},
		{"object", "done to this only: a job, machine, user, key or ticket"},
		{"outcome", "ok, or why not, such as forbidden; refused: all that is not ok"},
	} {
		filters[filter[0]] = f.String(filter[0], "", filter[1])
	}
	f.StringVar(&since, "since", "", "not before this time: 2026-03-01, 2026-03-01T12:00:00Z, or 24h for a day ago")
	f.StringVar(&until, "until", "", "before this time, written likewise")
	f.IntVar(&limit, "limit", 50, "records to list")
	f.BoolVar(&all, "all", false, "list all of them")
	return cmd
}

// auditPage is how many records are asked for at a time.
const auditPage = 1000

// listAudit prints the records that fit the query, and at most limit of them unless it
// is 0.
func (c *cli) listAudit(ctx context.Context, cl *client, q url.Values, limit int) error {
	var rows [][]any
	out := bufio.NewWriter(c.out)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	more := false
	for left := limit; ; {
		q.Set("limit", strconv.Itoa(auditPage))
		if limit > 0 {
			q.Set("limit", strconv.Itoa(min(left, auditPage)))
		}
		var page httpapi.AuditPage
		if err := cl.call(ctx, http.MethodGet, "/v1/audit?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, r := range page.Records {
			if !c.json {
				rows = append(rows, auditRow(r))
			} else if err := lines.Encode(r); err != nil {
				return err
			}
		}
		left -= len(page.Records)
		more = page.Next > 0
		if !more || limit > 0 && left <= 0 {
			break
		}
		q.Set("before", strconv.FormatUint(page.Next, 10))
	}
	if c.json {
		return out.Flush()
	}
	c.table([]string{"RECORD", "TIME", "WHO", "FROM", "ACTION", "OBJECT", "RESULT"}, rows)
	if more {
		c.hint("There are older ones: see --limit, --all and the filters.")
	}
	return nil
}

func auditRow(r authz.Record) []any {
	from := []string{}
	for _, s := range []string{r.Address, r.Machine.Short()} {
		if s != "" {
			from = append(from, s)
		}
	}
	object := r.Object
	if r.Detail != "" {
		object = strings.TrimSpace(object + " (" + r.Detail + ")")
	}
	result := r.Outcome
	if r.Times > 0 {
		result += fmt.Sprintf(" ×%d", r.Times)
	}
	return []any{r.Seq, r.At.Local().Format(time.DateTime), r.User, strings.Join(from, " "), r.Action, object, result}
}

// parseMoment reads a time, a day, or how long before now it is.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d.Abs()), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: write it like 2026-03-01, 2026-03-01T12:00:00Z, or 24h for a day ago", text)
}

func (c *cli) auditVerify() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no record was altered, moved, put in or taken out",
		Long: `Check the whole audit as the machine that leads holds it: that each record stands as it
was written, follows the one before it and is signed, and that the last is the one that
the farm's coordinators agreed on. The first record that does not hold is named.

--file checks records that "vizpeer audit ls --all --json" wrote, without a peer; of
those nobody can tell whether later ones are missing.`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v httpapi.AuditVerified
			var err error
			if file != "" {
				v, err = c.verifyFile(file)
			} else {
				var cl *client
				if cl, err = c.client(); err == nil {
					v, err = follow[httpapi.AuditVerified](cmd.Context(), c, cl, c.countBar("Verifying"), http.MethodGet, "/v1/audit/verify")
				}
			}
			if err != nil {
				return err
			}
			if err := c.print(v, func() { c.tellVerified(v) }); err != nil {
				return err
			}
			if v.Fault == nil {
				return nil
			}
			failed := fmt.Errorf("the audit does not hold: record %d: %s", v.Fault.Seq, v.Fault.Why)
			if c.json {
				return fmt.Errorf("%w: %w", errSilent, failed)
			}
			return failed
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "check these records, a JSON line each; - reads standard input")
	return cmd
}

func (c *cli) tellVerified(v httpapi.AuditVerified) {
	if v.Fault != nil {
		return // the error says it
	}
	fmt.Fprintf(c.out, "%s, all as they were written\n", count(int(v.Records), "record"))
	for _, s := range v.Signers {
		name := cmp.Or(s.Name, "a machine that is no member now")
		fmt.Fprintf(c.out, "  %d signed by %s (%s)\n", s.Records, plain(name), s.Peer.Short())
	}
	if v.Head.Seq > 0 {
		hash, _ := v.Head.Hash.MarshalText() // it never fails
		c.hint("The last record is %d, %s. Whoever keeps that line can tell later whether anything before it was changed.", v.Head.Seq, hash)
	}
}

// verifyFile checks records in a file, whichever end they begin at.
func (c *cli) verifyFile(name string) (v httpapi.AuditVerified, err error) {
	in := c.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return v, notFoundf("%w: check the name", err)
		}
		defer f.Close()
		in = f
	}
	v.Signers = []httpapi.AuditSigner{}
	var records []authz.Record
	for d := json.NewDecoder(bufio.NewReader(in)); ; {
		var r authz.Record
		if err := d.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			return v, usagef("%s does not hold records of the audit, a JSON line each: after %s: %w", name, count(len(records), "record"), err)
		}
		records = append(records, r)
	}
	if len(records) == 0 {
		return v, usagef("%s holds no records: write them with `vizpeer audit ls --all --json`", name)
	}
	if n := len(records); records[0].Seq > records[n-1].Seq {
		slices.Reverse(records)
	}
	verifier := authz.Verifier{At: authz.Mark{Seq: records[0].Seq - 1, Hash: records[0].Prev}}
	signed := map[authz.PeerID]uint64{}
	for i, r := range records {
		// The leader signs the latest a moment after they were made.
		verifier.Unsigned = !slices.ContainsFunc(records[i:], func(r authz.Record) bool { return len(r.Signature) > 0 })
		var fault *authz.Fault
		if err := verifier.Next(r); errors.As(err, &fault) {
			v.Fault = &httpapi.AuditFault{Seq: fault.Seq, Why: fault.Why}
			break
		}
		if r.Signer != "" {
			signed[r.Signer]++
		}
		v.Records++
	}
	for peer, n := range signed {
		v.Signers = append(v.Signers, httpapi.AuditSigner{Peer: peer, Records: n})
	}
	slices.SortFunc(v.Signers, func(a, b httpapi.AuditSigner) int { return cmp.Compare(a.Peer, b.Peer) })
	v.OK, v.Head = v.Fault == nil, verifier.At
	return v, nil
}
