package render

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"vizpeer/lease"
)

// session is a Blender that has one file open and renders what it is asked for, one
// request at a time, in lines of JSON on its standard input. It says what it does in
// lines "VIZ {json}" among its own output, each of which names the request that it
// belongs to: see driver.py.
//
// The name of a request is random and known to the driver alone. What a file makes
// Blender print, a name with a line's end in it, can so neither end a request nor
// give a frame. It guards nothing against code of the file's own: that can make its
// Blender say anything, and meets the checks of [watch].
type session struct {
	*process
	key      sessionKey
	dir      sessionDir
	view     view // as its Blender sees the folders
	persists bool // render data outlive their frame: faster, and takes more memory
	served   int  // attempts
	frames   int
	linger   *time.Timer // while it waits
	ask      sync.Mutex
}

// sessionKey is all that a session's images may depend on, beside the frame, and whose
// they are. Attempts with the same key may use the same Blender, one after another.
type sessionKey struct {
	owner, content string
	root, blend    string
	exe, hash      string
	version        lease.Version
	backends       string
	gpu            bool
	device         lease.Device
	ids            string // of the GPU, by backend
	set            lease.Settings
}

func (a Attempt) sessionKey(p project) sessionKey {
	k := sessionKey{
		owner: a.Owner, content: a.Content, root: p.root, blend: p.blend,
		exe: a.Build.Path, hash: a.Build.Hash, version: a.Build.Version,
		backends: fmt.Sprint(backends(a.Needs)), gpu: a.Needs.WantsGPU(), device: a.Device, set: a.Set,
	}
	if i, ok := a.Device.GPU(); ok && i < len(a.Build.GPUs) {
		k.ids = fmt.Sprint(a.Build.GPUs[i]) // in the order of the keys
	}
	return k
}

// request is what a session is asked for: see serve in driver.py.
type request struct {
	Do     string     `json:"do"` // "frames", "part", "merge", "movie", or "stop" to end the request of that ID early
	ID     string     `json:"id"`
	Frames []int32    `json:"frames,omitempty"`
	Part   *partArgs  `json:"part,omitempty"`
	Merge  *mergeArgs `json:"merge,omitempty"`
	Movie  *movieArgs `json:"movie,omitempty"`
}

// newRequest is the request that an attempt makes of s. merged is the file of what is
// merged, where it is.
func newRequest(a Attempt, s *session, merged string) (request, error) {
	r := request{Do: "frames", ID: rand.Text(), Frames: a.Frames}
	switch {
	case a.Part != nil:
		r.Do, r.Part = "part", newPartArgs(*a.Part)
	case a.Merge != nil:
		if err := showMerged(merged, s.dir.driver()); err != nil {
			return r, err
		}
		r.Do, r.Merge = "merge", &mergeArgs{Split: a.Merge.Split, File: filepath.Join(s.view.driver, mergedName)}
	case a.Movie != nil:
		if err := a.Movie.showPictures(s.dir.driver()); err != nil {
			return r, err
		}
		r.Do, r.Movie = "movie", a.Movie.args(s)
	}
	return r, nil
}

// tell sends a request. It blocks until Blender reads it, which it does when it has
// loaded the file. A Blender that cannot be told anything shows it by its output.
func (s *session) tell(r request) {
	line, err := json.Marshal(r)
	if err != nil {
		return
	}
	s.ask.Lock()
	defer s.ask.Unlock()
	s.in.Write(append(line, '\n'))
}

// serve makes a request and follows the answer until its end, that of Blender or that
// of ctx. waits tells that Blender is there for another; otherwise it is gone, and exit
// is how it ended.
func (s *session) serve(ctx context.Context, r request, w *watch, log io.Writer) (waits bool, exit int, err error) {
	stop := context.AfterFunc(ctx, s.kill)
	defer stop()
	go s.tell(r)
	answered := make(chan struct{})
	go func() {
		select {
		case <-w.attempt.Finish: // never, where it is nil
			s.tell(request{Do: "stop", ID: r.ID})
		case <-answered:
		}
	}()
	s.served++
	w.id, w.out = r.ID, s.dir.out()
	err = w.read(ctx, s.out, log, s.served == 1)
	close(answered)
	s.frames += len(w.done)
	if err == nil && w.ended && stop() {
		return true, 0, nil
	}
	if err != nil {
		s.kill()
	}
	s.leave()
	<-s.gone
	return false, s.exit(), err
}

