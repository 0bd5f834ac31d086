package coord

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/libp2p/go-libp2p/core/protocol"

	"vizpeer/authz"
)

// Each of a farm's epochs has a log of its own, in a folder of its own, and coordinators
// of different epochs share no protocol: nothing of a log that was given up can come into
// the one that took its place. epochFile, in the folder, is the charter of the epoch; the
// first epoch's folder has none.
//
// A folder takes another's place in two steps, so that a machine that is switched off
// between them finds at its next start what there is to finish: what is complete is
// named next, then the old one is named for its epoch, and next takes the name of it.
const (
	epochFile = "epoch.json"

	nextSuffix  = ".next"
	asideFormat = "%s.epoch-%d"
)

// charterOf is the charter of the epoch that the folder is of: the zero one for the
// first epoch, or where there is no folder.
func charterOf(dir string) (c authz.Charter, err error) {
	b, err := os.ReadFile(filepath.Join(dir, epochFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil {
		err = c.Verify(c.ID())
	}
	if err != nil {
		return authz.Charter{}, fmt.Errorf("reading which epoch the queue is of: %s: %w", filepath.Join(dir, epochFile), err)
	}
	return c, nil
}

// raftProtocol is what the coordinators of an epoch speak. The first one's has no suffix.
func raftProtocol(c authz.Charter) protocol.ID {
	if c.Epoch <= 1 {
		return RaftProtocol
	}
	return protocol.ID(fmt.Sprintf("%s/%d-%s", RaftProtocol, c.Epoch, c.Coordinator))
}

// enterEpoch makes dir the folder of the epoch that known, the latest charter that the
// machine has seen, begins, unless it is of that or of a later one. A folder of an
// earlier one is kept aside; its name is the answer, "" where there was none.
func enterEpoch(dir string, known authz.Charter) (aside string, err error) {
	if aside, err = finishSwap(dir); err != nil {
		return "", err
	}
	have, err := charterOf(dir)
	if err != nil {
		return "", err
	}
	if known.Epoch <= 1 || !known.Supersedes(have) {
		return aside, nil
	}
	if err := prepare(dir, func(string) (authz.Charter, error) { return known, nil }); err != nil {
		return "", err
	}
	return finishSwap(dir)
}

// prepare makes the folder of an epoch, which fill fills and whose charter it answers, and
// names it next to dir when it is complete and on disk.
func prepare(dir string, fill func(tmp string) (authz.Charter, error)) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("making the queue's folder: %w", err)
	}
	tmp := dir + ".tmp" // what an earlier try has left is of no use
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("making the queue's folder: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("making the queue's folder: %w", err)
	}
	c, err := fill(tmp)
	if err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(tmp, epochFile), b); err != nil {
		return fmt.Errorf("making the queue's folder: %w", err)
	}
	err = errors.Join(syncFolder(tmp), os.Rename(tmp, dir+nextSuffix), syncFolder(filepath.Dir(dir)))
	if err != nil {
		return fmt.Errorf("making the queue's folder: %w", err)
	}
	return nil
}

// finishSwap has the folder that is next take dir's place, if there is one. It answers
// where what was in dir is kept.
func finishSwap(dir string) (aside string, err error) {
	if _, err := os.Stat(dir + nextSuffix); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("looking for the queue's next folder: %w", err)
	}
	if _, err := os.Stat(dir); err == nil {
		have, err := charterOf(dir)
		if err != nil {
			have = authz.Charter{} // its name says less then
		}
		aside = fmt.Sprintf(asideFormat, dir, max(1, have.Epoch))
		for n := 2; ; n++ {
			if _, err := os.Stat(aside); errors.Is(err, fs.ErrNotExist) {
				break
			}
			aside = fmt.Sprintf(asideFormat+".%d", dir, max(1, have.Epoch), n)
		}
		if err := os.Rename(dir, aside); err != nil {
			return "", fmt.Errorf("keeping the queue's old folder aside: %w", err)
		}
	}
	if err := errors.Join(os.Rename(dir+nextSuffix, dir), syncFolder(filepath.Dir(dir))); err != nil {
		return aside, fmt.Errorf("putting the queue's new folder in place: %w", err)
	}
	return aside, nil
}

// writeSynced writes a file and returns when it is on disk.
func writeSynced(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncFolder makes the names in a folder last. Windows has no such thing.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
