package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// tokens of the fake farm; each is also its user's name.
var farmTokens = map[string]authz.Role{
	"root": authz.Admin, "ann": authz.Operator, "bob": authz.Operator, "vic": authz.Viewer, "box": authz.Node,
}

const someCID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

// farm is a queue in memory, shared by the peers of a test.
type farm struct {
	mu      sync.Mutex
	leader  peer.ID
	specs   []lease.Spec
	asked   []lease.JobID // under which those came
	calls   []string
	subs    []chan Event
	query   EventQuery
	jobs    JobQuery
	audit   AuditQuery
	control Control // the last one
	ended   []context.Context
	missed  bool
	subErr  error
	err     error // what every method answers, if set
	once    map[lease.Once]Submitted
	noted   []string   // what is on record beside changes
	from    netip.Addr // where the caller of Jobs or Farm was last
}

func (f *farm) askedFrom() netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.from
}

func (f *farm) call(name string, p authz.Principal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name+" "+p.User)
	return f.err
}

func (f *farm) Submit(ctx context.Context, p authz.Principal, in lease.Submit) (Submitted, error) {
	s, once := in.Spec, in.Once
	err := f.call("submit", p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := authz.DoingOf(ctx); d != nil {
		d.Noted = true
		f.noted = append(f.noted, fmt.Sprintf("%s %s ok", d.Action, d.User))
	}
	if once != nil {
		if was, ok := f.once[*once]; ok {
			was.Replayed = true
			return was, err
		}
		for o := range f.once {
			if o.User == once.User && o.Key == once.Key {
				return Submitted{}, lease.ErrKeyReused
			}
		}
	}
	f.specs, f.asked = append(f.specs, s), append(f.asked, in.Job)
	out := Submitted{Job: "jnew", Project: s.Project, Tasks: 3, Split: s.Split}
	if once != nil {
		if f.once == nil {
			f.once = make(map[lease.Once]Submitted)
		}
		f.once[*once] = out
	}
	return out, err
}

func (f *farm) Jobs(ctx context.Context, p authz.Principal, q JobQuery) (JobList, error) {
	f.mu.Lock()
	f.jobs, f.from = q, clientAddr(ctx)
	f.mu.Unlock()
	return JobList{}, f.call("jobs", p)
}

func (f *farm) Audit(_ context.Context, p authz.Principal, q AuditQuery) (AuditPage, error) {
	f.mu.Lock()
	f.audit = q
	f.mu.Unlock()
	return AuditPage{Next: 7}, f.call("audit", p)
}

func (f *farm) VerifyAudit(_ context.Context, p authz.Principal, progress func(done, total int64)) (AuditVerified, error) {
	progress(1, 2)
	return AuditVerified{OK: true, Records: 2, Signers: []AuditSigner{}}, f.call("verify audit", p)
}

func (f *farm) Note(_ context.Context, d authz.Deed) error {
	f.note(d, "ok")
	return nil
}

func (f *farm) Refused(d authz.Deed, outcome string) { f.note(d, outcome) }

func (f *farm) note(d authz.Deed, outcome string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noted = append(f.noted, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", d.Action, d.User, outcome, d.Object)))
}

func (f *farm) see(name string, p authz.Principal, id lease.JobID) error {
	err := f.call(name, p)
	switch {
	case err != nil:
		return err
	case id != "jann":
		return fmt.Errorf("%w: no job %s", ErrNotFound, id)
	case !p.MaySee("ann"):
		return fmt.Errorf("%w: %s belongs to ann", ErrNotFound, id)
	}
	return nil
}

func (f *farm) Job(_ context.Context, p authz.Principal, id lease.JobID, from authz.PeerID) (Job, error) {
	return Job{Submitter: from, JobSummary: JobSummary{ID: id, Name: "shot", State: lease.JobRunning, Tier: lease.Normal, Owner: "ann"}}, f.see("job", p, id)
}

func (f *farm) Frame(_ context.Context, p authz.Principal, id lease.JobID, n int32) (Frame, error) {
	fr := Frame{Frame: n, State: lease.TaskQueued}
	if n == 1 {
		fr = Frame{Frame: 1, State: lease.TaskDone, CID: someCID, Name: "0001.png", Size: int64(len(picture))}
	}
	return fr, f.see("frame", p, id)
}

func (f *farm) Tasks(_ context.Context, p authz.Principal, id lease.JobID) ([]Task, error) {
	return []Task{{Index: 0, Frames: "1-5", State: lease.TaskQueued}}, f.see("tasks", p, id)
}

func (f *farm) TasksOf(_ context.Context, p authz.Principal, id lease.JobID, n int32) ([]Task, error) {
	err := f.see("tasks of", p, id)
	if n > 5 {
		return nil, err
	}
	t, _ := f.Task(context.Background(), p, id, 0)
	return []Task{t, {Index: 1}}, err
}

func (f *farm) Task(_ context.Context, p authz.Principal, id lease.JobID, i int32) (Task, error) {
	t := Task{Index: i, State: lease.TaskLeased}
	if i == 0 {
		t.Attempts = []lease.Attempt{{Lease: "a", Log: "not a CID: an older attempt's"}, {Lease: "b", Log: someCID}, {Lease: "c"}}
	}
	return t, f.see("task", p, id)
}

func (f *farm) Control(_ context.Context, p authz.Principal, id lease.JobID, c Control) (JobSummary, error) {
	if err := f.see(string(c.Do), p, id); err != nil {
		return JobSummary{}, err
	}
	if !p.MayControl("ann") {
		return JobSummary{}, fmt.Errorf("%w: it is ann's job", ErrDenied)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.control = c
	return JobSummary{ID: id, State: lease.JobCancelled, Tier: c.Tier, Split: lease.Split{By: lease.BySamples, Units: 100 + c.Samples}}, nil
}

func (f *farm) controlled() Control {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.control
}

func (f *farm) Why(_ context.Context, p authz.Principal, id lease.JobID, task int32) (Why, error) {
	return Why{Job: id, Task: &task, Text: "it waits"}, f.see("why", p, id)
}

func (f *farm) Peers(_ context.Context, p authz.Principal) ([]Peer, error) {
	return nil, f.call("peers", p)
}

func (f *farm) Drain(_ context.Context, p authz.Principal, id authz.PeerID, on bool) (Peer, error) {
	out := Peer{ID: id, State: "idle"}
	if on {
		out.State, out.Drained = "draining", "drained by "+p.User
	}
	return out, f.call("drain", p)
}

func (f *farm) Label(_ context.Context, p authz.Principal, id authz.PeerID, labels []string) (Peer, error) {
	return Peer{ID: id, Granted: labels}, f.call("label", p)
}

func (f *farm) Blenders(_ context.Context, p authz.Principal) ([]Blender, error) {
	err := f.call("blenders", p)
	if p.Role == authz.Viewer {
		return nil, err
	}
	return []Blender{{Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 3}, OS: "linux", Arch: "amd64", Machines: []string{}}}, err
}

func (f *farm) Offer(_ context.Context, p authz.Principal, o NewOffer) (Blender, error) {
	err := f.call("offer", p)
	return Blender{Name: o.Name, Version: o.Version, Machines: []string{}, Offer: &Offered{Root: o.Root, By: p.User}}, err
}

func (f *farm) Withdraw(_ context.Context, p authz.Principal, root string) (Blender, error) {
	if err := f.call("withdraw", p); err != nil || root != someCID {
		return Blender{}, errors.Join(err, ErrNotFound)
	}
	return Blender{Machines: []string{}}, nil
}

func (f *farm) Farm(ctx context.Context, p authz.Principal) (Farm, error) {
	f.mu.Lock()
	f.from = clientAddr(ctx)
	f.mu.Unlock()
	return Farm{Name: "attic"}, f.call("farm", p)
}

func (f *farm) Backup(_ context.Context, p authz.Principal, w io.Writer) (BackupMade, error) {
	_, err := io.WriteString(w, "the farm's state")
	return BackupMade{}, err
}

func (f *farm) Coordinate(_ context.Context, p authz.Principal, _ authz.PeerID, what CoordinatorChange) (Coordination, error) {
	return Coordination{}, f.call(string(what), p)
}

func (f *farm) Invite(_ context.Context, p authz.Principal, in Invitation) (Invited, error) {
	return Invited{Ticket: "secret", Role: in.Role, Uses: max(1, in.Uses)}, f.call("invite", p)
}

func (f *farm) Tickets(_ context.Context, p authz.Principal) ([]OpenTicket, error) {
	return nil, f.call("tickets", p)
}

func (f *farm) RevokeTicket(_ context.Context, p authz.Principal, id string) (OpenTicket, error) {
	return OpenTicket{ID: id}, f.call("revoke ticket", p)
}

func (f *farm) Revoke(_ context.Context, p authz.Principal, id, from authz.PeerID) (Revoked, error) {
	if err := f.call("revoke", p); err != nil {
		return Revoked{}, err
	}
	if id == from {
		return Revoked{}, fmt.Errorf("%w: not oneself", ErrConflict)
	}
	return Revoked{Peer: Peer{ID: id}}, nil
}

func (f *farm) Pending(_ context.Context, p authz.Principal) ([]Applicant, error) {
	return nil, f.call("pending", p)
}

func (f *farm) Approve(_ context.Context, p authz.Principal, id authz.PeerID, role authz.Role) (Peer, error) {
	return Peer{ID: id, Roles: []string{string(role)}}, f.call("approve", p)
}

func (f *farm) Deny(_ context.Context, p authz.Principal, id authz.PeerID) (Applicant, error) {
	return Applicant{ID: id}, f.call("deny", p)
}

func (f *farm) Events(ctx context.Context, p authz.Principal, q EventQuery) (*Subscription, error) {
	if err := f.call("events", p); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan Event, 16)
	f.subs, f.query, f.ended = append(f.subs, ch), q, append(f.ended, ctx)
	return &Subscription{Events: ch, Missed: f.missed, Err: func() error { f.mu.Lock(); defer f.mu.Unlock(); return f.subErr }}, nil
}

// The people of a fake farm are those of farmTokens; each one's password is "password
// of" and the name.

func (f *farm) Login(ctx context.Context, in Credentials) (Session, error) {
	if err := f.call("login", authz.Principal{User: in.Username}); err != nil {
		return Session{}, err
	}
	role, ok := farmTokens[in.Username]
	if doing := authz.DoingOf(ctx); ok && doing != nil {
		doing.Object = in.Username
	}
	if !ok || in.Password != "password of "+in.Username {
		return Session{}, authz.ErrPassword
	}
	return Session{Token: in.Username, Username: in.Username, Role: role}, nil
}

func (f *farm) Logout(_ context.Context, p authz.Principal) error { return f.call("logout", p) }

func (f *farm) ChangePassword(_ context.Context, p authz.Principal, in PasswordChange) (Session, error) {
	return Session{Token: p.User}, f.call("password", p)
}

func (f *farm) Users(_ context.Context, p authz.Principal) ([]User, error) {
	return nil, f.call("users", p)
}

func (f *farm) AddUser(_ context.Context, p authz.Principal, in NewUser) (User, error) {
	return User{Username: in.Username, Role: in.Role}, f.call("add user", p)
}

func (f *farm) ResetPassword(_ context.Context, p authz.Principal, user, password string) (User, error) {
	return User{Username: user, Password: cmp.Or(password, "drawn")}, f.call("reset", p)
}

func (f *farm) DisableUser(_ context.Context, p authz.Principal, user string, on bool) (User, error) {
	return User{Username: user, Disabled: on}, f.call("disable", p)
}

func (f *farm) SetRole(_ context.Context, p authz.Principal, user string, role authz.Role) (User, error) {
	return User{Username: user, Role: role}, f.call("role", p)
}

func (f *farm) Keys(_ context.Context, p authz.Principal) ([]APIKey, error) {
	return nil, f.call("keys", p)
}

func (f *farm) CreateKey(_ context.Context, p authz.Principal, in NewKey) (APIKey, error) {
	return APIKey{Username: in.Username, Role: in.Role, Key: "secret"}, f.call("create key", p)
}

func (f *farm) RevokeKey(_ context.Context, p authz.Principal, id string) (APIKey, error) {
	return APIKey{ID: id}, f.call("revoke key", p)
}

// follower waits until n readers of events have subscribed, and returns the last.
func (f *farm) follower(t *testing.T, n int) (chan Event, context.Context) {
	t.Helper()
	var ch chan Event
	var ctx context.Context
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.subs) == n {
			ch, ctx = f.subs[n-1], f.ended[n-1]
		}
		return len(f.subs) == n
	}, 10*time.Second, time.Millisecond)
	return ch, ctx
}

