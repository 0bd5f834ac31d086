package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vizpeer/peer/httpapi"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vizpeer": main, "vizpeer-standin": standIn})
}

// TestScripts runs the command line as a user types it; testdata/script is its
// specification. A script's commands are testscript's own and these:
//
//	up NAME        start `vizpeer up` for the data folder NAME, and wait until it has a leader
//	down NAME      stop it, and wait until it is gone
//	ended NAME     wait until it has ended by itself
//	address NAME   set ADDRESS to a multiaddr of it
//	await [!] PATTERN COMMAND...  run it until its output matches, or does not
//	refused COMMAND...  run it until it exits with 3, as what was allowed a moment ago
//	fields KEY...  the last output is a JSON object, or a list of them, with these keys
//	save VAR KEY   set VAR to a string of the last output's JSON object (a.b for b in a)
//	write FILE TEXT       write a line to a file
//	alter FILE OLD NEW    put NEW in the place of the first OLD in a file
//	exit CODE ...  run vizpeer with the rest, and demand that exit code
func TestScripts(t *testing.T) {
	_, err := exec.LookPath("blender")
	haveBlender := err == nil
	if !haveBlender {
		t.Log("no Blender on this machine: the scripts that need one skip")
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		// Under the race detector peers are slow, and most of what they do is tested in
		// their packages: one farm of one machine, and one of several.
		scripts = []string{"testdata/script/farm.txtar", "testdata/script/coord.txtar"}
		t.Log("-short: the other scripts are left out")
	}
	testscript.Run(t, testscript.Params{
		Files:               scripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_DATA_HOME", filepath.Join(env.WorkDir, "data"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "blender" {
				return haveBlender, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"up": scriptUp, "down": scriptDown, "ended": scriptEnded, "address": scriptAddress,
			"await": scriptAwait, "refused": scriptRefused, "fields": scriptFields, "save": scriptSave, "exit": scriptExit,
			"write": scriptWrite, "alter": scriptAlter,
		},
	})
}

// scriptPeer is a peer that a script started.
type scriptPeer struct {
	stdin io.Closer
	ended chan struct{}
	addrs []string
}

var scriptPeers = make(chan map[string]*scriptPeer, 1)

func init() { scriptPeers <- map[string]*scriptPeer{} }

func peerKey(ts *testscript.TestScript, name string) string { return ts.MkAbs(name) }

func scriptUp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: up NAME [flags]")
	}
	dir := ts.MkAbs(args[0])
	program, err := exec.LookPath("vizpeer")
	ts.Check(err)
	cmd := exec.Command(program, append([]string{"up", "--json", "--no-mdns", "--stop-with-stdin", "--data-dir", dir,
		"--api-listen", "127.0.0.1:0", "--p2p-listen", "/ip4/127.0.0.1/tcp/0"}, args[1:]...)...)
	cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"))
	logFile, err := os.Create(dir + ".log")
	ts.Check(err)
	defer logFile.Close()
	cmd.Stderr = logFile
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	p := &scriptPeer{stdin: stdin, ended: make(chan struct{})}
	all := <-scriptPeers
	all[peerKey(ts, args[0])] = p
	scriptPeers <- all
	ts.Defer(func() { p.stop() })
	ready := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err == nil {
			var up struct{ P2P []string }
			err = json.Unmarshal([]byte(line), &up)
			p.addrs = up.P2P
		}
		ready <- err
		_ = cmd.Wait()
		close(p.ended)
	}()
	select {
	case err = <-ready:
	case <-time.After(time.Minute):
		err = fmt.Errorf("not ready within a minute")
	}
	if err != nil {
		text, _ := os.ReadFile(logFile.Name())
		ts.Fatalf("up %s: %v\n%s", args[0], err, text)
	}
	scriptLeader(ts, program, dir)
}

// scriptLeader waits until the peer has a leader: one that runs without says so too.
func scriptLeader(ts *testscript.TestScript, program, dir string) {
	limit := time.After(time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := exec.Command(program, "status", "--json", "--data-dir", dir).Output()
		ts.Check(err)
		var status httpapi.Status
		ts.Check(json.Unmarshal(out, &status))
		if status.Leader != "" {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			ts.Fatalf("%s has no leader within a minute", dir)
		}
	}
}

