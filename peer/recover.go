package peer

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/coord"
	"vizpeer/peer/cert"
)

// Errors of [Recover] and [Restore].
var (
	// ErrRecoveryFile says that the recovery file is of no use here.
	ErrRecoveryFile = errors.New("this recovery file does not help")
	// ErrNothingToRecover says that the queue is not lost.
	ErrNothingToRecover = errors.New("there is nothing to recover")
	// ErrEpoch says that the farm is, or may be, further on than what was asked for.
	ErrEpoch = errors.New("the farm is in a later epoch")
)

// Recovering is how a farm's next epoch begins.
type Recovering struct {
	Key   authz.FarmKey
	CA    []byte // the CA's key of the recovery file, if it holds one
	Epoch uint64 // 0: the one behind all that this machine knows of
	// Of a machine that is no member yet: its name, "" for the host's, and whether it does
	// not render.
	Name   string
	NoWork bool
}

// ReadRecovery reads what a recovery file holds.
func ReadRecovery(file []byte) (Recovering, error) {
	key, err := authz.DecodeRecovery(file)
	if err != nil {
		return Recovering{}, fmt.Errorf("%w: %w", ErrRecoveryFile, err)
	}
	return Recovering{Key: key, CA: authz.RecoveredCA(file)}, nil
}

// Recovered is what became of the farm.
type Recovered struct {
	Farm   authz.FarmID
	Name   string
	Peer   authz.PeerID
	Epoch  uint64
	At     time.Time      // the last word of the copy that it was made of; zero where not known
	Jobs   int            // that have not ended
	Voters []authz.PeerID // of the epoch that is over; none of a backup
	// New tells that the machine was no member of the farm before.
	New bool
}

// Recover begins the farm's next epoch on this machine, of its own copy of the queue, with
// this machine as the only voter. No peer may run here. It is for a farm whose voters, or
// most of them, are gone for good. It may be repeated until it succeeds.
func Recover(cfg Config, r Recovering) (out Recovered, err error) {
	cfg = cfg.withDefaults()
	d := dataDir(cfg.DataDir)
	m, err := d.admitted()
	if err != nil {
		return out, err
	}
	if m.Farm != r.Key.ID() {
		return out, fmt.Errorf("%w: it is of farm %s, and this machine is of %s", ErrRecoveryFile, r.Key.ID(), m.Farm)
	}
	h, err := d.heir(cfg, r)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, h.unlock()) }()
	out = Recovered{Farm: m.Farm, Peer: h.self}
	var charter authz.Charter
	var ca [][]byte
	_, err = coord.Succeed(coord.Config{Dir: d.path("queue"), Logger: cfg.Logger}, func(had coord.Holding, roster *authz.Roster) (coord.Succession, error) {
		if roster.Farm() != m.Farm {
			return coord.Succession{}, fmt.Errorf("the queue in %s is of farm %s, and this machine is of %s", d.path("queue"), roster.Farm(), m.Farm)
		}
		if had.SoleVoter(h.self) && !h.known.Supersedes(had.Charter) {
			return coord.Succession{}, fmt.Errorf("%w: this machine alone keeps the queue, in epoch %d: start it with `vizpeer up`", ErrNothingToRecover, had.Charter.Epoch)
		}
		if charter, err = h.charter(had.Charter); err != nil {
			return coord.Succession{}, err
		}
		out.Name, out.Epoch, out.At, out.Jobs, out.Voters, ca = roster.Name(), charter.Epoch, had.At, had.Jobs, had.Voters, roster.View().CA()
		return coord.Succession{
			Succession: authz.Succession{Charter: charter, Name: m.Name}, At: time.Now().UTC(),
			Deed: authz.Deed{Machine: h.self, Action: "recover", Object: string(m.Farm), Detail: fmt.Sprintf("epoch %d, after epoch %d", charter.Epoch, had.Charter.Epoch)},
		}, nil
	})
	switch {
	case errors.Is(err, coord.ErrNoQueue):
		return out, fmt.Errorf("%w: recover on a coordinator that does (`vizpeer invite --coordinator` makes one while the farm runs), or bring a backup back: `vizpeer restore FILE`", err)
	case errors.Is(err, coord.ErrInUse):
		return out, stopFirst(cfg.DataDir)
	case err != nil:
		return out, err
	}
	return out, h.settle(charter, ca)
}

