package peer

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"

	"vizpeer/authz"
)

// dataDir is the folder that holds all a peer knows:
//
//	identity.key     this machine's private key; its peer ID follows from it
//	membership.json  the farm, and what this machine is in it
//	roster.json      the latest roster that it has seen
//	addrs.json       where it last reached other members
//	charter.json     the farm's latest charter, where it is of a later epoch than the first
//	genesis.json     on the founder: the first entry of the farm's log
//	farm.recovery    on the founder: the farm's key and its CA's
//	ca.crt           the certificates of the farm's CA, for whoever calls over HTTPS
//	ca.key           on a coordinator: its key of the CA, and the chain that it is certified by
//	https.key        the key and the certificate of this machine's HTTPS listener
//	token            this machine's API key; the command line and the add-on read it
//	scrub.json       when the store was last read through
//	receipts.key     what proves that a receipt for an upload is this machine's
//	api              the address of the running peer's HTTP API
//	queue/           a coordinator's log
//	queue.epoch-N/   one that it kept of an epoch that is over
//	store/           the content store
//	work/            projects and attempts under way; emptied at every start
//	blenders/        Blenders that came from the farm, by CID
//	outbox/          jobs that wait for somebody to lead the queue
//	results/         finished frames that nobody else may hold yet
type dataDir string

// RecoveryFile is the name, in the founder's folder, of the file with the farm's key and
// its CA's, until somebody moves it to a safe place.
const RecoveryFile = "farm.recovery"

// ErrNotMember says that this folder belongs to no farm yet.
var ErrNotMember = errors.New("this machine belongs to no farm yet: run `vizpeer init` to found one or `vizpeer join TICKET` to join one")

// ErrMember says that it does already.
var ErrMember = errors.New("this machine belongs to a farm already")

// membership is what a machine knows of its own place in the farm.
type membership struct {
	Farm   authz.FarmID `json:"farm"`
	Name   string       `json:"name"`
	NoWork bool         `json:"no_work,omitempty"`
	// Removed is why the farm has removed it, in words.
	Removed string `json:"removed,omitempty"`
}

func (d dataDir) path(name ...string) string {
	return filepath.Join(append([]string{string(d)}, name...)...)
}

// create makes the folder, readable by its owner alone.
func (d dataDir) create() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w; choose another with --data-dir", err)
	}
	return nil
}

// write replaces a file whole, so that a power cut leaves the old or the new.
func (d dataDir) write(name string, content []byte, perm fs.FileMode) error {
	f, err := os.CreateTemp(string(d), "."+name+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(f.Name(), d.path(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (d dataDir) writeJSON(name string, v any, perm fs.FileMode) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return d.write(name, append(b, '\n'), perm)
}

// readJSON reads a file that writeJSON wrote. A missing one is fs.ErrNotExist.
func (d dataDir) readJSON(name string, v any) error {
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is damaged: %w; restore it from a backup, or join again with another --data-dir", d.path(name), err)
	}
	return nil
}

// sync makes the names of the files in the folder last, too. Windows has no such thing.
func (d dataDir) sync() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// membership reads what this machine is, or ErrNotMember.
func (d dataDir) membership() (membership, error) {
	var m membership
	err := d.readJSON("membership.json", &m)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w (data folder %s)", ErrNotMember, string(d))
	}
	return m, err
}

// admitted is membership for a machine that may run: it fails with [ErrRemoved] where
// the farm has removed it.
func (d dataDir) admitted() (membership, error) {
	m, err := d.membership()
	if err == nil && m.Removed != "" {
		err = removedError(string(m.Farm), m.Removed)
	}
	return m, err
}

// identity reads the machine's private key, making one on first use.
func (d dataDir) identity() (crypto.PrivKey, error) {
	b, err := os.ReadFile(d.path("identity.key"))
	if err == nil {
		key, err := crypto.UnmarshalPrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: %w; restore it from a backup, or join again with another --data-dir", d.path("identity.key"), err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	if b, err = crypto.MarshalPrivateKey(key); err != nil {
		return nil, err
	}
	return key, d.write("identity.key", b, 0o600)
}

// roster reads the latest view, or nil where there is none yet.
func (d dataDir) roster(farm authz.FarmID) (*authz.View, error) {
	b, err := os.ReadFile(d.path("roster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := authz.ParseView(b, farm)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", d.path("roster.json"), err)
	}
	return v, nil
}

// genesis reads the farm's first entry, or nil on a machine that did not found
// it.
func (d dataDir) genesis() (*authz.Command, error) {
	var c authz.Command
	err := d.readJSON("genesis.json", &c)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &c, err
}

// addrs reads where other members were last reached.
func (d dataDir) addrs() map[authz.PeerID][]string {
	known := make(map[authz.PeerID][]string)
	_ = d.readJSON("addrs.json", &known) // a hint: lost, it is learnt again
	return known
}

// ownToken is what the machine's token file holds, "" where that cannot be read.
func (d dataDir) ownToken() string {
	b, err := os.ReadFile(filepath.Join(string(d), "token"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
