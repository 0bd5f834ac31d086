package coord

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/level"
)

// record is for the release of a level: what its code writes is kept for the code that
// comes after it.
var record = flag.String("record", "", "write what this code writes into `folder`, such as testdata/level-3")

func TestReach(t *testing.T) {
	box := func(name string, knows int) Behind {
		return Behind{Peer: authz.PeerID(name), Name: name, Version: "0.3", Knows: knows}
	}
	for name, c := range map[string]struct {
		holders []Behind
		to      int
		behind  []string
	}{
		"one alone":            {[]Behind{box("a", 4)}, 4, nil},
		"one is behind":        {[]Behind{box("a", 4), box("b", 3), box("c", 4)}, 3, []string{"b (0.3)"}},
		"the lowest counts":    {[]Behind{box("a", 4), box("b", 3), box("c", 2)}, 2, []string{"b (0.3)", "c (0.3)"}},
		"more than the leader": {[]Behind{box("a", 4), box("b", 9)}, 4, nil},
		"one says nothing":     {[]Behind{box("a", 4), {Name: "b", Knows: level.Unsaid}}, 2, []string{"b (which was not heard from)"}},
	} {
		t.Run(name, func(t *testing.T) {
			to, behind := reach(c.holders, 4)
			require.Equal(t, c.to, to)
			var words []string
			for _, b := range behind {
				words = append(words, b.String())
			}
			require.Equal(t, c.behind, words)
		})
	}
	require.NoError(t, mayHold(3, box("b", 3)))
	require.NoError(t, mayHold(3, box("b", 4)))
	require.EqualError(t, mayHold(3, box("b", 2)), "b (0.3) cannot hold the queue: its vizpeer knows level 2, and the farm's is 3: update it there")
}

// TestRaise: the level is part of the state, never lowered, and what a snapshot says.
func TestRaise(t *testing.T) {
	raise := func(to int) Entry { return Entry{Raise: &Raise{At: noon, Level: to}} }
	f := newFSM(func(err error) { t.Error(err) })
	f.Apply(submission("j1").at(t, 1))
	require.True(t, bytes.HasPrefix(snapshotBytes(t, f), []byte("vizpeer queue 3 1 ")), "as level 2 reads it")
	require.Contains(t, string(raise(3).at(t, 2).Data), `{"v":3,`, "level 2 stops at it")
	require.Contains(t, string(raise(99).at(t, 2).Data), `{"v":99,`, "who does not know the level stops at it")
	require.Equal(t, 3, f.Apply(raise(3).at(t, 2)).(outcome).applied.Level)
	require.Zero(t, f.Apply(raise(2).at(t, 3)).(outcome).applied.Level)
	require.Zero(t, f.Apply(raise(3).at(t, 4)).(outcome).applied.Level)
	require.EqualValues(t, 3, f.level.Load())
	whole := snapshotBytes(t, f)
	require.True(t, bytes.HasPrefix(whole, []byte("vizpeer queue 4 3 4 ")), "level 2 does not read it, for it would not know the level: %.30s", whole)

	back := newFSM(func(err error) { t.Error(err) })
	require.NoError(t, back.Restore(io.NopCloser(bytes.NewReader(whole))))
	require.EqualValues(t, 3, back.level.Load())
	require.Equal(t, string(whole), string(snapshotBytes(t, back)))

	var broken error
	old := newFSM(func(err error) { broken = err })
	old.Apply(submission("j1").at(t, 1))
	newer := bytes.Replace(whole, []byte("queue 4 3 "), []byte("queue 4 99 "), 1)
	require.ErrorIs(t, old.Restore(io.NopCloser(bytes.NewReader(newer))), errTooNew)
	require.ErrorContains(t, broken, "its level is 99 and this vizpeer knows 3: update vizpeer on this machine")
	require.Equal(t, broken, old.Apply(submission("j2").at(t, 2)).(outcome).err, "it must not go on without it")
}