// Restore begins the farm's next epoch on this machine, of a backup. The folder may be
// empty, or a member's; no peer may run in it. A queue that is there is kept aside.
func Restore(cfg Config, backup io.Reader, r Recovering) (out Recovered, err error) {
	cfg = cfg.withDefaults()
	d := dataDir(cfg.DataDir)
	m, err := d.admitted()
	switch {
	case errors.Is(err, ErrNotMember), errors.Is(err, ErrRemoved):
		if m.Name, err = machineName(cmp.Or(r.Name, m.Name)); err != nil {
			return out, err
		}
		if err := d.create(); err != nil {
			return out, err
		}
		m.NoWork, out.New = r.NoWork || cfg.NoWork, true
	case err != nil:
		return out, err
	}
	if m.Farm != "" && m.Farm != r.Key.ID() {
		return out, fmt.Errorf("%w: it is of farm %s, and this machine is of %s: use another --data-dir", ErrRecoveryFile, r.Key.ID(), m.Farm)
	}
	h, err := d.heir(cfg, r)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, h.unlock()) }()
	now := time.Now()
	token, key, err := authz.NewKey(rand.Reader, m.Name, authz.Node, now) // whose it is, the roster says
	if err != nil {
		return out, err
	}
	var charter authz.Charter
	var view *authz.View
	head, addrs, err := coord.Restore(coord.Config{Dir: d.path("queue"), Logger: cfg.Logger}, backup, func(head coord.BackupHead, had coord.Holding, roster *authz.Roster) (coord.Succession, error) {
		if head.Farm != r.Key.ID() {
			return coord.Succession{}, fmt.Errorf("%w: it is of farm %s, and the backup is of %s", ErrRecoveryFile, r.Key.ID(), head.Farm)
		}
		if r.Epoch == 0 && h.known.Supersedes(had.Charter) {
			return coord.Succession{}, fmt.Errorf("%w: the backup is of epoch %d, and this machine knows of epoch %d: take a later backup, or say --epoch %d to go back to this one all the same",
				ErrEpoch, had.Charter.Epoch, h.known.Epoch, h.known.Epoch+1)
		}
		if charter, err = h.charter(had.Charter); err != nil {
			return coord.Succession{}, err
		}
		s := coord.Succession{
			Succession: authz.Succession{Charter: charter, Name: m.Name, Worker: !m.NoWork, KeyID: key.ID, KeyHash: key.Hash}, At: now.UTC(),
			Deed: authz.Deed{Machine: h.self, Action: "restore", Object: string(head.Farm),
				Detail: fmt.Sprintf("epoch %d, after epoch %d, of a backup of %s", charter.Epoch, had.Charter.Epoch, head.At.UTC().Format(time.RFC3339))},
		}
		// What comes of it is written to this machine's folder, too.
		after, err := rehearse(roster, s)
		if err != nil {
			return coord.Succession{}, err
		}
		view = after.View()
		out = Recovered{Farm: head.Farm, Name: head.Name, Peer: h.self, Epoch: charter.Epoch, At: head.At, Jobs: had.Jobs, New: out.New}
		return s, nil
	})
	if err != nil {
		return out, err
	}
	// membership.json makes the folder a farm's: it comes last.
	for id, at := range d.addrs() {
		addrs[id] = at
	}
	err = errors.Join(
		h.settle(charter, view.CA()),
		d.write("token", []byte(token+"\n"), 0o600),
		d.writeJSON("addrs.json", addrs, 0o600),
		d.writeJSON("roster.json", view, 0o600),
		d.writeCA(view),
	)
	if err != nil {
		return out, err
	}
	return out, d.writeJSON("membership.json", membership{Farm: head.Farm, Name: m.Name, NoWork: m.NoWork}, 0o600)
}

