package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// internet is a network of network namespaces: machines with addresses of their own, and
// machines behind routers that translate. Its addresses are such as the internet has,
// since vizpeer tells those from private ones; nothing of it leaves this machine, and all
// of it is gone when the test ends.
type internet struct {
	t      *testing.T
	prefix string // of its namespaces' names
	ports  int
}

// internets counts them: several may be there at once.
var internets atomic.Int32

// newInternet makes the network. It skips where that is not allowed.
func newInternet(t *testing.T) *internet {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command on this machine (package iproute2): it cannot make network namespaces")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft command on this machine (package nftables): it cannot translate addresses")
	}
	n := &internet{t: t, prefix: fmt.Sprintf("vz%d-%d", os.Getpid(), internets.Add(1))}
	if out, err := exec.Command("ip", "netns", "add", n.name("net")).CombinedOutput(); err != nil {
		t.Skipf("this machine makes no network namespaces: %s", out)
	}
	t.Cleanup(func() { n.ip("netns del " + n.name("net")) })
	if err := n.feed("net", "table inet probe {}\ndelete table inet probe\n"); err != nil {
		t.Skipf("this machine cannot translate addresses: %v", err)
	}
	n.ip("-n NS link add switch type bridge", "net")
	n.ip("-n NS link set switch up", "net")
	return n
}

func (n *internet) name(of string) string { return n.prefix + of }

// ip runs ip with these arguments, of which NS is the namespace given.
func (n *internet) ip(args string, ns ...string) {
	n.t.Helper()
	if len(ns) > 0 {
		args = strings.ReplaceAll(args, "NS", n.name(ns[0]))
	}
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	require.NoError(n.t, err, "ip %s: %s", args, out)
}

// feed gives rules to nft in a namespace.
func (n *internet) feed(ns, rules string) error {
	cmd := exec.Command("ip", "netns", "exec", n.name(ns), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// space makes a namespace and answers its name in full.
func (n *internet) space(name string) string {
	n.ip("netns add " + n.name(name))
	n.t.Cleanup(func() { n.ip("netns del " + n.name(name)) })
	n.ip("-n NS link set lo up", name)
	return n.name(name)
}

// plug connects a namespace with the internet, at an address such as 45.10.0.9.
func (n *internet) plug(name, addr string) {
	n.ports++
	port := fmt.Sprintf("port%d", n.ports)
	n.ip("-n NS link add "+port+" type veth peer name eth0 netns "+n.name(name), "net")
	n.ip("-n NS link set "+port+" master switch", "net")
	n.ip("-n NS link set "+port+" up", "net")
	n.ip("-n NS addr add "+addr+"/16 dev eth0", name)
	n.ip("-n NS link set eth0 up", name)
}

// unplug takes the cable out.
func (n *internet) unplug(name string) { n.ip("-n NS link del eth0", name) }

// renumber gives a namespace another address on the internet.
func (n *internet) renumber(name, addr string) {
	n.ip("-n NS addr flush dev eth0", name)
	n.ip("-n NS addr add "+addr+"/16 dev eth0", name)
}

// router makes a router that translates addresses, as a home's or an office's does: what
// is inside may speak to everybody, and nothing comes in that is no answer. One that is
// hostile gives each conversation a port of its own, which no hole can be punched through.
func (n *internet) router(name, addr string, hostile bool) {
	n.space(name)
	n.plug(name, addr)
	masquerade := "masquerade"
	if hostile {
		masquerade += " fully-random"
	}
	require.NoError(n.t, n.feed(name, `table ip home {
	chain out { type nat hook postrouting priority srcnat; oifname "eth0" `+masquerade+`; }
	chain in { type filter hook input priority filter; policy drop; ct state established,related accept; iifname != "eth0" accept; }
	chain through { type filter hook forward priority filter; policy drop; ct state established,related accept; iifname != "eth0" accept; }
}
`))
	out, err := exec.Command("ip", "netns", "exec", n.name(name), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward").CombinedOutput()
	require.NoError(n.t, err, "%s", out)
}

// forward has a router forward vizpeer's port to a machine inside.
func (n *internet) forward(router, to string) {
	n.t.Helper()
	require.NoError(n.t, n.feed(router, `table ip forwarded {
	chain in { type nat hook prerouting priority dstnat; iifname "eth0" tcp dport 8788 dnat to `+to+`; iifname "eth0" udp dport 8788 dnat to `+to+`; }
}
add rule ip home through ct status dnat accept
`))
}

// closed checks from a namespace that nobody gets in at an address from outside.
func (n *internet) closed(from, addr string) {
	n.t.Helper()
	try := exec.Command("ip", "netns", "exec", n.name(from), "timeout", "1", "bash", "-c", "echo > /dev/tcp/"+addr+"/8788")
	require.Error(n.t, try.Run(), "%s lets others in", addr)
}

// inside puts a namespace behind a router, at an address such as 192.168.1.2.
func (n *internet) inside(name, router, addr string) {
	n.ports++
	port := fmt.Sprintf("lan%d", n.ports)
	gateway := addr[:strings.LastIndex(addr, ".")+1] + "1"
	n.ip("-n NS link add "+port+" type veth peer name eth0 netns "+n.name(name), router)
	n.ip("-n NS addr add "+gateway+"/24 dev "+port, router)
	n.ip("-n NS link set "+port+" up", router)
	n.ip("-n NS addr add "+addr+"/24 dev eth0", name)
	n.ip("-n NS link set eth0 up", name)
	n.ip("-n NS route add default via "+gateway, name)
}
