package peer_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/ipfs/go-cid"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/cert"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

// someone is a host that speaks the protocols by itself, as no honest peer would.
type someone struct {
	name  string
	host  host.Host
	token string // "" for none
}

// within bounds a probe of somebody who does not answer.
const within = 5 * time.Second

// stream opens a stream by one protocol.
func (s someone) stream(t *testing.T, to *farmtest.Member, p protocol.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	st, err := s.host.NewStream(network.WithForceDirectDial(ctx, "test"), to.HostID(), p)
	if err == nil {
		_ = st.SetDeadline(time.Now().Add(within))
	}
	return st, err
}

// probes are what everybody tries: each says what it was answered, "-" where nothing.
var probes = []struct {
	name string
	try  func(*testing.T, someone, *farmtest.Member) string
}{
	{"join", func(t *testing.T, s someone, to *farmtest.Member) string {
		st, err := s.stream(t, to, "/vizpeer/join/1")
		if err != nil {
			return "-"
		}
		defer st.Reset()
		in := json.NewDecoder(st)
		var charter authz.Charter
		if in.Decode(&charter) != nil {
			return "-"
		}
		_, _ = st.Write([]byte(`{"ask":"member"}`))
		var answer struct{ Code, Reason string }
		if in.Decode(&answer) != nil {
			return "charter"
		}
		return answer.Code
	}},
	{"work", func(t *testing.T, s someone, to *farmtest.Member) string {
		st, err := s.stream(t, to, coord.WorkProtocol)
		if err != nil {
			return "-"
		}
		c := coord.NewConn(st)
		defer c.Close()
		var down coord.Down
		if c.Send(coord.Up{Hello: &coord.Hello{Can: lease.Capability{OS: "linux", Arch: "amd64", Cores: 1}}}) != nil || c.Receive(&down) != nil {
			return "-"
		}
		if down.Welcome == nil {
			return "other"
		}
		return "welcome"
	}},
	{"raft", func(t *testing.T, s someone, to *farmtest.Member) string {
		tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: raftStreams{s.host}, MaxPool: 1, Timeout: within, Logger: hclog.NewNullLogger()})
		defer tr.Close()
		var resp raft.AppendEntriesResponse
		if tr.AppendEntries(raft.ServerID(to.ID), raft.ServerAddress(to.ID), &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}}, &resp) != nil {
			return "-"
		}
		return "answer"
	}},
	{"audit", func(t *testing.T, s someone, to *farmtest.Member) string {
		st, err := s.stream(t, to, coord.AuditProtocol)
		if err != nil {
			return "-"
		}
		defer st.Reset()
		_, _ = st.Write([]byte(`{"first":1,"last":1}`))
		_ = st.CloseWrite()
		if _, err := io.ReadAll(io.LimitReader(st, 1<<20)); err != nil {
			return "-"
		}
		return "answer"
	}},
	{"api", func(t *testing.T, s someone, to *farmtest.Member) string {
		status, _ := s.ask(t, to, http.MethodGet, "/v1/farm", "")
		return status
	}},
	{"charter: forged", func(t *testing.T, s someone, to *farmtest.Member) string {
		c := charter
		c.Epoch, c.Coordinator = 9, authz.PeerID(s.host.ID().String())
		return s.show(t, to, c)
	}},
	{"charter: old", func(t *testing.T, s someone, to *farmtest.Member) string { return s.show(t, to, charter) }},
	{"cert: a listener's", func(t *testing.T, s someone, to *farmtest.Member) string { return s.certify(t, to, false) }},
	{"cert: a part of it", func(t *testing.T, s someone, to *farmtest.Member) string { return s.certify(t, to, true) }},
	{"ping", func(t *testing.T, s someone, to *farmtest.Member) string {
		st, err := s.stream(t, to, "/ipfs/ping/1.0.0")
		if err != nil {
			return "-"
		}
		defer st.Reset()
		b := make([]byte, 32)
		if _, err := st.Write(b); err != nil {
			return "-"
		}
		if _, err := io.ReadFull(st, b); err != nil {
			return "-"
		}
		return "answer"
	}},
	{"blobs: a project", func(t *testing.T, s someone, to *farmtest.Member) string { return s.fetch(t, to, project) }},
}

// charter is the farm's own.
var charter authz.Charter

