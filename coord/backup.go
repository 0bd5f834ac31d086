package coord

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	stdhash "hash"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"vizpeer/authz"
	"vizpeer/lease"
)

// A backup is a gzipped tar, so that anybody can look into it:
//
//	backup.json      a [BackupHead]
//	queue            a snapshot of the queue, the roster and the end of the audit
//	audit/N.jsonl    the audit's records up to there, in files as the ledger has them
//	addrs.json       where members were reached last
//	SHA256           over all that is before it, in hex
//
// It holds no secret that could be used: see package authz. The hashes of passwords are
// in it, which somebody with time may guess at.
const (
	backupFormat = 1
	backupHead   = "backup.json"
	backupQueue  = "queue"
	backupAudit  = "audit/"
	backupAddrs  = "addrs.json"
	backupSum    = "SHA256"

	maxBackupText  = 64 << 20                // bytes of each of the JSON files
	maxBackupPage  = pageRecords * maxRecord // and of a page of the audit
	maxBackupQueue = 32 << 30                // and of the queue
	maxBackupPages = 1 << 20
)

// ErrBackup is wrapped by every reason why a backup cannot be used.
var ErrBackup = errors.New("this backup cannot be used")

// BackupHead says what a backup is of.
type BackupHead struct {
	Format  int           `json:"format"`
	Farm    authz.FarmID  `json:"farm"`
	Name    string        `json:"name"` // the farm's
	Charter authz.Charter `json:"charter"`
	Index   uint64        `json:"index"` // of the last entry that is in it
	Term    uint64        `json:"term"`
	At      time.Time     `json:"at"`
	By      authz.PeerID  `json:"by"`                // the coordinator that made it
	Version string        `json:"version,omitempty"` // of its vizpeer
	Records uint64        `json:"records"`           // of the audit
}

// Backup writes a backup of all that this machine has applied, while it goes on. It may
// lag behind where it does not lead.
func (c *Coordinator) Backup(ctx context.Context, to io.Writer, version string, addrs map[authz.PeerID][]string) (BackupHead, error) {
	return c.log().backup(ctx, to, version, addrs)
}

func (l *Log) backup(ctx context.Context, to io.Writer, version string, addrs map[authz.PeerID][]string) (head BackupHead, err error) {
	if err := l.Snapshot(ctx); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return head, fmt.Errorf("taking a snapshot of the queue: %w", err)
	}
	list, err := l.storage.snapshots.List()
	if err != nil || len(list) == 0 {
		return head, errors.Join(ErrNoQueue, err)
	}
	end, err := l.snapshotEnd(list[0].ID)
	if err != nil {
		return head, err
	}
	meta, in, err := l.storage.snapshots.Open(list[0].ID)
	if err != nil {
		return head, fmt.Errorf("opening the queue's snapshot: %w", err)
	}
	defer in.Close()
	head = BackupHead{
		Format: backupFormat, Index: meta.Index, Term: meta.Term, At: time.Now().UTC().Round(time.Second),
		By: authz.PeerID(l.self.String()), Version: version, Records: end.Seq,
	}
	l.Read(func(_ *lease.State, r *authz.Roster) {
		head.Farm, head.Name, head.Charter = r.Farm(), r.Name(), r.Charter()
	})
	w := newBackupWriter(to)
	if err := w.json(backupHead, head); err != nil {
		return head, err
	}
	if err := w.file(backupQueue, meta.Size, in); err != nil {
		return head, err
	}
	for _, p := range l.fsm.ledger.list() {
		if err := ctx.Err(); err != nil {
			return head, context.Cause(ctx)
		}
		if p.first > end.Seq {
			break
		}
		records, err := l.fsm.ledger.read(p)
		var altered *authz.Fault
		if err != nil && !errors.As(err, &altered) {
			return head, err
		}
		for len(records) > 0 && records[len(records)-1].Seq > end.Seq {
			records = records[:len(records)-1]
		}
		lines, err := encodeLines(records)
		if err != nil {
			return head, err
		}
		if err := w.file(fmt.Sprintf("%s%016d%s", backupAudit, p.first, pageSuffix), int64(len(lines)), bytes.NewReader(lines)); err != nil {
			return head, err
		}
	}
	if err := w.json(backupAddrs, addrs); err != nil {
		return head, err
	}
	return head, w.close()
}

// snapshotEnd is the last record of the audit that is on disk for a snapshot.
func (l *Log) snapshotEnd(id string) (authz.Mark, error) {
	_, in, err := l.storage.snapshots.Open(id)
	if err != nil {
		return authz.Mark{}, fmt.Errorf("opening the queue's snapshot: %w", err)
	}
	defer in.Close()
	end, err := readEnd(bufio.NewReader(in))
	return end.Stored, err
}