// TestLogTakesWhatAllKnow: what is of a higher level than the farm is refused before it
// has a place in the log, and what is not goes on.
func TestLogTakesWhatAllKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 1, 1, Config{})
		first := c.all[0]
		c.within("the farm is at this program's level", func() bool { return first.Levels().Farm == level.Known })
		require.Empty(t, first.Levels().Behind)

		first.raising.Lock() // the leader would raise it at once
		defer first.raising.Unlock()
		first.log.fsm.level.Store(1) // as if the audit was new
		ctx, _ := doing(t.Context(), "ann", "submit-job")
		_, _, err := first.Submit(ctx, submission("ann").Queue.Submit.Spec, nil)
		var refused *LevelError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, 2, refused.Needs)
		require.False(t, Refused(err), "it may be tried again")
		require.Equal(t, CodeLeader, ackOf(1, err).Code, "a machine keeps what it has to report")
		require.Equal(t, CodeLeader, ackOf(1, refusedAtOnce(err).err).Code)
		_, err = first.log.Start(audited(submission("bob"), "x")).Wait(t.Context())
		require.ErrorAs(t, err, &refused)
		_, err = first.log.Apply(t.Context(), submission("bob"))
		require.NoError(t, err, "what everybody knows goes on")
	})
}

// TestLevelWaitsForAllWhoHoldTheLog: a standby counts as much as a voter, and one that is
// not heard from counts as old.
func TestLevelWaitsForAllWhoHoldTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 4, 1, Config{})
		first := c.all[0]
		c.within("the farm is at this program's level", func() bool { return first.Levels().Farm == level.Known })
		ids := func(i int) authz.PeerID { return idOf(c.hosts[i]) }
		ad := func(i, knows int) {
			first.Advertise(ids(i), lease.Capability{Version: fmt.Sprint("0.", knows), Level: knows}, nil)
		}
		enlist := func(i int) error {
			return first.enlist(t.Context(), ids(i), func(ctx context.Context) error { return first.log.AddStandby(ctx, c.hosts[i].ID()) })
		}
		require.EqualError(t, enlist(1), "standby1 (which was not heard from) cannot hold the queue: its vizpeer knows level 2, and the farm's is 3: update it there")
		ad(1, 2)
		require.ErrorContains(t, enlist(1), "standby1 (0.2) cannot hold the queue")
		ad(1, 3)
		require.NoError(t, enlist(1))
		c.within("it has the level", func() bool { return c.all[1].log.Level() == level.Known })

		// A farm that was not raised yet, with one old standby.
		ad(2, 2)
		first.raising.Lock()
		for _, o := range c.all {
			o.log.fsm.level.Store(level.Unsaid)
		}
		require.NoError(t, first.log.AddStandby(t.Context(), c.hosts[2].ID()))
		first.raising.Unlock()
		first.leading.Load().raise()
		levels := first.Levels()
		require.Equal(t, 2, levels.Farm)
		require.Equal(t, []Behind{{Peer: ids(2), Name: "standby2", Version: "0.2", Knows: 2}}, levels.Behind)
		require.True(t, levels.HoldsBack(ids(2)))
		require.False(t, levels.HoldsBack(ids(1)))
		require.Equal(t, 3, levels.Machines[ids(1)].Knows)
		_, err := first.log.Apply(t.Context(), submission("j"))
		require.NoError(t, err)
		require.Equal(t, "not all of the farm's coordinators know this yet (it is of level 3, and the farm's is 2): update vizpeer on standby2 (0.2)", first.explained(&LevelError{Needs: 3, Farm: 2}).Error())
		ad(2, 3) // it was updated, and says so
		first.leading.Load().signal()
		c.within("all have the level", func() bool {
			return !slices.ContainsFunc(c.all[:3], func(o *Coordinator) bool { return o.log.Level() != level.Known })
		})
		require.Empty(t, first.Levels().Behind)
	})
}

