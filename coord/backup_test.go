package coord

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

// backedUp is a farm of n jobs, with a backup of it.
func backedUp(t testing.TB, n int) (l *Log, backup []byte, key authz.FarmKey) {
	h := lonelyHost(t)
	key, err := authz.NewFarmKey(rngOf(string(idOf(h))))
	require.NoError(t, err)
	l = sole(t, h, Config{Dir: filepath.Join(t.TempDir(), "queue"), NoSync: true})
	l.fsm.ledger.most = 4 // records on a page
	_, err = l.Apply(context.Background(), foundation(t, idOf(h)))
	require.NoError(t, err)
	for i := range n {
		_, err = l.Apply(context.Background(), audited(submission(string(rune('a'+i))), "submit-job"))
		require.NoError(t, err)
		if i == n-2 { // one record stays unsigned
			_, err = l.Apply(context.Background(), sealing(t, h, l))
			require.NoError(t, err)
		}
	}
	var b bytes.Buffer
	head, err := l.backup(context.Background(), &b, "1.2.3", map[authz.PeerID][]string{"box": {"/ip4/10.0.0.7/tcp/8788"}})
	require.NoError(t, err)
	require.Equal(t, key.ID(), head.Farm)
	require.EqualValues(t, n-1, head.Records)
	return l, b.Bytes(), key
}

// A backup brings back what was there when it was made, on any machine, in the farm's
// next epoch; what came later is not in it.
func TestBackup(t *testing.T) {
	l, backup, key := backedUp(t, 10)
	_, err := l.Apply(t.Context(), audited(submission("later"), "submit-job"))
	require.NoError(t, err)
	head, err := CheckBackup(bytes.NewReader(backup))
	require.NoError(t, err)
	require.Equal(t, "1.2.3", head.Version)

	h := lonelyHost(t)
	cfg := Config{Dir: filepath.Join(t.TempDir(), "queue"), NoSync: true}
	_, machine, err := authz.NewKey(rngOf("new"), "new", authz.Admin, noon)
	require.NoError(t, err)
	_, addrs, err := Restore(cfg, bytes.NewReader(backup), func(head BackupHead, had Holding, r *authz.Roster) (Succession, error) {
		require.Equal(t, 10, had.Jobs)
		require.EqualValues(t, 1, had.Charter.Epoch)
		return Succession{At: noon, Deed: authz.Deed{Machine: idOf(h), Action: "restore"}, Succession: authz.Succession{
			Charter: key.SignCharter(idOf(h), 2), Name: "spare", KeyID: machine.ID, KeyHash: machine.Hash,
		}}, nil
	})
	require.NoError(t, err)
	require.Equal(t, map[authz.PeerID][]string{"box": {"/ip4/10.0.0.7/tcp/8788"}}, addrs)
	next := openLog(t, h, cfg)
	awaitLeader(t, next, "")
	require.NoError(t, next.Barrier(t.Context()))
	require.Len(t, jobs(next), 10)
	require.False(t, jobs(next)["later"])
	requireWhole(t, next, 11) // and "restore"
	require.Equal(t, records(t, l)[:9], records(t, next)[:9], "records and signatures are the old ones")
	_, err = next.Apply(t.Context(), sealing(t, h, next))
	require.NoError(t, err)
	requireWhole(t, next, 11)

	// A backup of a backup, without an entry between them.
	var b bytes.Buffer
	again, err := next.backup(t.Context(), &b, "", nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, again.Charter.Epoch)
	require.Greater(t, again.Index, head.Index+epochGap)
	_, err = CheckBackup(&b)
	require.NoError(t, err)
}

// What is damaged, cut short or longer is refused, and changes nothing.
func TestBackupIsDamaged(t *testing.T) {
	_, backup, _ := backedUp(t, 4)
	dir := t.TempDir()
	refused := func(why string, bad []byte) {
		t.Helper()
		_, err := CheckBackup(bytes.NewReader(bad))
		require.ErrorIs(t, err, ErrBackup, why)
		_, _, err = Restore(Config{Dir: filepath.Join(dir, "queue"), NoSync: true}, bytes.NewReader(bad), func(BackupHead, Holding, *authz.Roster) (Succession, error) {
			t.Fatal("it was taken for good: " + why)
			return Succession{}, nil
		})
		require.Error(t, err, why)
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, why)
	}
	for n := 0; n < len(backup); n += 1 + len(backup)/40 {
		refused("cut short", backup[:n])
		flipped := bytes.Clone(backup)
		if flipped[n] ^= 0x10; !bytes.Equal(unzipped(flipped), unzipped(backup)) { // a few bits of gzip's own mean nothing
			refused("altered", flipped)
		}
	}
	refused("cut short by one", backup[:len(backup)-1])
	refused("longer", append(bytes.Clone(backup), "more"...))

	// With a sum that fits, by somebody who means it.
	_, good, _ := backedUp(t, 4)
	r, err := newBackupReader(bytes.NewReader(good))
	require.NoError(t, err)
	head, err := r.head()
	require.NoError(t, err)
	files := map[string][]byte{}
	require.NoError(t, r.each(func(name string, _ int64, body io.Reader) error {
		files[name], err = io.ReadAll(body)
		return err
	}))
	for why, change := range map[string]func(w *backupWriter) error{
		"another format": func(w *backupWriter) error { h := head; h.Format = 2; return w.json(backupHead, h) },
		"a charter that nobody signed": func(w *backupWriter) error {
			h := head
			h.Charter.Epoch = 9
			return w.json(backupHead, h)
		},
		"no queue": func(w *backupWriter) error { return w.json(backupHead, head) },
		"a stranger": func(w *backupWriter) error {
			return errors.Join(w.json(backupHead, head), w.file("../../evil", 1, bytes.NewReader([]byte("x"))))
		},
		"records of the future": func(w *backupWriter) error {
			return errors.Join(w.json(backupHead, head), w.file(backupQueue, int64(len(files[backupQueue])), bytes.NewReader(files[backupQueue])),
				w.json(backupAudit+"1.jsonl", authz.Record{Seq: 99}))
		},
	} {
		var b bytes.Buffer
		w := newBackupWriter(&b)
		require.NoError(t, change(w))
		require.NoError(t, w.close())
		_, _, err := Restore(Config{Dir: filepath.Join(dir, "queue"), NoSync: true}, &b, func(BackupHead, Holding, *authz.Roster) (Succession, error) {
			t.Fatal("it was taken for good: " + why)
			return Succession{}, nil
		})
		require.ErrorIs(t, err, ErrBackup, why)
	}
}

// unzipped is nil for what cannot be read.
func unzipped(b []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	out, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	return out
}

// FuzzBackup: whatever comes as a backup, reading it ends without a panic, and what is
// refused by its sum is not loaded.
func FuzzBackup(f *testing.F) {
	_, backup, _ := backedUp(f, 4)
	f.Add(unzipped(backup))
	f.Add(unzipped(backup)[:len(backup)])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
		require.NoError(t, err)
		_, err = z.Write(content)
		require.NoError(t, errors.Join(err, z.Close()))
		data := b.Bytes()
		_, bad := CheckBackup(bytes.NewReader(data))
		r, err := newBackupReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		if _, err = r.head(); err == nil {
			_, err = r.load(newFSM(nil))
		}
		if err == nil && bad != nil {
			t.Fatalf("it was loaded, though %v", bad)
		}
	})
}
