package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/cert"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// local is this machine's side of the HTTP API.
type local struct{ *Peer }

var _ httpapi.Local = local{}

// minFree is the free disk, in bytes, below which a machine takes nothing new.
const minFree = httpapi.MinDisk

// maxManifest bounds a project's manifest, in bytes.
const maxManifest = 8 << 20

// Authenticate knows the keys of the roster that this machine goes by.
func (l local) Authenticate(_ context.Context, token string) (authz.Principal, error) {
	v := l.gate.view()
	if v == nil {
		return authz.Principal{}, fmt.Errorf("%w: this machine has not seen the farm's roster yet", httpapi.ErrUnauthorised)
	}
	p, err := v.Authenticate(token, time.Now())
	if err != nil {
		return authz.Principal{}, fmt.Errorf("%w: %w", httpapi.ErrUnauthorised, err)
	}
	return p, nil
}

// ImportProject stores an upload as it comes. Nothing of it touches the disk
// but the content store.
func (l local) ImportProject(ctx context.Context, p authz.Principal, files iter.Seq2[httpapi.ProjectFile, error]) (httpapi.Project, error) {
	tree := l.store.NewTree()
	defer tree.Abort()
	_, receipts, err := l.take(ctx, p, tree, files)
	if err != nil {
		return httpapi.Project{}, err
	}
	root, sum, err := tree.Commit(ctx)
	if err != nil {
		return httpapi.Project{}, err
	}
	// The pin keeps the upload from being collected until a job holds it, and tells
	// whose it is.
	if err := l.store.Pin(ctx, root, uploadPin(p.User)); err != nil {
		return httpapi.Project{}, err
	}
	m, version, err := l.project(ctx, root)
	if err != nil {
		return httpapi.Project{}, err
	}
	return httpapi.Project{
		Project: root.String(), Files: sum.Files, Size: sum.Bytes, NewBytes: sum.NewBytes, Missing: m.Missing, FileVersion: version,
		Receipts: receipts,
	}, nil
}

// project reads the manifest of a project and the version of its .blend.
func (l local) project(ctx context.Context, root cid.Cid) (render.Manifest, lease.Version, error) {
	var m render.Manifest
	var none lease.Version
	bad := func(format string, args ...any) (render.Manifest, lease.Version, error) {
		return m, none, fmt.Errorf("%w: the project %w", httpapi.ErrInvalid, fmt.Errorf(format, args...))
	}
	c, err := l.store.Lookup(ctx, root, render.ManifestName)
	if err != nil {
		return bad("has no %s: upload it with `vizpeer render` or the add-on", render.ManifestName)
	}
	r, size, err := l.store.OpenFile(ctx, c)
	if err != nil {
		return m, none, err
	}
	defer r.Close()
	if size > maxManifest {
		return bad("has a manifest of %d bytes, more than the %d allowed", size, maxManifest)
	}
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		return bad("has a manifest that cannot be read: %w", err)
	}
	if m.Version != 1 {
		return bad("has a manifest of version %d, this vizpeer reads 1", m.Version)
	}
	if blobs.CheckPath(m.Blend) != nil || !strings.HasPrefix(m.Blend, "files/") {
		return bad("names its .blend %q, which is no path below files/", m.Blend)
	}
	if c, err = l.store.Lookup(ctx, root, m.Blend); err != nil {
		return bad("lacks its .blend, %s", m.Blend)
	}
	blend, _, err := l.store.OpenFile(ctx, c)
	if err != nil {
		return bad("has no file at %s: %w", m.Blend, err)
	}
	defer blend.Close()
	version, err := render.Header(blend)
	if err != nil {
		return bad("has a file that is not a .blend, %s: %w", path.Base(m.Blend), err)
	}
	return m, version, nil
}

// mayUse tells whether p may render a project by naming it: whoever sees a render
// sees what is in the project. It must have been uploaded, or kept, here by p.
func (l local) mayUse(ctx context.Context, p authz.Principal, root cid.Cid) (ok bool, err error) {
	for pin, err := range l.store.Pins(ctx) {
		if err != nil {
			return false, err
		}
		if pin.Root == root && (pin.Holder == uploadPin(p.User) || pin.Holder == userPin(p.User)) {
			ok = true
		}
	}
	return ok || p.Role == authz.Admin, nil
}

