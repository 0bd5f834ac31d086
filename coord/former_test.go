package coord

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// record is for the release of a level: what its code writes is kept for the code that
// comes after it.
var record = flag.String("record", "", "write what this code writes into `folder`, such as testdata/level-3")

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
			back.become(s)
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

// TestEntriesAreReadStrictly: nothing in an entry reads JSON in a way of its own, which
// would pass over a field that it does not know.
func TestEntriesAreReadStrictly(t *testing.T) {
	var look func(of reflect.Type, path string, in []reflect.Type)
	look = func(of reflect.Type, path string, in []reflect.Type) {
		switch {
		case slices.Contains(in, of):
			return
		case of == reflect.TypeFor[time.Time](), reflect.PointerTo(of).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
			return // text, whose bytes are all read
		case reflect.PointerTo(of).Implements(reflect.TypeFor[json.Unmarshaler]()), of.Kind() == reflect.Interface, of == reflect.TypeFor[json.RawMessage]():
			t.Errorf("%s is a %s, which takes any field", path, of)
			return
		}
		switch in = append(in, of); of.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			look(of.Elem(), path, in)
		case reflect.Struct:
			for i := range of.NumField() {
				look(of.Field(i).Type, path+"."+of.Field(i).Name, in)
			}
		}
	}
	look(reflect.TypeFor[entryJSON](), "entry", nil)
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