// end ends a session that nobody uses.
func (s *session) end() {
	s.kill()
	s.leave()
	<-s.gone
}

// maxLeft is how many bytes of a session's temporary files may stay for the next
// attempt, which answers for all that its session takes of the disk.
const maxLeft = 256 << 20

// clean removes what an attempt left where Blender may write, and tells whether the
// next one finds nothing of it.
func (s *session) clean() bool {
	for _, dir := range []string{s.dir.out(), s.dir.unkept()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			return false
		}
		for _, e := range entries {
			if os.RemoveAll(filepath.Join(dir, e.Name())) != nil {
				return false
			}
		}
	}
	// What Blender was shown of a frame's pieces or a movie is not its own, and large.
	for _, name := range []string{picturesName, mergedName} {
		if os.RemoveAll(filepath.Join(s.dir.driver(), name)) != nil {
			return false
		}
	}
	return diskUse(s.dir.tmp()) <= maxLeft
}

// open starts a Blender for an attempt. The file is loaded with the first request.
func (b *Blender) open(a Attempt, k sessionKey, place project) (_ *session, err error) {
	dir, err := b.newSessionDir()
	if err != nil {
		return nil, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot make a folder for Blender: %v", err)}
	}
	s := &session{key: k, dir: dir}
	remove := func() {
		if err := os.RemoveAll(dir.root); err != nil {
			b.cfg.Logger.Warn("a Blender's folder could not be removed", "dir", dir.root, "err", err)
		}
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	s.persists = a.Content != "" && b.sessions.roomy(k)
	kind, _ := b.Sandbox()
	cmd, err := b.command(a, s, place, kind != "")
	if err != nil {
		return nil, err
	}
	tmp := dir.tmp()
	if kind != "" {
		tmp = "" // the sandbox takes all of its processes along
	}
	s.process = newProcess(cmd, tmp)
	if err := s.withInput(); err != nil {
		return nil, startError{err}
	}
	release := func() {}
	if a.Hold != nil && a.Content != "" {
		release = a.Hold()
	}
	err = s.start(func() {
		if b.sessions.drop(s) {
			s.leave() // it ended by itself, with nobody there to read
		}
	}, func() {
		remove()
		release()
	})
	if err != nil {
		release()
	}
	return s, err
}

// driverArgs is what the driver does once, when the file is open: see driver.py.
type driverArgs struct {
	Out     string `json:"out"`
	Scratch string `json:"scratch"`
	// Root is the project's folder where nothing but guard.py keeps Blender in it.
	Root    string          `json:"root,omitempty"`
	Persist bool            `json:"persist,omitempty"`
	Remap   *remapArgs      `json:"remap,omitempty"`
	Backend []lease.Backend `json:"backends,omitempty"`
	GPU     bool            `json:"gpu,omitempty"`
	// IDs are Blender's names of the one GPU to render on, by backend.
	IDs map[lease.Backend]string `json:"ids,omitempty"`
	lease.Settings
}

// on makes d the one device to render on.
func (a *driverArgs) on(d lease.Device, b lease.Build) error {
	i, isGPU := d.GPU()
	switch {
	case d == "":
	case d == lease.CPUDevice:
		a.Backend = []lease.Backend{lease.CPU}
	case isGPU && i < len(b.GPUs) && len(b.GPUs[i]) > 0:
		a.IDs = b.GPUs[i]
	default:
		return &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine's Blender %s cannot use its device %q", b.Version, string(d))}
	}
	return nil
}

type remapArgs struct {
	Root   string `json:"root"`
	Origin string `json:"origin"`
}

// backends lists the backends that may serve r, best first; nil is all of them.
func backends(r lease.Requirements) []lease.Backend {
	switch {
	case r.Backend != "":
		return []lease.Backend{r.Backend}
	case r.GPUVendor == lease.NVIDIA:
		return []lease.Backend{lease.OptiX, lease.CUDA}
	case r.GPUVendor == lease.AMD:
		return []lease.Backend{lease.HIP}
	case r.GPUVendor == lease.Intel:
		return []lease.Backend{lease.OneAPI}
	case r.GPUVendor == lease.Apple:
		return []lease.Backend{lease.Metal}
	}
	return nil
}

// command builds the process of a session and writes what it reads.
func (b *Blender) command(a Attempt, s *session, place project, confined bool) (*exec.Cmd, error) {
	exe, err := exec.LookPath(a.Build.Path)
	if err != nil {
		return nil, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine's Blender %s is gone or cannot be run", a.Build.Version)}
	}
	dir := s.dir
	view := outside(dir, place)
	var box *sandbox
	if confined {
		if box, err = newSandbox(exe, dir, place, b.maxThreads()); err != nil {
			return nil, &Error{Kind: lease.FailMachine, Reason: err.Error()}
		}
		view = box.view
	}
	s.view = view
	args := driverArgs{
		Out: view.out, Scratch: filepath.Join(view.tmp, unkeptDir), Persist: s.persists,
		Backend: backends(a.Needs), Settings: a.Set, GPU: a.Needs.WantsGPU(),
	}
	if err := args.on(a.Device, a.Build); err != nil {
		return nil, err
	}
	if box == nil {
		args.Root = place.root
	}
	if view.remap {
		args.Remap = &remapArgs{Root: view.files, Origin: place.manifest.Origin}
	}
	if err := dir.writeDriver(args); err != nil {
		return nil, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot prepare the attempt: %v", err)}
	}
	// The exit code of a Python error must stand before -P, or it is 0.
	line := []string{exe, "-b", "--factory-startup", "-noaudio", "-Y", "--python-exit-code", "3",
		view.blend, "-P", filepath.Join(view.driver, "driver.py"), "--", filepath.Join(view.driver, "args.json")}
	if box == nil { // before the file is opened
		line = slices.Insert(line, slices.Index(line, view.blend), "-P", filepath.Join(view.driver, "early.py"))
	}
	env := environment(view.tmp)
	if box != nil {
		line = append(box.prefix(), line...)
		env = box.env()
	}
	line = append(limits(b.diskLimit()), line...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir, cmd.Env = dir.root, env
	if box != nil {
		cmd.ExtraFiles = box.files
	}
	return cmd, nil
}

// sessionDir is the private folder of one Blender, which may write into out and tmp
// alone.
type sessionDir struct{ root string }

func (d sessionDir) out() string    { return filepath.Join(d.root, "out") }
func (d sessionDir) tmp() string    { return filepath.Join(d.root, "tmp") }
func (d sessionDir) unkept() string { return filepath.Join(d.tmp(), unkeptDir) }
func (d sessionDir) driver() string { return filepath.Join(d.root, "driver") }

const (
	sessionPrefix = "blender-"
	unkeptDir     = "unkept" // below tmp: what the file writes beside its frames
)

func (b *Blender) newSessionDir() (sessionDir, error) {
	root, err := b.newDir(sessionPrefix)
	if err != nil {
		return sessionDir{}, err
	}
	d := sessionDir{root}
	for _, sub := range []string{d.out(), d.tmp(), d.driver()} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			os.RemoveAll(root)
			return sessionDir{}, err
		}
	}
	return d, nil
}

func (d sessionDir) writeDriver(args driverArgs) error {
	names, err := scripts.ReadDir(".")
	if err != nil {
		return err
	}
	for _, n := range names {
		text, err := scripts.ReadFile(n.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.driver(), n.Name()), text, 0o600); err != nil {
			return err
		}
	}
	text, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.driver(), "args.json"), text, 0o600)
}