// Prepare turns a submission into a spec for the queue.
func (l local) Prepare(ctx context.Context, p authz.Principal, s httpapi.Submission) (lease.Spec, httpapi.Findings, error) {
	var none httpapi.Findings
	invalid := func(format string, args ...any) (lease.Spec, httpapi.Findings, error) {
		return lease.Spec{}, none, fmt.Errorf("%w: %w", httpapi.ErrInvalid, fmt.Errorf(format, args...))
	}
	root, err := blobs.ParseCID(s.Project)
	if err != nil {
		return invalid("the project: %w", err)
	}
	// Another's project looks like one that is not here.
	may, err := l.mayUse(ctx, p, root)
	if err == nil && may {
		may, err = l.store.Has(ctx, root)
	}
	if err != nil {
		return lease.Spec{}, none, err
	}
	if !may {
		return invalid("this machine does not hold the project %s: upload it first", s.Project)
	}
	m, version, err := l.project(ctx, root)
	if err != nil {
		return lease.Spec{}, none, err
	}
	if s.Strict && len(m.Missing) > 0 {
		return invalid("%d files are missing, the first is %s", len(m.Missing), m.Missing[0])
	}
	spec := lease.Spec{
		Name: s.Name, Project: s.Project, Blend: m.Blend, Chunk: s.Chunk, Tier: s.Priority, Order: s.Order, After: s.After, Needs: s.Needs, Settings: s.Settings,
		Movie: s.Movie, Replicas: s.Replicas, Output: lease.Output{Dir: s.Output}, TaskTimeout: time.Duration(s.TaskTimeout * float64(time.Second)),
	}
	if spec.Name == "" {
		spec.Name = strings.TrimSuffix(path.Base(m.Blend), ".blend")
	}
	if spec.Tier == "" {
		spec.Tier = lease.Normal
	}
	if spec.Replicas == 0 {
		spec.Replicas = lease.DefaultReplica
	}
	spec.Needs.FileVersion = version
	size, err := l.store.Size(ctx, root)
	if err != nil {
		return lease.Spec{}, none, err
	}
	// A worker holds the project twice: as blocks, and unpacked for Blender.
	spec.Needs.Disk, spec.Needs.Store = 2*size.Bytes+minFree, size.Bytes
	// The file's own engine is asked for only where Blender does not bring it: the
	// names of the others change from release to release, and Blender adapts.
	if spec.Needs.Engine = spec.Settings.Engine; spec.Needs.Engine == "" && !strings.HasPrefix(m.Scene.Engine, "BLENDER_") {
		spec.Needs.Engine = m.Scene.Engine
	}
	spec.Needs.Denoise = m.Scene.Denoise(spec.Settings)
	switch {
	case s.Frames != "":
		if spec.Frames, err = lease.ParseFrames(s.Frames); err != nil {
			return invalid("%w", err)
		}
	case m.Scene == (render.Scene{}):
		return invalid("no Blender looked into the file, so its frame range is not known: say which frames to render")
	default:
		spec.Frames = lease.Frames{{First: m.Scene.FrameStart, Last: m.Scene.FrameEnd, Step: max(1, m.Scene.FrameStep)}}
	}
	wish, err := lease.ParseWish(string(s.Split), s.Tiles)
	if err != nil {
		return invalid("%w", err)
	}
	choice, err := lease.Choose(wish, spec, m.Scene.PictureFor(spec.Settings))
	if err != nil {
		return invalid("%w", err)
	}
	spec.Split = choice.Split
	found := httpapi.Findings{Missing: m.Missing, Whole: choice.Whole}
	if choice.Warning != "" {
		found.Warnings = append(found.Warnings, choice.Warning)
	}
	if s.Output != "" {
		if err := checkOutput(s.Output, l.dir); err != nil {
			return invalid("%w", err)
		}
	}
	return spec, found, nil
}

// Open reads a frame or a log, from wherever in the farm it is.
func (l local) Open(ctx context.Context, text string, by lease.Scope, size int64) (io.ReadSeekCloser, int64, error) {
	c, err := l.bringSoon(ctx, text, by, size)
	if err != nil {
		return nil, 0, err
	}
	return l.store.OpenFile(ctx, c)
}

// OpenFolder reads what is beside a frame, likewise.
func (l local) OpenFolder(ctx context.Context, text string, by lease.Scope) (iter.Seq2[httpapi.ProjectFile, error], error) {
	c, err := l.bringSoon(ctx, text, by, 0)
	if err != nil {
		return nil, err
	}
	return l.files(ctx, c), nil
}