func (f *farm) submitted() []lease.Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.specs
}

const picture = "not really a picture, but its bytes"

// machine is one peer of a test.
type machine struct {
	*Server
	host host.Host
	farm *farm
	url  string
	stop func() // ends both servers and waits for them

	transport *http.Transport // to url; nil is the default

	mu     sync.Mutex
	tokens map[string]authz.Role // those this machine knows
	finds  func() (peer.ID, error)
	opened int
	files  map[string]string
	checks []Check
	spec   func(*lease.Spec)
	panics bool

	mustChange bool // everybody has a one-time password

	folder   bool // whether the store's root is one
	storeErr error
	unpinned []string

	kept      []Posted
	withdrawn chan struct{}
	cancelled bool
	shown     string
}

func (m *machine) While(ctx context.Context, _ peer.ID) (context.Context, func()) {
	return ctx, func() {}
}

func (m *machine) Find(ctx context.Context) (peer.ID, bool, error) {
	m.mu.Lock()
	finds := m.finds
	m.mu.Unlock()
	if finds != nil {
		id, err := finds()
		return id, id == m.host.ID(), err
	}
	m.farm.mu.Lock()
	defer m.farm.mu.Unlock()
	if m.farm.leader == "" {
		return "", false, fmt.Errorf("%w: tried nobody", ErrNoLeader)
	}
	return m.farm.leader, m.farm.leader == m.host.ID(), nil
}