// loggedEntry is a line of a recorded log.
type loggedEntry struct {
	Index   uint64          `json:"index"`
	Entry   json.RawMessage `json:"entry"`
	Refused string          `json:"refused,omitempty"` // as the audit has it
}

// TestFormerLogs plays the logs that earlier versions wrote: coordinators of two versions
// must make the same of each of them, to the byte, or their farms differ.
func TestFormerLogs(t *testing.T) {
	if *record != "" {
		recordLog(t, *record)
	}
	logs, err := filepath.Glob("testdata/level-*/log.jsonl")
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	for _, name := range logs {
		t.Run(filepath.Dir(name), func(t *testing.T) {
			f := newFSM(func(err error) { t.Error(err) })
			for _, line := range recordedLines(t, name) {
				var l loggedEntry
				require.NoError(t, json.Unmarshal([]byte(line), &l))
				o := f.Apply(&raft.Log{Index: l.Index, Data: l.Entry}).(outcome)
				require.Equal(t, l.Refused, refusalOf(o.err), "%s: %v", line, o.err)
			}
			want, err := os.ReadFile(filepath.Join(filepath.Dir(name), "snapshot"))
			require.NoError(t, err)
			require.Equal(t, string(want), string(snapshotBytes(t, f)), "the log led to another state than it did")

			s, err := readSnapshot(bytes.NewReader(want))
			require.NoError(t, err)
			back := newFSM(nil)
			back.index, back.queue, back.roster, back.trail = s.index, s.queue, s.roster, s.trail
			require.Equal(t, string(want), string(snapshotBytes(t, back)), "the snapshot is read as another state")
		})
	}
}

// TestFormerMessages reads each message of the work protocol as earlier versions send it:
// nothing of it is lost, so no field was renamed, removed, or given another type.
func TestFormerMessages(t *testing.T) {
	if *record != "" {
		view := readView(t, *record)
		recordMessages[Up](t, *record, "up.jsonl", view)
		recordMessages[Down](t, *record, "down.jsonl", view)
	}
	for kind, read := range map[string]func([]byte) (any, error){
		"up.jsonl":   readStrictly[Up],
		"down.jsonl": readStrictly[Down],
	} {
		files, err := filepath.Glob("testdata/level-*/" + kind)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, name := range files {
			for _, line := range recordedLines(t, name) {
				m, err := read([]byte(line))
				require.NoError(t, err, "%s: %s", name, line)
				again, err := json.Marshal(m)
				require.NoError(t, err)
				require.Subset(t, asMap(t, again), asMap(t, []byte(line)), name)
			}
		}
	}
}

// TestFormerFields holds the types of what is written to the log and the streams against
// what they had at each level that was released: what is added since then must say so.
func TestFormerFields(t *testing.T) {
	now := make(map[string]field)
	for name, of := range map[string]reflect.Type{"entry": reflect.TypeFor[Entry](), "up": reflect.TypeFor[Up](), "down": reflect.TypeFor[Down]()} {
		fieldsOf(t, now, name, of, 0, nil)
	}
	if *record != "" {
		var lines []string
		for name, f := range now {
			lines = append(lines, name+" "+f.kind)
		}
		slices.Sort(lines)
		require.NoError(t, os.WriteFile(filepath.Join(*record, "fields.txt"), []byte(strings.Join(lines, "\n")+"\n"), 0o644))
	}
	files, err := filepath.Glob("testdata/level-*/fields.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		var released int
		_, err := fmt.Sscanf(filepath.Base(filepath.Dir(name)), "level-%d", &released)
		require.NoError(t, err)
		then := make(map[string]string)
		for _, line := range recordedLines(t, name) {
			path, kind, _ := strings.Cut(line, " ")
			then[path] = kind
			if f, is := now[path]; !is || f.kind != kind {
				t.Errorf("%s was %q at level %d and is %q: peers of that level still write and read it", path, kind, released, f.kind)
			}
		}
		for path, f := range now {
			if _, was := then[path]; !was && f.since <= released {
				t.Errorf(`%s is new since level %d: tag it with since:"%d", so that no coordinator applies and no machine is sent what it does not know (see package level)`, path, released, released+1)
			}
		}
	}
}