// rehearse is what a succession makes of a roster.
func rehearse(r *authz.Roster, s coord.Succession) (*authz.Roster, error) {
	pipe, to := io.Pipe()
	go func() { to.CloseWithError(r.Snapshot(to)) }()
	after, err := authz.Restore(pipe)
	_ = pipe.Close()
	if err != nil {
		return nil, err
	}
	return after, after.Succeed(s.At, s.Succession)
}

// heir is this machine while it begins the farm's next epoch; no peer can be started
// here meanwhile.
type heir struct {
	dir    dataDir
	self   authz.PeerID
	known  authz.Charter // the latest that this machine has seen
	r      Recovering
	unlock func() error
}

func (d dataDir) heir(cfg Config, r Recovering) (*heir, error) {
	identity, err := d.identity()
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(identity)
	if err != nil {
		return nil, err
	}
	h := &heir{dir: d, self: peerOf(id), r: r}
	farm := r.Key.ID()
	if h.known, err = d.charter(farm); err != nil {
		return nil, err
	}
	// A roster that is of no use to a peer is of none here.
	if v, err := d.roster(farm); err == nil && v != nil && v.Charter().Supersedes(h.known) {
		h.known = v.Charter()
	}
	lock, err := blobs.Open(d.path("store"), blobs.Config{Quota: cfg.Quota, High: cfg.High, Low: cfg.Low, MinFree: cfg.MinFree, Logger: cfg.Logger})
	if err != nil && strings.Contains(err.Error(), "acquire directory lock") {
		return nil, stopFirst(cfg.DataDir)
	}
	if err != nil {
		return nil, fmt.Errorf("open the content store: %w", err)
	}
	h.unlock = lock.Close
	return h, nil
}

func stopFirst(folder string) error {
	return fmt.Errorf("%w: stop it first: end `vizpeer up`, or `vizpeer service stop` (data folder %s)", ErrRunning, folder)
}

// charter is the next epoch's, behind all that is known.
func (h *heir) charter(had authz.Charter) (authz.Charter, error) {
	last := max(had.Epoch, h.known.Epoch)
	epoch := h.r.Epoch
	switch {
	case epoch == 0:
		epoch = last + 1
	case epoch <= last:
		return authz.Charter{}, fmt.Errorf("%w: this machine knows of epoch %d: --epoch must be higher", ErrEpoch, last)
	}
	return h.r.Key.SignCharter(h.self, epoch), nil
}

// settle writes down what this machine has become beside the queue. What is lost of it
// by a power cut comes again: the charter is the queue's, too, and so does the CA's part
// where another coordinator lives.
func (h *heir) settle(c authz.Charter, roots [][]byte) error {
	err := h.dir.writeJSON(charterFile, c, 0o600)
	if h.r.CA == nil || len(roots) == 0 {
		return err
	}
	if _, missing := os.Stat(h.dir.path(caKeyFile)); !errors.Is(missing, fs.ErrNotExist) {
		return err // it has its part of the CA
	}
	part, caErr := certifiedBy(h.r.CA, roots, "vizpeer "+h.self.Short())
	if caErr != nil {
		return errors.Join(err, fmt.Errorf("this coordinator's part of the farm's CA: %w", caErr))
	}
	return errors.Join(err, h.dir.write(caKeyFile, part, 0o600))
}

// certifiedBy makes a coordinator's part of the CA with the root's key, which stays in
// the recovery file.
func certifiedBy(rootKey []byte, roots [][]byte, name string) ([]byte, error) {
	now := time.Now()
	root, err := cert.Recovered(rootKey, roots, now)
	if err != nil {
		return nil, err
	}
	key, err := cert.NewKey()
	if err != nil {
		return nil, err
	}
	request, err := cert.Request(key, nil)
	if err != nil {
		return nil, err
	}
	parsed, _, err := cert.ParseRequest(request)
	if err != nil {
		return nil, err
	}
	chain, err := root.SignCA(parsed, name, now)
	if err != nil {
		return nil, err
	}
	a, err := cert.NewAuthority(key, chain, roots, now)
	if err != nil {
		return nil, err
	}
	return a.Encode()
}