// bringSoon brings here what somebody waits for. size is as for Open.
func (l local) bringSoon(ctx context.Context, text string, by lease.Scope, size int64) (cid.Cid, error) {
	c, err := blobs.ParseCID(text)
	if err != nil {
		return cid.Undef, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return c, l.bring(ctx, c, by, size, nil)
}

// everybody lists all members, with where they were last seen.
func (p *Peer) everybody() []peer.AddrInfo {
	var out []peer.AddrInfo
	if v := p.gate.view(); v != nil {
		for _, m := range v.Members() {
			if id, err := peer.Decode(string(m.ID)); err == nil && id != p.host.ID() {
				out = append(out, p.host.Peerstore().PeerInfo(id))
			}
		}
	}
	return out
}

// members lists the machines that this one is connected with and may ask.
func (p *Peer) members() []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, id := range p.host.Network().Peers() {
		if p.gate.member(id) {
			out = append(out, peer.AddrInfo{ID: id})
		}
	}
	return out
}

// Identity is this machine's ID and its farm's.
func (l local) Identity() (authz.PeerID, authz.FarmID) { return l.self, l.farm }

// CA is what ca.crt holds.
func (l local) CA() []byte {
	if v := l.gate.view(); v != nil {
		return cert.Bundle(v.CA())
	}
	return nil
}

// Status tells what this machine is and does.
func (l local) Status(ctx context.Context) httpapi.Status {
	s := httpapi.Status{
		Peer: l.self, Name: l.name, Farm: string(l.farm), Version: l.cfg.Version, Roles: []string{},
		Connected: len(l.members()), Addrs: texts(l.host.Addrs()), Running: []httpapi.RunningTask{}, Capability: l.can(),
		Unkept: l.worker.results.frames(), Waiting: l.outbox.Count(),
	}
	s.Epoch = l.Epoch()
	s.Reach = l.reach.state()
	s.ClockSkew = l.link.Clock().skew(time.Now()).Seconds()
	if leaf := l.certs.listener.Leaf(); leaf != nil {
		s.CertificateUntil = leaf.Until()
	}
	for _, at := range l.https {
		s.HTTPS = append(s.HTTPS, httpsURL(at))
	}
	if v := l.gate.view(); v != nil {
		s.FarmName, s.CA = v.Name(), fingerprints(v.CA())
		if m, ok := v.Member(l.self); ok {
			s.Roles = m.RoleNames()
		}
	}
	if leader := l.link.Current(); leader != "" {
		s.Leader = authz.PeerID(leader.String())
		s.LeaderVia = l.reach.via(s.Leader)
	}
	s.Leaderless = l.leaderless()
	l.worker.mu.Lock()
	for _, a := range l.worker.attempts {
		s.Running = append(s.Running, httpapi.RunningTask{Job: a.order.Task.Job, Task: a.order.Task.Index, Device: a.order.Device, Progress: a.progress})
	}
	l.worker.mu.Unlock()
	s.Store.Free = s.Capability.FreeDisk
	if st, err := l.store.Stat(ctx); err == nil {
		s.Store.Bytes, s.Store.Quota = st.Disk, st.Quota
	}
	s.Full = httpapi.Full(&s.Capability)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if p, drained, err := l.link.Parting(ctx); err == nil {
		if s.Waiting > 0 {
			p.Safe = false
			p.Reasons = append(p.Reasons, lease.Reason{Kind: lease.ReasonWaiting, Count: s.Waiting, Grave: true, Text: "it alone has " + plural(s.Waiting, "job") + " to submit"})
		}
		s.Parting, s.Drained = &p, drained
	}
	return s
}

// electionTime is longer than the coordinators take to elect another leader, and a
// machine to find that one.
const electionTime = 5 * time.Second

// finder finds the leader for the HTTP API.
type finder struct{ *Peer }

func (f finder) Find(ctx context.Context) (peer.ID, bool, error) {
	if f.coord != nil && f.coord.Leading() {
		return f.host.ID(), true, nil
	}
	if since, lost := f.link.Lost(); lost && time.Since(since) > electionTime {
		// No election takes so long: who asks should hear of it soon.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, electionTime/20)
		defer cancel()
	}
	id, err := f.link.Leader(ctx)
	if err != nil {
		if now := f.leaderless(); now != nil {
			return "", false, fmt.Errorf("%w%s", httpapi.ErrNoLeader, strings.TrimPrefix(now.Text, httpapi.ErrNoLeader.Error()))
		}
		return "", false, fmt.Errorf("%w: try again", httpapi.ErrNoLeader) // one has just been found
	}
	return id, id == f.host.ID(), nil
}

func (f finder) While(ctx context.Context, id peer.ID) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	// What id itself said may be newer than what this machine knows.
	first := f.link.Current()
	go func() {
		for {
			leader, changed := f.link.Watch()
			if leader != "" && leader != id && leader != first {
				cancel(errSuperseded)
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}
