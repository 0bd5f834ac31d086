package blobs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs/pack"
)

// The benchmarks behind the promises of `make bench`: each run measures both
// sides of a comparison once and reports them as metrics.

func openForBench(b *testing.B) *Store {
	s, err := Open(b.TempDir(), Config{})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	return s
}

func noiseFile(b *testing.B, seed byte, size int64) string {
	path := filepath.Join(b.TempDir(), "noise")
	f, err := os.Create(path)
	require.NoError(b, err)
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{seed}), size)
	require.NoError(b, err)
	require.NoError(b, f.Sync()) // else the disk is still busy with it while others are measured
	require.NoError(b, f.Close())
	return path
}

// importPath imports a file as a project of its own and returns the new bytes.
func importPath(b *testing.B, s *Store, path string) (cid.Cid, int64) {
	f, err := os.Open(path)
	require.NoError(b, err)
	defer f.Close()
	t := s.NewTree()
	defer t.Abort()
	_, err = t.AddFile(b.Context(), "scene.blend", f)
	require.NoError(b, err)
	root, sum, err := t.Commit(b.Context())
	require.NoError(b, err)
	return root, sum.NewBytes
}

// BenchmarkImportOneGiB compares a durable import with SHA-256 over the same file
// on one core, both reading it from the page cache. What the disk takes for as many
// bytes, written the same way and nothing else done, stands beside: no import that
// is durable can be faster.
func BenchmarkImportOneGiB(b *testing.B) {
	path := noiseFile(b, 1, 1<<30)
	s := openForBench(b)
	for b.Loop() {
		hashing := time.Now()
		f, err := os.Open(path)
		require.NoError(b, err)
		h := sha256.New()
		_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1<<20))
		require.NoError(b, err)
		require.NoError(b, f.Close())
		hashed := time.Since(hashing)

		importing := time.Now()
		importPath(b, s, path)
		b.ReportMetric(time.Since(importing).Seconds(), "import-s")
		b.ReportMetric(hashed.Seconds(), "sha256-s")
		b.ReportMetric(writeOnly(b, 1<<30).Seconds(), "disk-s")
	}
}

// writeOnly measures how long it takes until so many bytes are durable in pack files.
func writeOnly(b *testing.B, size int) time.Duration {
	files, err := pack.Open(b.TempDir(), pack.Config{})
	require.NoError(b, err)
	defer files.Close()
	batch := pack.NewBuffer(batchBytes)
	copy(batch, noise(9, batchBytes))
	began := time.Now()
	var extents []*pack.Extent
	for range size / batchBytes {
		e, err := files.Append(batch)
		require.NoError(b, err)
		extents = append(extents, e)
	}
	require.NoError(b, files.Sync(extents...))
	took := time.Since(began)
	for _, e := range extents {
		e.Settle()
	}
	return took
}

// BenchmarkImportMemory measures a process that imports 4 GiB and nothing else.
func BenchmarkImportMemory(b *testing.B) {
	if path := os.Getenv("VIZPEER_IMPORT_FILE"); path != "" {
		for b.Loop() {
			importPath(b, openForBench(b), path)
		}
		return
	}
	path := noiseFile(b, 2, 4<<30)
	for b.Loop() {
		cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkImportMemory$", "-test.benchtime=1x")
		cmd.Env = append(os.Environ(), "VIZPEER_IMPORT_FILE="+path)
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, "%s", out)
		b.ReportMetric(peakRSS(cmd), "peak-B")
	}
}

// BenchmarkResubmit changes a file and counts what an import finds new, beside
// what rsync would send.
func BenchmarkResubmit(b *testing.B) {
	const size = 256 << 20
	old := noiseFile(b, 3, size)
	for b.Loop() {
		data, err := os.ReadFile(old)
		require.NoError(b, err)
		inserted := filepath.Join(b.TempDir(), "inserted")
		require.NoError(b, os.WriteFile(inserted, append(noise(4, 1000), data...), 0o600))
		const places, share = 20, size / 100 / 20
		for i := range places {
			copy(data[i*(size/places)+12345:], noise(byte(10+i), share))
		}
		changed := filepath.Join(b.TempDir(), "changed")
		require.NoError(b, os.WriteFile(changed, data, 0o600))

		s := openForBench(b)
		importPath(b, s, old)
		_, fresh := importPath(b, s, changed)
		b.ReportMetric(float64(fresh), "changed-new-B")
		b.ReportMetric(rsyncLiteral(b, old, changed), "changed-rsync-B")
		_, fresh = importPath(b, s, inserted)
		b.ReportMetric(float64(fresh), "inserted-new-B")
	}
}

var literalData = regexp.MustCompile(`Literal data: ([0-9,.]+) bytes`)

// rsyncLiteral is how many bytes of changed rsync would send to who holds old.
func rsyncLiteral(b *testing.B, old, changed string) float64 {
	there := filepath.Join(b.TempDir(), "there")
	data, err := os.ReadFile(old)
	require.NoError(b, err)
	require.NoError(b, os.WriteFile(there, data, 0o600))
	cmd := exec.Command("rsync", "--no-whole-file", "--ignore-times", "--stats", changed, there)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	require.NoError(b, err, "%s", out)
	found := literalData.FindSubmatch(out)
	require.NotNil(b, found, "%s", out)
	n, err := strconv.ParseFloat(strings.ReplaceAll(string(found[1]), ",", ""), 64)
	require.NoError(b, err)
	return n
}

// savedTwice makes a .blend of 12 large meshes and saves it as the add-on does,
// then again after an object was moved: in the same session, and after the first
// copy was opened anew, which gives every datablock in it another address.
const savedTwice = `
import bpy, os, random
for o in list(bpy.data.objects):
    bpy.data.objects.remove(o)
random.seed(1)
for i in range(12):
    bpy.ops.mesh.primitive_grid_add(x_subdivisions=300, y_subdivisions=300, location=(i * 3, 0, 0))
    mesh = bpy.context.object.data
    mesh.vertices.foreach_set("co", [random.uniform(-1, 1) for _ in range(len(mesh.vertices) * 3)])

def save(name):
    path = os.path.join(%[1]q, name, "scene.blend")
    os.makedirs(os.path.dirname(path))
    bpy.ops.wm.save_as_mainfile(filepath=path, copy=True, compress=False, relative_remap=False, check_existing=False)
    return path

first = save("first")
bpy.data.objects[5].location.x += 1
save("moved")
bpy.ops.wm.open_mainfile(filepath=first)
bpy.data.objects[5].location.x += 1
save("reopened")
`

// BenchmarkResubmitBlend counts what is new in a real .blend saved again.
func BenchmarkResubmitBlend(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		out, err := exec.Command("blender", "-b", "--factory-startup", "--python-exit-code", "3",
			"--python-expr", fmt.Sprintf(savedTwice, dir)).CombinedOutput()
		require.NoError(b, err, "%s", out)
		path := func(name string) string { return filepath.Join(dir, name, "scene.blend") }
		info, err := os.Stat(path("first"))
		require.NoError(b, err)
		require.Greater(b, info.Size(), int64(100<<20))

		s := openForBench(b)
		importPath(b, s, path("first"))
		_, fresh := importPath(b, s, path("moved"))
		b.ReportMetric(float64(info.Size()), "blend-B")
		b.ReportMetric(float64(fresh), "moved-new-B")
		_, fresh = importPath(b, s, path("reopened"))
		b.ReportMetric(float64(fresh), "reopened-new-B")
	}
}