type field struct {
	kind  string
	since int // the highest since of it and of what it is in
}

// fieldsOf lists the fields of a type by their paths in JSON.
func fieldsOf(t *testing.T, into map[string]field, path string, of reflect.Type, since int, in []reflect.Type) {
	t.Helper()
	for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice && of != reflect.TypeFor[json.RawMessage]() {
		of = of.Elem()
	}
	text := of.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || reflect.PointerTo(of).Implements(reflect.TypeFor[encoding.TextMarshaler]())
	if of.Kind() != reflect.Struct || text || slices.Contains(in, of) || of == reflect.TypeFor[authz.View]() {
		return
	}
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		own := since
		if tag, is := f.Tag.Lookup("since"); is {
			number, _, _ := strings.Cut(tag, ",")
			n, err := strconv.Atoi(number)
			require.NoError(t, err, "%s.%s", path, f.Name)
			own = max(own, n)
		}
		at := path
		if !f.Anonymous || name != "" {
			at += "." + cmp.Or(name, f.Name)
			into[at] = field{kind: kindOf(f.Type), since: own}
		}
		fieldsOf(t, into, at, f.Type, own, append(in, of))
	}
}

// kindOf is how JSON writes a type.
func kindOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[json.RawMessage]():
		return "any"
	case t.Implements(reflect.TypeFor[encoding.TextMarshaler]()), reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		return "string"
	}
	switch k := t.Kind(); k {
	case reflect.Pointer:
		return kindOf(t.Elem())
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "string"
		}
		return "list of " + kindOf(t.Elem())
	case reflect.Struct, reflect.Map:
		return "object"
	case reflect.Float32, reflect.Float64:
		return "float"
	case reflect.String, reflect.Bool:
		return k.String()
	}
	return "integer"
}

// asMap is a document as a map. Whatever has fields of its own is text in it, so that one
// that has more than it had is told from one that lacks some.
func asMap(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var doc any
	require.NoError(t, json.Unmarshal(text, &doc))
	flat := make(map[string]any)
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, v := range v {
				walk(at+"."+k, v)
			}
		case []any:
			for i, v := range v {
				walk(fmt.Sprintf("%s[%d]", at, i), v)
			}
		default:
			flat[at] = v
		}
	}
	walk("", doc)
	return flat
}

func readStrictly[T any](text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var m T
	return &m, d.Decode(&m)
}

func recordedLines(t *testing.T, name string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, MaxEntry)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	require.NoError(t, s.Err())
	require.NotEmpty(t, lines)
	return lines
}

func refusalOf(err error) string {
	if err == nil {
		return ""
	}
	return outcomeOf(err)
}