func (m *machine) set(change func(*machine)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

func (m *machine) Authenticate(_ context.Context, token string) (authz.Principal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.tokens[token]; ok {
		return authz.Principal{User: token, Role: r, MustChange: m.mustChange}, nil
	}
	return authz.Principal{}, fmt.Errorf("%w: unheard of", ErrUnauthorised)
}

func (m *machine) ImportProject(_ context.Context, _ authz.Principal, files iter.Seq2[ProjectFile, error]) (Project, error) {
	got := map[string]string{}
	p := Project{Project: someCID}
	for f, err := range files {
		if err != nil {
			return Project{}, fmt.Errorf("importing: %w", err)
		}
		data, err := io.ReadAll(f.Body)
		if err != nil {
			return Project{}, fmt.Errorf("importing %s: %w", f.Path, err)
		}
		if int64(len(data)) != f.Size {
			return Project{}, errors.New("a size that is not true")
		}
		if f.Receipt == "old" {
			return Project{}, &Lacking{[]string{f.Path}}
		}
		p.Receipts = append(p.Receipts, "for "+f.Path+f.Receipt)
		got[f.Path] = string(data)
		p.Files++
		p.Size += f.Size
	}
	m.set(func(m *machine) { m.files = got })
	return p, nil
}

func (m *machine) Prepare(_ context.Context, p authz.Principal, s Submission) (lease.Spec, Findings, error) {
	if s.Project != someCID {
		return lease.Spec{}, Findings{}, fmt.Errorf("%w: there is no project %q here: upload it first", ErrInvalid, s.Project)
	}
	spec := lease.Spec{
		Name: "shot", Owner: "mallory", Submitter: "elsewhere", Project: s.Project, Blend: "files/shot.blend", Tier: lease.Normal, Replicas: 2,
		Frames: lease.Frames{{First: 1, Last: 10, Step: 1}}, Output: lease.Output{Peer: "victim", Dir: s.Output},
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spec != nil {
		m.spec(&spec)
	}
	found := Findings{Missing: []string{"/tex/lost.png"}}
	wish, err := lease.ParseWish(string(s.Split), s.Tiles)
	if err == nil && wish.By == lease.WishTiles {
		spec.Split = lease.Split{By: lease.ByTiles, Units: wish.Columns * wish.Rows, Columns: wish.Columns, Rows: wish.Rows}
		found.Warnings, found.Whole = []string{"as you wish"}, "no, it is not"
	}
	return spec, found, err
}

func (m *machine) Open(_ context.Context, cid string, _ lease.Scope, _ int64) (io.ReadSeekCloser, int64, error) {
	m.set(func(m *machine) { m.opened++ })
	if cid != someCID {
		return nil, 0, errors.New("no such content")
	}
	return nopSeekCloser{strings.NewReader(picture)}, int64(len(picture)), nil
}

func (m *machine) OpenFolder(_ context.Context, cid string, _ lease.Scope) (iter.Seq2[ProjectFile, error], error) {
	if cid != someCID {
		return nil, errors.New("no such content")
	}
	return func(yield func(ProjectFile, error) bool) {
		yield(ProjectFile{Path: "passes/0001.png", Size: int64(len(picture)), Body: strings.NewReader(picture)}, nil)
	}, nil
}

type nopSeekCloser struct{ io.ReadSeeker }

func (nopSeekCloser) Close() error { return nil }

// The store of a fake machine holds one root, which is ann's, and the admin's.

func (m *machine) own(p authz.Principal, cid string) (Root, error) {
	if cid != someCID || !p.MaySee("ann") {
		return Root{}, fmt.Errorf("%w: %s", ErrNotFound, cid)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return Root{CID: cid, Folder: m.folder, Files: 1, Size: int64(len(picture)), Whole: true}, nil
}

func (m *machine) AddBlob(ctx context.Context, p authz.Principal, files iter.Seq2[ProjectFile, error], alone bool) (Blob, error) {
	project, err := m.ImportProject(ctx, p, files)
	if alone && project.Files != 1 {
		err = fmt.Errorf("%w: not one file", ErrInvalid)
	}
	return Blob{CID: someCID, Files: project.Files, Size: project.Size, Receipts: project.Receipts}, err
}

func (m *machine) Roots(_ context.Context, p authz.Principal) iter.Seq2[Root, error] {
	return func(yield func(Root, error) bool) {
		if root, err := m.own(p, someCID); err == nil && yield(root, nil) {
			m.mu.Lock()
			err := m.storeErr
			m.mu.Unlock()
			if err != nil {
				yield(Root{}, err)
			}
		}
	}
}

func (m *machine) RootOf(_ context.Context, p authz.Principal, cid string) (Root, error) {
	return m.own(p, cid)
}

func (m *machine) FetchBlob(ctx context.Context, p authz.Principal, cid string, progress func(done, total int64)) (Root, error) {
	root, err := m.own(p, cid)
	if err == nil {
		progress(1, 2)
		m.mu.Lock()
		err = m.storeErr
		m.mu.Unlock()
	}
	return root, err
}

func (m *machine) Files(_ context.Context, p authz.Principal, cid string) iter.Seq2[ProjectFile, error] {
	return func(yield func(ProjectFile, error) bool) {
		_, err := m.own(p, cid)
		if !yield(ProjectFile{Path: "a/b.png", Size: int64(len(picture)), Body: strings.NewReader(picture)}, err) {
			return
		}
		m.mu.Lock()
		err = m.storeErr
		m.mu.Unlock()
		if err != nil {
			yield(ProjectFile{}, err)
		}
	}
}

func (m *machine) OpenBlob(_ context.Context, p authz.Principal, cid string) (io.ReadSeekCloser, int64, error) {
	root, err := m.own(p, cid)
	return nopSeekCloser{strings.NewReader(picture)}, root.Size, err
}

func (m *machine) PinBlob(_ context.Context, p authz.Principal, cid string) (Root, error) {
	return m.own(p, cid)
}

func (m *machine) UnpinBlob(_ context.Context, p authz.Principal, cid, user string) (Root, error) {
	m.set(func(m *machine) { m.unpinned = append(m.unpinned, user) })
	return m.own(p, cid)
}

func (m *machine) VerifyBlobs(_ context.Context, _ authz.Principal, cid string, progress func(done, total int64)) (Verified, error) {
	progress(5, 5)
	return Verified{Blocks: 1, Bytes: 5}, nil
}

func (m *machine) CollectBlobs(context.Context, bool) (Collected, error) {
	return Collected{Blocks: 1}, nil
}

func (m *machine) StoreStat(context.Context) (StoreStat, error) { return StoreStat{Disk: 1}, nil }

// A fake machine keeps jobs in memory, and every one that it keeps is ann's.

func (m *machine) NewJob() lease.JobID { return "jabcdefghijklmno" }

func (m *machine) Keep(_ context.Context, p Posted) (Submitted, error) {
	m.set(func(m *machine) { m.kept = append(m.kept, p) })
	return Submitted{Job: p.Job, Project: p.Spec.Project, Tasks: 3, Waiting: true, Reason: "nobody leads"}, nil
}

func (m *machine) Kept(once *lease.Once) (Submitted, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.kept {
		if once != nil && p.Once != nil && *p.Once == *once {
			return Submitted{Job: p.Job, Project: p.Spec.Project, Tasks: 3, Waiting: true, Reason: "nobody leads", Replayed: true}, true, nil
		}
	}
	return Submitted{}, false, nil
}

func (m *machine) Holds(id lease.JobID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.kept, func(p Posted) bool { return p.Job == id })
}

func (m *machine) Waiting(p authz.Principal) (out []JobSummary) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.kept {
		if p.MaySee(k.Spec.Owner) {
			out = append(out, JobSummary{ID: k.Job, Name: k.Spec.Name, Owner: k.Spec.Owner, State: lease.JobQueued, Waiting: true, Reason: "nobody leads"})
		}
	}
	return out
}

func (m *machine) WaitingJob(p authz.Principal, id lease.JobID) (Job, <-chan struct{}, bool) {
	for _, j := range m.Waiting(p) {
		if j.ID == id {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.withdrawn == nil {
				m.withdrawn = make(chan struct{})
			}
			if m.cancelled {
				j.State, j.Waiting, j.Reason = lease.JobCancelled, false, "cancelled by "+p.User
			}
			return Job{JobSummary: j}, m.withdrawn, true
		}
	}
	return Job{}, nil, false
}

func (m *machine) Withdraw(_ context.Context, p authz.Principal, id lease.JobID) (JobSummary, error) {
	m.set(func(m *machine) {
		m.cancelled = true
		if m.withdrawn != nil {
			close(m.withdrawn)
		}
	})
	j, _, _ := m.WaitingJob(p, id)
	return j.JobSummary, nil
}

func (m *machine) Shown(token string) { m.set(func(m *machine) { m.shown = token }) }

func (m *machine) Identity() (authz.PeerID, authz.FarmID) {
	return authz.PeerID(m.host.ID().String()), "farm"
}

func (m *machine) Status(context.Context) Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.panics {
		panic("the status is broken")
	}
	return Status{Peer: authz.PeerID(m.host.ID().String()), Farm: "farm"}
}

