package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

// lan makes a local network of n machines, each a network namespace of its own,
// which are gone when the test ends. It skips where that is not allowed.
func lan(t *testing.T, n int) (namespaces []string) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command on this machine (package iproute2): it cannot make network namespaces")
	}
	run := func(args ...string) error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := run("netns", "add", "vzlan"); err != nil {
		t.Skipf("this machine makes no network namespaces: %v", err)
	}
	// The switch stands in a namespace of its own, so that nothing of this machine's
	// network is touched.
	t.Cleanup(func() { require.NoError(t, run("netns", "del", "vzlan")) })
	require.NoError(t, run("-n", "vzlan", "link", "add", "switch", "type", "bridge"))
	require.NoError(t, run("-n", "vzlan", "link", "set", "switch", "up"))
	for i := range n {
		ns, port := fmt.Sprintf("vzlan%d", i), fmt.Sprintf("port%d", i)
		require.NoError(t, run("netns", "add", ns))
		t.Cleanup(func() { require.NoError(t, run("netns", "del", ns)) })
		for _, step := range []string{
			"-n vzlan link add PORT type veth peer name eth0 netns NS", "-n vzlan link set PORT master switch", "-n vzlan link set PORT up",
			fmt.Sprintf("-n NS addr add 10.91.0.%d/24 dev eth0", i+1), "-n NS link set eth0 up", "-n NS link set lo up", "-n NS route add default dev eth0",
		} {
			require.NoError(t, run(strings.Fields(strings.NewReplacer("PORT", port, "NS", ns).Replace(step))...))
		}
		namespaces = append(namespaces, ns)
	}
	return namespaces
}

// On a local network nobody needs an address: a ticket without one joins, and a
// coordinator that comes back under another is found again. All ports are the
// defaults.
func TestMachinesFindEachOtherOnTheLAN(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it waits for real time-outs")
	}
	namespaces := lan(t, 3)
	f := &realFarm{t: t, dir: t.TempDir()}
	for i, name := range []string{"desk", "box"} {
		f.peers = append(f.peers, &realPeer{farm: f, dir: filepath.Join(f.dir, name), netns: namespaces[i]})
	}
	desk, box := f.peers[0], f.peers[1]
	var founded struct {
		Ticket string `json:"node_ticket"`
	}
	// A founder that does not know its port yet makes a ticket without addresses.
	founding := desk.command("init", "--name", "attic", "--machine", "desk", "--json", "--data-dir", desk.dir)
	founding.Env = append(founding.Environ(), "VIZPEER_P2P_LISTEN=/ip4/0.0.0.0/tcp/0")
	out, err := founding.Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &founded))
	desk.up()
	box.run(nil, "join", founded.Ticket, "--name", "box")
	box.up()
	online := func() bool {
		var peers []httpapi.Peer
		desk.run(&peers, "peer", "ls")
		n := 0
		for _, p := range peers {
			if p.State != "offline" {
				n++
			}
		}
		return n == 2
	}
	f.within(30*time.Second, "both are online", online)

	// A third has no ticket either: it finds the farm by itself, and asks.
	late := &realPeer{farm: f, dir: filepath.Join(f.dir, "late"), netns: namespaces[2]}
	asks := late.command("join", "--name", "late", "--json", "--data-dir", late.dir)
	var words strings.Builder
	asks.Stderr = &words
	joined := make(chan error, 1)
	go func() {
		_, err := asks.Output()
		joined <- err
	}()
	var waiting []httpapi.Applicant
	f.within(time.Minute, "it waits", func() bool {
		desk.run(&waiting, "peer", "ls", "--pending")
		return len(waiting) == 1
	})
	desk.run(nil, "peer", "approve", waiting[0].Words)
	require.NoError(t, <-joined)
	require.Contains(t, words.String(), "The farm attic was asked to let this machine in. Its words: "+waiting[0].Words)

	desk.kill()
	for _, step := range []string{"addr flush dev eth0", "addr add 10.91.0.77/24 dev eth0", "route add default dev eth0"} {
		require.NoError(t, exec.Command("ip", append([]string{"-n", namespaces[0]}, strings.Fields(step)...)...).Run())
	}
	desk.up()
	f.within(time.Minute, "both are online again", online)
}