// recordLog writes a log with every command that there is, and the snapshot at its end.
// What is done to the queue was recorded by package lease.
func recordLog(t *testing.T, dir string) {
	require.NoError(t, os.MkdirAll(dir, 0o755))
	secret, public, err := crypto.GenerateEd25519Key(rngOf("founder"))
	require.NoError(t, err)
	id, err := peer.IDFromPublicKey(public)
	require.NoError(t, err)
	founder := authz.PeerID(id.String())

	f := newFSM(func(err error) { t.Error(err) })
	var text bytes.Buffer
	index := uint64(2)
	commit := func(e Entry) {
		index++
		data, err := e.encode()
		require.NoError(t, err)
		o := f.Apply(&raft.Log{Index: index, Data: data}).(outcome)
		if o.err != nil {
			t.Log("refused: ", o.err)
		}
		require.NoError(t, json.NewEncoder(&text).Encode(loggedEntry{index, data, refusalOf(o.err)}))
	}
	at := noon
	roster := func(action string, c authz.Command) {
		at = at.Add(time.Second)
		c.At = at
		e := Entry{Roster: &c}
		if action != "" {
			e.Audit = &authz.Note{Deed: authz.Deed{User: "admin", Key: "k", Machine: founder, Address: "192.0.2.7", Action: action, Object: "x", Detail: "y", Times: 2}}
		}
		commit(e)
	}
	first := foundation(t, founder)
	first.Audit = &authz.Note{Deed: authz.Deed{User: "admin", Machine: founder, Action: "init"}}
	commit(first)

	random := rngOf("story")
	farm := first.Roster.Found.Farm
	ticket := func(role authz.Role, coordinator bool) authz.Ticket {
		made, err := authz.NewTicket(random, farm, role, coordinator, nil)
		require.NoError(t, err)
		roster("create-ticket", authz.Command{Mint: &authz.Mint{Ticket: made.Record(2, at.Add(time.Hour), "admin")}})
		return made
	}
	key := func(user string, role authz.Role) authz.Key {
		_, k, err := authz.NewKey(random, user, role, at)
		require.NoError(t, err)
		return k
	}
	admin := authz.Principal{User: "admin", Role: authz.Admin}
	redeem := func(made authz.Ticket, p authz.PeerID, worker bool) {
		k := key(string(p), authz.Node)
		roster("join", authz.Command{Redeem: &authz.Redeem{Ticket: made.Hash(), Peer: p, Name: string(p), Worker: worker, KeyID: k.ID, KeyHash: k.Hash}})
	}
	nodes, desks, queues := ticket(authz.Node, false), ticket(authz.Operator, false), ticket(authz.Admin, true)
	redeem(nodes, "box2", true)
	redeem(desks, "desk", false)
	redeem(queues, "box3", true)
	redeem(nodes, "box2", true) // again, with another key
	redeem(nodes, "box4", true)
	redeem(nodes, "box5", true) // one too many
	roster("label-peer", authz.Command{Label: &authz.Label{Peer: "box2", Labels: []string{"fast", "lic:x"}}})
	offer := authz.Offer{Root: "bafyblender", Name: "Blender", Version: "4.2.1", Hash: "abc", OS: "linux", Arch: "amd64", Engines: []string{"CYCLES"}, OIDN: true, Files: 3, Size: 4, By: "admin"}
	roster("offer-blender", authz.Command{Offer: &offer})
	offer.Root, offer.OS = "bafyother", "windows"
	roster("offer-blender", authz.Command{Offer: &offer})
	roster("withdraw-blender", authz.Command{Withdraw: &authz.Withdraw{Root: offer.Root}})
	ann, err := authz.NewAccount(random, "ann", authz.Operator, "correct horse battery")
	require.NoError(t, err)
	roster("create-user", authz.Command{AddUser: &authz.AddUser{Account: ann, By: admin}})
	other, err := authz.NewAccount(random, "ann", authz.Operator, "another horse battery")
	require.NoError(t, err)
	roster("set-password", authz.Command{SetPassword: &authz.SetPassword{User: "ann", Password: other.Password, By: admin}})
	roster("set-role", authz.Command{SetRole: &authz.SetRole{User: "ann", Role: authz.Viewer, By: admin}})
	mine := key("ann", authz.Viewer)
	roster("create-key", authz.Command{CreateKey: &authz.CreateKey{Key: mine, By: admin}})
	script := key("script", authz.Operator)
	roster("create-key", authz.Command{CreateKey: &authz.CreateKey{Key: script, By: admin}})
	roster("revoke-key", authz.Command{RevokeKey: &authz.RevokeKey{ID: script.ID, By: admin}})
	roster("disable-user", authz.Command{Disable: &authz.Disable{User: "ann", On: true, By: admin}})
	roster("logout", authz.Command{EndSession: &authz.EndSession{ID: strings.Repeat("s", 26), User: "ann", Until: at.Add(time.Hour)}})
	k := key("box6", authz.Node)
	roster("approve", authz.Command{Approve: &authz.Approve{Peer: "box6", Name: "box6", Worker: true, Role: authz.Node, By: "admin", KeyID: k.ID, KeyHash: k.Hash}})
	roster("", authz.Command{Seen: &authz.Seen{Peers: []authz.PeerID{"box2", "box6", founder}}})
	roster("revoke-peer", authz.Command{Revoke: &authz.Revoke{Peer: "box4", By: "admin"}})
	roster("", authz.Command{Expire: &authz.Expire{Peers: []authz.PeerID{"box6"}, Before: at.Add(time.Hour)}})
	spare := ticket(authz.Node, false)
	roster("revoke-ticket", authz.Command{RevokeTicket: &authz.RevokeTicket{Ticket: spare.Hash()}})
	roster("", authz.Command{Trust: &authz.Trust{CA: []byte("certificate")}})
	commit(Entry{Audit: &authz.Note{At: at, Outcome: "denied", Deed: authz.Deed{Machine: founder, Action: "login", Object: "ann"}}})

	for i, line := range recordedLines(t, "../lease/"+filepath.ToSlash(dir)+"/log-1.jsonl") {
		var c struct {
			Command lease.Command `json:"command"`
		}
		require.NoError(t, json.Unmarshal([]byte(line), &c))
		e := Entry{Queue: &c.Command}
		if i%4 == 0 {
			e.Audit = &authz.Note{Deed: authz.Deed{User: "ann", Machine: "desk", Action: "queue"}}
		}
		commit(e)
		if i == 60 {
			s := authz.Seal{Signer: founder}
			for _, r := range f.trail.Unsigned() {
				signature, err := secret.Sign(r.Statement())
				require.NoError(t, err)
				if s.First == 0 {
					s.First = r.Seq
				}
				s.Signatures = append(s.Signatures, signature)
			}
			commit(Entry{Seal: &s})
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "log.jsonl"), text.Bytes(), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "snapshot"), snapshotBytes(t, f), 0o644))
	view, err := json.Marshal(f.roster.View())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "view.json"), view, 0o644))
}

