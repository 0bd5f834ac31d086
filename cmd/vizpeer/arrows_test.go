package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path that our own imports begin with.
const module = "vizpeer"

// arrows are the imports of our own packages that the design allows; a package
// that is not listed may not exist. Tests of a package are held to it too, but
// may also import blobs/blobtest, lease/leasetest and peer/farmtest.
var arrows = map[string][]string{
	"authz/level":     {},
	"authz":           {"authz/level"},
	"blobs/pack":      {},
	"blobs":           {"blobs/pack"},
	"blobs/blobtest":  {"blobs"},
	"blobs/swarm":     {"blobs", "blobs/pack"},
	"lease":           {"authz", "authz/level"},
	"lease/leasetest": {"lease", "authz"},
	"coord/sched":     {"lease", "authz", "authz/level"},
	"coord":           {"coord/sched", "lease", "authz", "authz/level"},
	"peer/probe":      {"lease", "blobs", "authz", "peer/render"},
	"peer/portable":   {"blobs"},
	"peer/render":     {"peer/render/exr", "lease", "blobs", "authz"},
	"peer/render/exr": {},
	"peer/spot":       {},
	"peer/httpapi":    {"lease", "blobs", "authz", "peer/render"},
	"peer/cert":       {},
	"peer/farmtest":   {"peer", "peer/cert", "peer/probe", "peer/portable", "peer/render", "peer/httpapi", "coord", "coord/sched", "lease", "blobs", "blobs/swarm", "authz", "authz/level"},
	"peer":            {"peer/cert", "peer/probe", "peer/portable", "peer/render", "peer/spot", "peer/httpapi", "coord", "coord/sched", "lease", "blobs", "blobs/swarm", "authz", "authz/level"},
	"cmd/vizpeer":     {"peer", "peer/cert", "peer/probe", "peer/portable", "peer/render", "peer/httpapi", "lease", "authz", "authz/level"},
}

// pure packages decide: they are given the time and the facts, and reach for
// neither.
var (
	pure      = []string{"lease", "coord/sched"}
	forbidden = []string{"os", "os/exec", "net", "net/http", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "context", "sync"}
)

func TestImportArrows(t *testing.T) {
	seen := 0
	err := eachGoFile("../..", func(dir, file string, imports []string) {
		seen++
		test := strings.HasSuffix(file, "_test.go")
		allowed, known := arrows[dir]
		if !known {
			t.Errorf("%s/%s: the package %s has no place in the design: add it there and to this test", dir, file, dir)
			return
		}
		for _, imp := range imports {
			own, ours := strings.CutPrefix(imp, module+"/")
			switch {
			case ours && own == dir && test: // an external test of the package itself
			case ours && test && (own == "blobs/blobtest" || own == "lease/leasetest" || own == "peer/farmtest"):
			case ours && !slices.Contains(allowed, own):
				t.Errorf("%s/%s imports %s, which the design does not allow: %s", dir, file, own, allowance(dir, allowed))
			case !ours && !test && slices.Contains(pure, dir) && slices.Contains(forbidden, imp):
				t.Errorf("%s/%s imports %q: %s is pure, so take what you need from there as an argument", dir, file, imp, dir)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < len(arrows) {
		t.Fatalf("only %d Go files were found: the test looks in the wrong place", seen)
	}
}

func allowance(dir string, allowed []string) string {
	if len(allowed) == 0 {
		return fmt.Sprintf("%s may import nothing of ours", dir)
	}
	return fmt.Sprintf("%s may import %s", dir, strings.Join(allowed, ", "))
}

// eachGoFile calls fn with the imports of every Go file below root; dir is its
// folder in slashes, relative to root.
func eachGoFile(root string, fn func(dir, file string, imports []string)) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, text, parser.ImportsOnly)
		if err != nil {
			return err
		}
		var imports []string
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, imp)
		}
		dir, err := filepath.Rel(root, filepath.Dir(p))
		if err != nil {
			return err
		}
		fn(path.Clean(filepath.ToSlash(dir)), name, imports)
		return nil
	})
}
