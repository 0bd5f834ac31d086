package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// standInVersion is a Blender release that is on no machine: jobs that ask for it are
// rendered by the stand-in alone.
const standInVersion = "9.9.9"

// standInBlender makes a program that stands for Blender where a test needs many frames
// in little time: it speaks as render's driver does and takes perFrame for each frame. No
// two pictures of it are the same, so that one that was rendered twice shows. It notes
// each frame that it begins in the ledger: see readLedger.
func standInBlender(t testing.TB, perFrame time.Duration) (path, ledger string) {
	t.Helper()
	dir := t.TempDir()
	program, err := exec.LookPath("vizpeer-standin")
	require.NoError(t, err)
	path, ledger = filepath.Join(dir, "blender"), filepath.Join(dir, "ledger")
	script := fmt.Sprintf("#!/bin/sh\nexec %s %s %s \"$@\"\n", program, perFrame, ledger)
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	return path, ledger
}

// unconfined are the variables of a peer whose Blender is the stand-in, which lies where
// no sandbox shows it: it finds no bubblewrap.
func unconfined(t testing.TB) []string {
	t.Helper()
	return []string{"PATH=" + t.TempDir() + ":/bin/none"}
}

// standIn is the program that the stand-in runs: PER-FRAME LEDGER, and what a Blender is
// given.
func standIn() {
	perFrame, err := time.ParseDuration(os.Args[1])
	if err != nil {
		panic(err)
	}
	ledger, args := os.Args[2], os.Args[3:]
	last := args[len(args)-1]
	switch {
	case args[0] == "--version":
		fmt.Println("Blender " + standInVersion)
	case filepath.Base(last) == "answer.json": // it is asked what it can do
		if err := os.WriteFile(last, []byte(`{"version": "`+standInVersion+`", "hash": "0123456789ab", "engines": ["CYCLES"], "oidn": true, "gpus": {}}`), 0o600); err != nil {
			panic(err)
		}
	default:
		standInServes(perFrame, ledger, args)
	}
}

// standInServes answers requests until there are no more.
func standInServes(perFrame time.Duration, ledger string, args []string) {
	var blend []byte
	for _, a := range args {
		if strings.HasSuffix(a, ".blend") {
			blend, _ = os.ReadFile(a)
		}
	}
	var told struct{ Out string }
	text, err := os.ReadFile(args[len(args)-1])
	if err == nil {
		err = json.Unmarshal(text, &told)
	}
	if err != nil {
		panic(err)
	}
	type request struct {
		Do, ID string
		Frames []int32
	}
	requests := make(chan request)
	go func() {
		for in := bufio.NewReader(os.Stdin); ; {
			line, err := in.ReadBytes('\n')
			if err != nil {
				os.Exit(0) // whoever asks is gone
			}
			var r request
			if json.Unmarshal(line, &r) == nil && r.Do == "frames" {
				requests <- r
			}
		}
	}()
	loaded := false
	for r := range requests {
		say := func(format string, values ...any) {
			fmt.Printf("\nVIZ {%s, \"id\": %q}\n", fmt.Sprintf(format, values...), r.ID)
		}
		if !loaded {
			say(`"ev": "loaded"`)
			loaded = true
		}
		for _, f := range r.Frames {
			noteFrame(ledger, string(blend), f)
			say(`"ev": "start", "frame": %d`, f)
			time.Sleep(perFrame)
			name := fmt.Sprintf("f%d.png", f)
			if err := os.WriteFile(filepath.Join(told.Out, name), standInPicture(f), 0o600); err != nil {
				say(`"ev": "fail", "kind": "error", "reason": "frame %d: No space left on device"`, f)
				os.Exit(3)
			}
			say(`"ev": "frame", "frame": %d, "file": %q, "name": "%04d.png", "seconds": %g`, f, name, f, perFrame.Seconds())
		}
		say(`"ev": "end", "again": true, "memory": 1000`)
	}
}

// standInPicture is a picture unlike any other.
func standInPicture(frame int32) []byte {
	pixels := image.NewRGBA(image.Rect(0, 0, 16, 9))
	h := fnv.New64a()
	for i := range 16 * 9 {
		fmt.Fprint(h, frame, os.Getpid(), time.Now().UnixNano())
		n := h.Sum64()
		pixels.Set(i%16, i/16, color.RGBA{uint8(n), uint8(n >> 8), uint8(n >> 16), 255})
	}
	var b bytes.Buffer
	if err := png.Encode(&b, pixels); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// renderingOf is a line of the ledger.
type renderingOf struct {
	scene string // what the test wrote into the .blend
	frame int32
	began time.Time
}

// standInHeader is how the .blend files of these tests begin.
const standInHeader = "BLENDER-v304"

func noteFrame(ledger, blend string, frame int32) {
	f, err := os.OpenFile(ledger, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %d %d\n", strings.TrimPrefix(blend, standInHeader), frame, time.Now().UnixNano())
}

// readLedger lists the frames that were begun so far.
func readLedger(t *testing.T, path string) (all []renderingOf) {
	t.Helper()
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		require.Len(t, f, 3, line)
		frame, err := strconv.Atoi(f[1])
		require.NoError(t, err)
		at, err := strconv.ParseInt(f[2], 10, 64)
		require.NoError(t, err)
		all = append(all, renderingOf{f[0], int32(frame), time.Unix(0, at)})
	}
	return all
}

// standInJob is what is asked for, of a project whose .blend holds the name of its scene.
func standInJob(project, frames string, chunk int) map[string]any {
	return map[string]any{"project": project, "frames": frames, "chunk": chunk, "needs": lease.Requirements{Blender: standInVersion}}
}

// sceneTar is a project whose .blend holds the name of its scene.
func sceneTar(t testing.TB, scene string) io.Reader {
	t.Helper()
	return bytes.NewReader(projectTar(t, scene))
}

// cidOf is the CID of a small file.
func cidOf(t *testing.T, content []byte) string {
	t.Helper()
	c, err := cid.V1Builder{Codec: cid.Raw, MhType: multihash.SHA2_256}.Sum(content)
	require.NoError(t, err)
	return c.String()
}