func readView(t *testing.T, dir string) *authz.View {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "view.json"))
	require.NoError(t, err)
	v := new(authz.View)
	require.NoError(t, json.Unmarshal(text, v))
	return v
}

// TestFormerRosters reads the rosters that earlier versions hand out and keep.
func TestFormerRosters(t *testing.T) {
	files, err := filepath.Glob("testdata/level-*/view.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		v := readView(t, filepath.Dir(name))
		require.NotEmpty(t, v.Farm())
		want, err := os.ReadFile(name)
		require.NoError(t, err)
		got, err := json.Marshal(v)
		require.NoError(t, err)
		require.Subset(t, asMap(t, got), asMap(t, want), name)
	}
}

// recordMessages writes one message of each kind, with something in every field.
func recordMessages[T any](t *testing.T, dir, name string, view *authz.View) {
	var text bytes.Buffer
	kinds := reflect.TypeFor[T]()
	for i := range kinds.NumField() {
		m := reflect.New(kinds)
		fill(m.Elem().Field(i), view, 0)
		require.NoError(t, json.NewEncoder(&text).Encode(m.Interface()))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), text.Bytes(), 0o644))
}

// fill puts something into v and all that is in it.
func fill(v reflect.Value, view *authz.View, depth int) {
	switch v.Interface().(type) {
	case *authz.View:
		v.Set(reflect.ValueOf(view))
		return
	case time.Time:
		v.Set(reflect.ValueOf(noon))
		return
	case json.RawMessage:
		v.Set(reflect.ValueOf(json.RawMessage(`{"percent":5}`)))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if depth < 12 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), view, depth+1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), view, depth+1)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), view, depth+1)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), view, depth+1)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, view, depth+1)
		fill(value, view, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1.5)
	default:
		if v.CanInt() {
			v.SetInt(1)
		} else {
			v.SetUint(1)
		}
	}
}
