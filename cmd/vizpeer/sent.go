package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vizpeer/authz"
)

// stamp tells whether a file is the one that was read before, without reading it.
type stamp struct {
	Size     int64  `json:"size"`
	Modified int64  `json:"mtime"` // ns since 1970
	Changed  int64  `json:"ctime"` // of anything about it; no program can set it back
	Device   uint64 `json:"dev"`
	Inode    uint64 `json:"ino"`
}

// settled is how old a file's times must be when it is read: a clock that ticks
// in steps, of two seconds on FAT, would not tell a later change.
const settled = 2 * time.Second

// settledAt tells whether every change after the time read would change the stamp.
func (s stamp) settledAt(read time.Time) bool {
	return max(s.Modified, s.Changed) < read.Add(-settled).UnixNano()
}

// Bounds of the index: about 350 bytes a file.
const (
	maxSent      = 100_000
	maxSentBytes = 64 << 20
)

// sentFiles remembers which files of this machine a peer was sent, and its
// receipts for them, so that what has not changed is neither read nor sent again.
// It is the user's own file in the user's cache: the peer, which others on this
// machine talk to as well, never learns the paths. Whatever is wrong with it, it
// is only ignored: files are read again. A nil one remembers nothing.
type sentFiles struct {
	path  string
	peer  string
	files map[string]sentFile // by the peer's ID and the absolute path, with a space between
	fresh map[string]sentFile // what this run added or used
}

type sentFile struct {
	stamp
	Receipt string `json:"receipt"`
	Used    int64  `json:"used"` // seconds since 1970
}

type sentDocument struct {
	Version int                 `json:"version"`
	Files   map[string]sentFile `json:"files"`
}

// openSent reads what the peer of that ID was sent by this user.
func openSent(id authz.PeerID) *sentFiles {
	cache, err := os.UserCacheDir()
	if err != nil || id == "" {
		return nil
	}
	s := &sentFiles{path: filepath.Join(cache, "vizpeer", "sent.json"), peer: string(id), fresh: make(map[string]sentFile)}
	s.files = s.read()
	return s
}

func (s *sentFiles) read() map[string]sentFile {
	doc := sentDocument{}
	if f, err := os.Open(s.path); err == nil {
		defer f.Close()
		if json.NewDecoder(io.LimitReader(f, maxSentBytes)).Decode(&doc) != nil || doc.Version != 1 {
			doc = sentDocument{}
		}
	}
	if doc.Files == nil {
		doc.Files = make(map[string]sentFile)
	}
	return doc.Files
}

// receipt is what the peer gave for the file at path as it is now; "" where it was
// not sent, or has changed since.
func (s *sentFiles) receipt(path string, now stamp) string {
	if s == nil {
		return ""
	}
	key := s.peer + " " + path
	f, ok := s.files[key]
	if !ok || f.stamp != now {
		return ""
	}
	f.Used = time.Now().Unix()
	s.fresh[key] = f
	return f.Receipt
}

// add remembers a file that was sent: it had that stamp before and after it was
// read, which began at the given time.
func (s *sentFiles) add(path string, is stamp, read time.Time, receipt string) {
	if s != nil && receipt != "" && is.settledAt(read) {
		s.fresh[s.peer+" "+path] = sentFile{is, receipt, time.Now().Unix()}
	}
}

// save writes the index for the next time. Another run may have written its own
// meanwhile: what both know, this one knows later.
func (s *sentFiles) save() error {
	if s == nil || len(s.fresh) == 0 {
		return nil
	}
	all := s.read()
	maps.Copy(all, s.fresh)
	if extra := len(all) - maxSent; extra > 0 {
		oldest := slices.SortedFunc(maps.Keys(all), func(a, b string) int { return cmp.Compare(all[a].Used, all[b].Used) })
		for _, key := range oldest[:extra] {
			delete(all, key)
		}
	}
	text, err := json.Marshal(sentDocument{1, all})
	if err != nil {
		return err
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".sent-*") // readable by its owner alone
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.path)
	}
	if err != nil {
		err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