func (p *scriptPeer) stop() {
	p.stdin.Close()
	<-p.ended
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	without := len(args) > 0 && args[0] == "!"
	if without {
		args = args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await [!] PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	limit := time.After(time.Minute)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		ts.Check(ts.Exec(args[1], args[2:]...))
		out := ts.ReadFile("stdout")
		if pattern.MatchString(out) != without {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			ts.Fatalf("a minute has passed, and %v says\n%s", args[1:], out)
		}
	}
}

// refusedWithin is how soon every peer refuses what was revoked elsewhere.
const refusedWithin = 5 * time.Second

func scriptRefused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: refused COMMAND...")
	}
	limit := time.After(refusedWithin)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ts.Exec(args[0], args[1:]...)
		if failed, ok := err.(*exec.ExitError); ok && failed.ExitCode() == exitNotFound {
			return
		}
		ts.Check(err)
		select {
		case <-tick.C:
		case <-limit:
			ts.Fatalf("%v is still allowed after %v", args, refusedWithin)
		}
	}
}

func scriptDown(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: down NAME")
	}
	all := <-scriptPeers
	p := all[peerKey(ts, args[0])]
	scriptPeers <- all
	if p == nil {
		ts.Fatalf("down %s: it is not up", args[0])
	}
	p.stop()
}

// running is the peer that a script started last for a data folder.
func running(ts *testscript.TestScript, args []string) *scriptPeer {
	if len(args) != 1 {
		ts.Fatalf("it takes the NAME of a data folder")
	}
	all := <-scriptPeers
	p := all[peerKey(ts, args[0])]
	scriptPeers <- all
	if p == nil {
		ts.Fatalf("%s was never up", args[0])
	}
	return p
}

func scriptEnded(ts *testscript.TestScript, neg bool, args []string) {
	select {
	case <-running(ts, args).ended:
	case <-time.After(time.Minute):
		ts.Fatalf("%s is up after a minute", args[0])
	}
}

func scriptAddress(ts *testscript.TestScript, neg bool, args []string) {
	if p := running(ts, args); len(p.addrs) > 0 {
		ts.Setenv("ADDRESS", p.addrs[0])
		return
	}
	ts.Fatalf("%s has no address", args[0])
}

func lastObject(ts *testscript.TestScript) map[string]any {
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); err != nil {
		ts.Fatalf("the output is not one JSON document: %v", err)
	}
	if list, ok := v.([]any); ok {
		if len(list) == 0 {
			ts.Fatalf("the output is an empty list")
		}
		v = list[0]
	}
	object, ok := v.(map[string]any)
	if !ok {
		ts.Fatalf("the output is no JSON object")
	}
	return object
}

func lookup(object map[string]any, key string) (any, bool) {
	first, rest, deeper := strings.Cut(key, ".")
	v, ok := object[first]
	if !ok || !deeper {
		return v, ok
	}
	switch inner := v.(type) {
	case map[string]any:
		return lookup(inner, rest)
	case []any:
		if i, err := strconv.Atoi(rest); err == nil && i < len(inner) {
			return inner[i], true
		}
	}
	return nil, false
}

func scriptFields(ts *testscript.TestScript, neg bool, args []string) {
	object := lastObject(ts)
	for _, key := range args {
		if _, ok := lookup(object, key); ok == neg {
			ts.Fatalf("field %s: present is %v in %v", key, ok, object)
		}
	}
}

func scriptSave(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: save VAR KEY")
	}
	v, ok := lookup(lastObject(ts), args[1])
	if !ok {
		ts.Fatalf("there is no field %s", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

func scriptExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE ARGS...")
	}
	err := ts.Exec("vizpeer", args[1:]...)
	code := 0
	if failed, ok := err.(*exec.ExitError); ok {
		code = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func scriptWrite(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: write FILE TEXT")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(args[1]+"\n"), 0o600))
}

func scriptAlter(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: alter FILE OLD NEW")
	}
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(text, args[1], args[2], 1)), 0o600))
}