// show shows a charter, and answers of which epoch the other's own is.
func (s someone) show(t *testing.T, to *farmtest.Member, c authz.Charter) string {
	st, err := s.stream(t, to, "/vizpeer/charter/1")
	if err != nil {
		return "-"
	}
	defer st.Reset()
	var answer authz.Charter
	if json.NewEncoder(st).Encode(c) != nil || json.NewDecoder(st).Decode(&answer) != nil {
		return "-"
	}
	return fmt.Sprint("epoch ", answer.Epoch)
}

// certify asks for a certificate for localhost.
func (s someone) certify(t *testing.T, to *farmtest.Member, ca bool) string {
	st, err := s.stream(t, to, "/vizpeer/cert/1")
	if err != nil {
		return "-"
	}
	defer st.Reset()
	key, err := cert.NewKey()
	require.NoError(t, err)
	request, err := cert.Request(key, []string{"localhost"})
	require.NoError(t, err)
	require.NoError(t, json.NewEncoder(st).Encode(map[string]any{"request": request, "ca": ca}))
	var answer struct {
		Chain  [][]byte
		Reason string
	}
	switch err := json.NewDecoder(st).Decode(&answer); {
	case err != nil:
		return "-"
	case answer.Reason != "":
		return "no"
	}
	return fmt.Sprint(len(answer.Chain))
}

// project is the one that the operator of the command line uploaded.
var project string

func (s someone) fetch(t *testing.T, from *farmtest.Member, root string) string {
	c, err := cid.Decode(root)
	require.NoError(t, err)
	store, err := blobs.Open(t.TempDir(), blobs.Config{})
	require.NoError(t, err)
	defer store.Close()
	x, err := swarm.New(s.host, store, swarm.Config{StallTimeout: within, Allow: func(context.Context, libp2ppeer.ID, cid.Cid, string) (bool, error) { return false, nil }})
	require.NoError(t, err)
	defer x.Close()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := x.Fetch(ctx, swarm.Request{Root: c, From: []libp2ppeer.AddrInfo{{ID: from.HostID()}}}); err != nil {
		return "-"
	}
	return "content"
}

// ask sends one request of the API, and answers its status.
func (s someone) ask(t *testing.T, to *farmtest.Member, method, path, body string) (status, text string) {
	st, err := s.stream(t, to, httpapi.Protocol)
	if err != nil {
		return "-", ""
	}
	defer st.Reset()
	r, err := http.NewRequest(method, "http://"+string(to.ID)+path, strings.NewReader(body))
	require.NoError(t, err)
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if r.Write(st) != nil {
		return "-", ""
	}
	resp, err := http.ReadResponse(bufio.NewReader(st), r)
	if err != nil {
		return "-", ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return fmt.Sprint(resp.StatusCode), string(b)
}

// raftStreams gives raft's transport streams of somebody's host.
type raftStreams struct{ host host.Host }

func (r raftStreams) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, err := libp2ppeer.Decode(string(to))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return gostream.Dial(ctx, r.host, id, coord.RaftProtocol)
}
func (r raftStreams) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (r raftStreams) Close() error              { return nil }
func (r raftStreams) Addr() net.Addr            { return &net.TCPAddr{} }

// everyone makes the hosts that try: one for each thing that a machine may be.
func everyone(t *testing.T, f *farmtest.Farm) []someone {
	founder := f.Peers[0]
	all := []someone{{name: "stranger", host: f.Stranger()}}
	for _, m := range []struct {
		name        string
		role        authz.Role
		coordinator bool
	}{{"revoked", authz.Operator, false}, {"node", authz.Node, false}, {"operator", authz.Operator, false}, {"coordinator", authz.Node, true}} {
		ticket := founder.Mint(t, m.role, m.coordinator)
		machine := f.Newcomer(m.name)
		f.Peers = f.Peers[:len(f.Peers)-1]
		_, err := machine.Join(ticket)
		require.NoError(t, err)
		all = append(all, someone{m.name, f.Impersonate(machine), token(t, machine)})
		if m.name == "revoked" {
			_, err := founder.Queue().Revoke(t.Context(), farmtest.Admin, machine.ID, founder.ID)
			require.NoError(t, err)
		}
	}
	f.Within(revocable, "everybody has heard", func() bool {
		return !slices.ContainsFunc(f.Peers, func(m *farmtest.Member) bool { return m.Roster().Version() != founder.Roster().Version() })
	})
	return all
}