func (m *machine) CA() []byte { return []byte("a certificate") }

func (m *machine) Ready(context.Context) []Check {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.checks
}

const onTCP, onQUIC = "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"

func newHost(t *testing.T, listen ...string) host.Host {
	if len(listen) == 0 {
		listen = []string{onTCP}
	}
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen...), libp2p.DisableRelay())
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// streamAddr is the address of a stream's other end.
type streamAddr peer.ID

func (streamAddr) Network() string  { return gostream.Network }
func (a streamAddr) String() string { return peer.ID(a).String() }

// newFarm starts n machines that know each other, the first of which leads.
func newFarm(t *testing.T, n int, cfg Config, listen ...string) (*farm, []*machine) {
	f, all := newMachines(t, n, cfg, listen...)
	for _, m := range all {
		m.start(t)
	}
	return f, all
}

// newMachines is newFarm without the start.
func newMachines(t *testing.T, n int, cfg Config, listen ...string) (*farm, []*machine) {
	f := &farm{}
	var all []*machine
	members := map[peer.ID]bool{}
	for range n {
		h := newHost(t, listen...)
		members[h.ID()] = true
		all = append(all, &machine{host: h, farm: f, tokens: farmTokens})
	}
	f.leader = all[0].host.ID()
	if cfg.Member == nil {
		cfg.Member = func(id peer.ID) bool { return members[id] }
	}
	// Tests ask faster than people, but for those that are about that.
	cfg.Requests, cfg.Logins = cmp.Or(cfg.Requests, 1_000_000), cmp.Or(cfg.Logins, 1_000_000)
	if cfg.Grace == 0 {
		cfg.Grace = time.Second
	}
	for _, m := range all {
		for _, o := range all {
			m.host.Peerstore().AddAddrs(o.host.ID(), o.host.Addrs(), peerstore.PermanentAddrTTL)
		}
		m.Server = New(cfg, m, m.farm, m, m.host)
	}
	return f, all
}