// backupWriter writes the files of a backup, and what their sum is.
type backupWriter struct {
	gzip *gzip.Writer
	tar  *tar.Writer
	sum  stdhash.Hash
}

func newBackupWriter(to io.Writer) *backupWriter {
	z := gzip.NewWriter(to)
	return &backupWriter{gzip: z, tar: tar.NewWriter(z), sum: sha256.New()}
}

func (w *backupWriter) file(name string, size int64, in io.Reader) error {
	if err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, Typeflag: tar.TypeReg}); err != nil {
		return fmt.Errorf("writing the backup: %w", err)
	}
	sumOf(w.sum, name, size)
	if n, err := io.Copy(io.MultiWriter(w.tar, w.sum), io.LimitReader(in, size)); err != nil || n < size {
		return fmt.Errorf("writing the backup: %s: %w", name, errors.Join(err, shortBy(size-n)))
	}
	return nil
}

func (w *backupWriter) json(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return w.file(name, int64(len(b)), bytes.NewReader(b))
}

func (w *backupWriter) close() error {
	sum := hex.EncodeToString(w.sum.Sum(nil))
	if err := w.file(backupSum, int64(len(sum)), bytes.NewReader([]byte(sum))); err != nil {
		return err
	}
	return errors.Join(w.tar.Close(), w.gzip.Close())
}

// sumOf puts a file's name and size into the sum of all files, before its content.
func sumOf(sum stdhash.Hash, name string, size int64) {
	sum.Write(binary.BigEndian.AppendUint64(append([]byte(name), 0), uint64(size)))
}

func shortBy(n int64) error {
	if n <= 0 {
		return nil
	}
	return fmt.Errorf("%d bytes are missing", n)
}

// backupReader reads the files of a backup one after the other.
type backupReader struct {
	gzip *gzip.Reader
	tar  *tar.Reader
	sum  stdhash.Hash
}

func newBackupReader(in io.Reader) (*backupReader, error) {
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("%w: it is none, or it is damaged: %w", ErrBackup, err)
	}
	return &backupReader{gzip: z, tar: tar.NewReader(z), sum: sha256.New()}, nil
}

// next is the next file, which may have limit bytes, and must be read to its end.
func (r *backupReader) next(limit func(name string) int64) (name string, size int64, body io.Reader, err error) {
	h, err := r.tar.Next()
	switch {
	case err == io.EOF:
		return "", 0, nil, fmt.Errorf("%w: it is cut short", ErrBackup)
	case err != nil:
		return "", 0, nil, fmt.Errorf("%w: it is cut short, or it is damaged: %w", ErrBackup, err)
	case h.Typeflag != tar.TypeReg:
		return "", 0, nil, fmt.Errorf("%w: it holds %.64q, which is no file", ErrBackup, h.Name)
	case h.Size > limit(h.Name):
		return "", 0, nil, fmt.Errorf("%w: it holds %.64q of %d bytes, which is more than possible", ErrBackup, h.Name, h.Size)
	}
	if h.Name == backupSum {
		return h.Name, h.Size, r.tar, nil
	}
	sumOf(r.sum, h.Name, h.Size)
	return h.Name, h.Size, io.TeeReader(r.tar, r.sum), nil
}

// expect is next, for a file of that name.
func (r *backupReader) expect(name string, limit int64) (int64, io.Reader, error) {
	got, size, body, err := r.next(func(string) int64 { return limit })
	if err == nil && got != name {
		err = fmt.Errorf("%w: it holds %.64q where %s should be", ErrBackup, got, name)
	}
	return size, body, err
}

func (r *backupReader) json(name string, v any) error {
	_, body, err := r.expect(name, maxBackupText)
	if err != nil {
		return err
	}
	return decodeWhole(name, body, v)
}

func decodeWhole(name string, body io.Reader, v any) error {
	b, err := io.ReadAll(body)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("%w: its %s is damaged: %w", ErrBackup, name, err)
	}
	return nil
}

// end reads the sum, and to the very end of the backup.
func (r *backupReader) end(body io.Reader) error {
	want := hex.EncodeToString(r.sum.Sum(nil))
	got := make([]byte, len(want)+1)
	n, err := io.ReadFull(body, got)
	if !errors.Is(err, io.ErrUnexpectedEOF) || string(got[:n]) != want {
		return fmt.Errorf("%w: it is damaged: its sum is not that of its content", ErrBackup)
	}
	if _, err := r.tar.Next(); err != io.EOF {
		return fmt.Errorf("%w: there is more behind its end", ErrBackup)
	}
	// gzip's own sum and length stand at its end.
	if n, err := io.Copy(io.Discard, io.LimitReader(r.gzip, 1<<20)); err != nil || n == 1<<20 {
		return fmt.Errorf("%w: it is damaged at its end: %w", ErrBackup, errors.Join(err, errors.New("there is more")))
	}
	return nil
}