// Every protocol is tried by everybody, with the coordinator and with a machine that only
// renders. What was allowed is this table and nothing more.
func TestWhoMayWhat(t *testing.T) {
	const want = `
to the coordinator   stranger  revoked   node      operator  coordinator
join                 removed   removed   member    member    member
work                 -         -         welcome   welcome   welcome
raft                 -         -         -         -         answer
audit                -         -         -         -         answer
api                  -         -         200       200       200
charter: forged      epoch 1   epoch 1   epoch 1   epoch 1   epoch 1
charter: old         epoch 1   epoch 1   epoch 1   epoch 1   epoch 1
cert: a listener's   -         -         2         2         2
cert: a part of it   -         -         no        no        2
ping                 -         -         -         -         -
blobs: a project     -         -         -         -         content
gossip: is heard     -         -         yes       yes       yes
gossip: hears        -         -         yes       yes       yes

to a node            stranger  revoked   node      operator  coordinator
join                 -         -         -         -         -
work                 -         -         -         -         -
raft                 -         -         -         -         -
audit                -         -         -         -         -
api                  -         -         421       421       421
charter: forged      -         -         epoch 1   epoch 1   epoch 1
charter: old         -         -         epoch 1   epoch 1   epoch 1
cert: a listener's   -         -         -         -         -
cert: a part of it   -         -         -         -         -
ping                 -         -         -         -         -
blobs: a project     -         -         -         -         content
`
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		founder, node := f.Peers[0], f.Peers[1]
		project = f.Upload(founder, 7, 100_000)
		require.Equal(t, project, f.Upload(node, 7, 100_000))
		all := everyone(t, f)
		charter = founder.Roster().Charter()
		var got strings.Builder
		row := func(name string, cell func(someone) string) {
			fmt.Fprintf(&got, "%-21s", name)
			var cells []string
			for _, s := range all {
				cells = append(cells, fmt.Sprintf("%-8s", cell(s)))
			}
			fmt.Fprintln(&got, strings.TrimRight(strings.Join(cells, "  "), " "))
		}
		for _, to := range []struct {
			name string
			*farmtest.Member
		}{{"to the coordinator", founder}, {"to a node", node}} {
			fmt.Fprintln(&got)
			row(to.name, func(s someone) string { return s.name })
			for _, p := range probes {
				row(p.name, func(s someone) string { return p.try(t, s, to.Member) })
			}
			if to.Member != founder {
				continue
			}
			heard, hears := gossip(t, f, all)
			row("gossip: is heard", func(s someone) string { return heard[s.name] })
			row("gossip: hears", func(s someone) string { return hears[s.name] })
		}
		t.Log(got.String())
		require.Equal(t, want, got.String())
	})
}

// A machine that has no leader lets strangers in, for one of them may be whom the farm's
// key names next: they can show a charter, and nothing else.
func TestStrangersAtAMachineThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		founder, node := f.Peers[0], f.Peers[1]
		charter = founder.Roster().Charter()
		project = f.Upload(node, 7, 100_000)
		stranger := someone{name: "stranger", host: f.Stranger()}
		founder.Crash()
		f.Within(time.Minute, "it has noticed", func() bool { return node.Local().Status(t.Context()).Leader == "" })
		for _, p := range probes {
			want := "-"
			if strings.HasPrefix(p.name, "charter") {
				want = "epoch 1"
			}
			require.Equal(t, want, p.try(t, stranger, node), p.name)
		}
		founder.Start()
		f.Within(time.Minute, "the leader is back", func() bool { return node.Local().Status(t.Context()).Leader == founder.ID })
	})
}

// gossip has everybody say something of itself, and listen.
func gossip(t *testing.T, f *farmtest.Farm, all []someone) (heard, hears map[string]string) {
	founder := f.Peers[0]
	heard, hears = make(map[string]string), make(map[string]string)
	for _, s := range all {
		heard[s.name], hears[s.name] = "-", "-"
		ctx, cancel := context.WithCancel(t.Context())
		ps, err := pubsub.NewGossipSub(ctx, s.host)
		require.NoError(t, err)
		dialled, done := context.WithTimeout(ctx, within)
		_, _ = s.host.Network().DialPeer(dialled, founder.HostID())
		done()
		topic, err := ps.Join("/vizpeer/" + string(founder.Roster().Farm()) + "/ads/1")
		require.NoError(t, err)
		sub, err := topic.Subscribe()
		require.NoError(t, err)
		said, err := json.Marshal(lease.Capability{OS: "linux", Arch: "amd64", Cores: 77})
		require.NoError(t, err)
		for range 5 { // of simulated time: the mesh is made by its heartbeat
			time.Sleep(2 * time.Second)
			require.NoError(t, topic.Publish(ctx, said))
		}
		listening, stop := context.WithTimeout(ctx, 20*time.Second)
		for {
			m, err := sub.Next(listening)
			if err != nil {
				break
			}
			if m.GetFrom() != s.host.ID() {
				hears[s.name] = "yes"
				break
			}
		}
		stop()
		time.Sleep(time.Second) // of simulated time: what was said may be on its way
		if founder.Heard(authz.PeerID(s.host.ID().String())).Cores == 77 {
			heard[s.name] = "yes"
		}
		cancel()
	}
	return heard, hears
}