func (m *machine) start(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	require.NoError(t, err)
	m.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- m.Serve(ctx, l) }()
	go func() { ended <- m.ServePeers(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("serving: %v", err)
			}
		}
	})
	t.Cleanup(m.stop)
}

// reply is a whole answer.
type reply struct {
	*http.Response
	body []byte
}

func (r reply) problem(t *testing.T) Problem {
	t.Helper()
	var p Problem
	require.Equal(t, problemType, r.Header.Get("Content-Type"), "body: %s", r.body)
	require.NoError(t, json.Unmarshal(r.body, &p), "body: %s", r.body)
	require.Equal(t, r.StatusCode, p.Status)
	require.Equal(t, http.StatusText(r.StatusCode), p.Title)
	require.Equal(t, "about:blank", p.Type)
	return p
}

// do sends one request; header holds name, value pairs.
func (m *machine) do(t *testing.T, token, method, path string, body any, header ...string) reply {
	t.Helper()
	resp := m.open(t, token, method, path, body, header...)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return reply{resp, data}
}

func (m *machine) open(t *testing.T, token, method, path string, body any, header ...string) *http.Response {
	t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader = b
	default:
		data, err := json.Marshal(body)
		require.NoError(t, err)
		reader = bytes.NewReader(data)
		header = append([]string{"Content-Type", "application/json"}, header...)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, m.url+path, reader)
	require.NoError(t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := cmp.Or(m.transport, http.DefaultTransport.(*http.Transport)).RoundTrip(r)
	require.NoError(t, err)
	return resp
}