func (r *backupReader) head() (h BackupHead, err error) {
	if err := r.json(backupHead, &h); err != nil {
		return h, err
	}
	if h.Format != backupFormat {
		return h, fmt.Errorf("%w: its format is %d and this vizpeer reads %d: update vizpeer", ErrBackup, h.Format, backupFormat)
	}
	if err := h.Charter.Verify(h.Farm); err != nil {
		return h, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return h, nil
}

// CheckBackup reads a backup from its beginning to its end, and says what it is of or
// what is wrong with it. What it means to the queue, [Restore] finds out.
func CheckBackup(in io.Reader) (BackupHead, error) {
	r, err := newBackupReader(in)
	if err != nil {
		return BackupHead{}, err
	}
	h, err := r.head()
	if err != nil {
		return h, err
	}
	return h, r.each(func(_ string, _ int64, body io.Reader) error {
		_, err := io.Copy(io.Discard, body)
		return err
	})
}

// each reads the files behind the head, and checks the sum.
func (r *backupReader) each(read func(name string, size int64, body io.Reader) error) error {
	for range maxBackupPages {
		name, size, body, err := r.next(func(name string) int64 {
			switch name {
			case backupQueue:
				return maxBackupQueue
			case backupAddrs, backupHead, backupSum:
				return maxBackupText
			}
			return maxBackupPage
		})
		if err != nil {
			return err
		}
		if name == backupSum {
			return r.end(body)
		}
		if err := read(name, size, body); err != nil {
			if errors.Is(err, ErrBackup) {
				return err
			}
			return fmt.Errorf("%w: its %.64s is damaged: %w", ErrBackup, name, err)
		}
		if _, err := io.Copy(io.Discard, body); err != nil { // the sum is of all of it
			return fmt.Errorf("%w: it is cut short, or it is damaged: %w", ErrBackup, err)
		}
	}
	return fmt.Errorf("%w: it holds more files than possible", ErrBackup)
}

// load puts a backup into a state machine that is new.
func (r *backupReader) load(f *fsm) (addrs map[authz.PeerID][]string, err error) {
	queue := false
	var end authz.Mark
	err = r.each(func(name string, _ int64, body io.Reader) error {
		switch {
		case name == backupQueue && !queue:
			queue = true
			s, err := readSnapshot(body)
			if err != nil {
				return err
			}
			f.become(s)
			end = s.trail.Stored()
			return nil
		case name == backupAddrs:
			return decodeWhole(name, body, &addrs)
		case queue && len(name) > len(backupAudit) && name[:len(backupAudit)] == backupAudit:
			return f.takePage(body, end)
		}
		return fmt.Errorf("%w: it holds %.64q, which belongs into none", ErrBackup, name)
	})
	if err == nil && !queue {
		err = fmt.Errorf("%w: it holds no queue", ErrBackup)
	}
	f.write()
	return addrs, err
}

// takePage writes the records of a backup's page up to end to the ledger.
func (f *fsm) takePage(body io.Reader, end authz.Mark) error {
	in := json.NewDecoder(body)
	var records []authz.Record
	for {
		var r authz.Record
		if err := in.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if r.Seq == 0 || r.Seq > end.Seq || len(records) >= pageRecords {
			return fmt.Errorf("%w: its audit has a record %d that its queue does not have", ErrBackup, r.Seq)
		}
		records = append(records, r)
	}
	if f.ledger != nil && len(records) > 0 && !f.ledger.append(records) {
		return errors.New("the audit cannot be written: see the log")
	}
	return nil
}

// Restore makes, of a backup, the queue of the farm's next epoch in cfg.Dir, as [Succeed]
// does of the copy that is there: what is there is kept aside. It answers where members
// were reached last, too.
func Restore(cfg Config, in io.Reader, begin func(BackupHead, Holding, *authz.Roster) (Succession, error)) (head BackupHead, addrs map[authz.PeerID][]string, err error) {
	cfg = cfg.withDefaults()
	if _, err := finishSwap(cfg.Dir); err != nil {
		return head, nil, err
	}
	r, err := newBackupReader(in)
	if err != nil {
		return head, nil, err
	}
	if head, err = r.head(); err != nil {
		return head, nil, err
	}
	_, err = succeed(cfg, func(h Holding, roster *authz.Roster) (Succession, error) { return begin(head, h, roster) },
		func(_ string, f *fsm) (Holding, uint64, error) {
			if addrs, err = r.load(f); err != nil {
				return Holding{}, 0, err
			}
			if f.roster.Farm() != head.Farm {
				return Holding{}, 0, fmt.Errorf("%w: its queue is of farm %s, and its head says %s", ErrBackup, f.roster.Farm(), head.Farm)
			}
			return Holding{Index: max(head.Index, f.index), At: head.At}, head.Term, nil
		})
	return head, addrs, err
}