// A node's credential is good for a node's work: nothing else is answered, over HTTP as
// any peer passes it on, whatever is asked.
func TestNodesKeyDoesNodesWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		founder := f.Peers[0]
		id := f.Submit(founder, "1-3")
		f.Await(id, lease.JobDone, time.Minute)
		job := "/v1/jobs/" + string(id)
		all := everyone(t, f)
		node, operator := all[2], all[3]
		require.Equal(t, "node", node.name)
		for _, try := range []struct{ method, path, body string }{
			{"POST", "/v1/queue/jobs", `{}`}, // as a peer hands in what it has prepared
			{"GET", "/v1/jobs", ""}, {"GET", job, ""}, {"GET", job + "/tasks", ""}, {"GET", job + "/why", ""},
			{"POST", job + "/cancel", ""}, {"POST", job + "/priority", `{"tier":"high"}`},
			{"GET", "/v1/queue/jobs/" + string(id) + "/frames/1", ""}, {"GET", "/v1/queue/jobs/" + string(id) + "/tasks/0", ""},
			{"GET", "/v1/events", ""}, {"GET", "/v1/blenders", ""},
			{"GET", "/v1/admin/users", ""}, {"POST", "/v1/admin/users", `{"user":"eve","role":"admin"}`}, {"GET", "/v1/admin/keys", ""}, {"POST", "/v1/admin/keys", `{"user":"eve","role":"admin"}`},
			{"GET", "/v1/audit", ""}, {"GET", "/v1/audit/verify", ""}, {"POST", "/v1/auth/password", `{"old":"x","new":"y"}`},
			{"GET", "/v1/tickets", ""}, {"POST", "/v1/tickets", `{}`}, {"DELETE", "/v1/tickets/abcdefgh", ""},
			{"GET", "/v1/peers/pending", ""}, {"POST", "/v1/peers/" + string(founder.ID) + "/revoke", ""}, {"POST", "/v1/peers/" + string(founder.ID) + "/drain", ""},
		} {
			status, body := node.ask(t, founder, try.method, try.path, try.body)
			require.Equal(t, "403", status, "%s %s", try.method, try.path)
			require.NotContains(t, body, string(id))
		}
		// What a peer answers of itself is for programs of its own machine.
		for _, path := range []string{"/v1/jobs/" + string(id) + "/frames/1", "/v1/blobs", "/v1/status", job + "/logs"} {
			status, _ := node.ask(t, founder, "GET", path, "")
			require.Equal(t, "404", status, path)
		}
		// Of the machines it sees itself.
		status, body := node.ask(t, founder, "GET", "/v1/peers", "")
		require.Equal(t, "200", status)
		require.NotContains(t, body, string(founder.ID))

		// Another person's job does not exist for an operator; an ordinary question of it does.
		status, theirs := operator.ask(t, founder, "GET", job, "")
		require.Equal(t, "404", status)
		status, nobodys := operator.ask(t, founder, "GET", "/v1/jobs/jnobody", "")
		require.Equal(t, "404", status)
		require.Equal(t, nobodys, theirs)
		status, _ = operator.ask(t, founder, "GET", "/v1/jobs", "")
		require.Equal(t, "200", status)

		// Not by the streams of blocks either, whatever job it names.
		j := f.Job(id)
		for _, root := range []string{j.Project, j.Frames[0].CID} {
			require.Equal(t, "-", node.fetch(t, founder, root))
			require.Equal(t, "-", operator.fetch(t, founder, root))
		}
		// A stolen key without its machine is nobody's way in.
		require.Equal(t, "-", func() string {
			status, _ := someone{host: all[0].host, token: operator.token}.ask(t, founder, "GET", "/v1/jobs", "")
			return status
		}())
	})
}
