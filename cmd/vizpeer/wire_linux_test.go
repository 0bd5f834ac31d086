package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// wires is a network of n machines, each a network namespace of its own, between which
// this process itself carries every packet: so each direction of each link can be cut, be
// slow, or lose packets, on any kernel that has namespaces and TUN devices.
type wires struct {
	t          *testing.T
	namespaces []string
	devices    []*os.File
	links      [][]*wire // from, to
	all        sync.WaitGroup

	passed, lost, cut atomic.Int64 // packets
}

// wire is one direction of a link.
type wire struct {
	state atomic.Pointer[wireState]
	queue chan packet
}

// wireState is how a wire is; the zero value is as it should be.
type wireState struct {
	cut           bool
	delay, jitter time.Duration
	loss          float64 // share of packets
}

type packet struct {
	data []byte
	due  time.Time
}

// machineAddr is the address of machine i.
func machineAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 93, 0, byte(i + 1)}) }

// maxPacket is the MTU of the machines' devices, in bytes.
const maxPacket = 1500

// newWires makes the network, which is gone when the test ends. It skips where that is
// not allowed.
func newWires(t *testing.T, n int) *wires {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command on this machine (package iproute2): it cannot make network namespaces")
	}
	ip := func(line string, args ...any) error {
		out, err := exec.Command("ip", strings.Fields(fmt.Sprintf(line, args...))...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip "+line+": %w: %s", append(args, err, out)...)
		}
		return nil
	}
	w := &wires{t: t, links: make([][]*wire, n)}
	for i := range n {
		ns := fmt.Sprintf("vzwire%d", i)
		if err := ip("netns add %s", ns); err != nil {
			t.Skipf("this machine makes no network namespaces: %v", err)
		}
		t.Cleanup(func() { require.NoError(t, ip("netns del %s", ns)) })
		w.namespaces = append(w.namespaces, ns)
		device, err := openTUN(ns)
		if err != nil {
			t.Skipf("this machine makes no TUN devices: %v", err)
		}
		w.devices = append(w.devices, device)
		for _, step := range []string{"link set %s netns %[1]s", "-n %s addr add " + machineAddr(i).String() + "/24 dev %[1]s",
			"-n %s link set %[1]s mtu " + fmt.Sprint(maxPacket) + " multicast on up", "-n %s link set lo up", "-n %s route add default dev %[1]s"} {
			require.NoError(t, ip(step, ns))
		}
		for range n {
			l := &wire{queue: make(chan packet, 4096)}
			l.state.Store(&wireState{})
			w.links[i] = append(w.links[i], l)
		}
	}
	for i := range n {
		w.all.Go(func() { w.carry(i) })
		for k := range n {
			w.all.Go(func() { w.deliver(w.links[i][k], w.devices[k]) })
		}
	}
	t.Cleanup(func() {
		for _, d := range w.devices {
			d.Close()
		}
		w.all.Wait()
	})
	return w
}

// openTUN makes a network device whose packets are read from and written to the file.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// carry takes what machine i sends to where it is addressed.
func (w *wires) carry(i int) {
	defer func() {
		for _, l := range w.links[i] {
			close(l.queue)
		}
	}()
	last := make([]time.Time, len(w.links[i]))
	for buf := make([]byte, 1<<16); ; {
		n, err := w.devices[i].Read(buf)
		if err != nil {
			return
		}
		if n < 20 || buf[0]>>4 != 4 {
			continue
		}
		data := append([]byte(nil), buf[:n]...)
		to := netip.AddrFrom4([4]byte(data[16:20]))
		for k, l := range w.links[i] {
			if k == i || to != machineAddr(k) && !to.IsMulticast() {
				continue
			}
			s := l.state.Load()
			switch {
			case s.cut:
				w.cut.Add(1)
				continue
			case s.loss > 0 && rand.Float64() < s.loss:
				w.lost.Add(1)
				continue
			}
			due := time.Now().Add(s.delay)
			if s.jitter > 0 {
				due = due.Add(rand.N(s.jitter))
			}
			if due.Before(last[k]) { // a wire keeps the order
				due = last[k]
			}
			last[k] = due
			select {
			case l.queue <- packet{data, due}:
				w.passed.Add(1)
			default:
				w.lost.Add(1)
			}
		}
	}
}

func (w *wires) deliver(l *wire, to *os.File) {
	for p := range l.queue {
		if wait := time.Until(p.due); wait > 0 {
			time.Sleep(wait)
		}
		_, _ = to.Write(p.data) // what cannot be taken is lost, as on any network
	}
}

// set makes the wires from one machine to another be so.
func (w *wires) set(from, to int, s wireState) { w.links[from][to].state.Store(&s) }

// heal makes all wires as they should be.
func (w *wires) heal() {
	for i := range w.links {
		for k := range w.links[i] {
			w.set(i, k, wireState{})
		}
	}
}

// dialer dials as a program on machine i does.
func (w *wires) dialer(i int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		problem := inNamespace(w.namespaces[i], func() {
			c, err = (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, addr)
		})
		if problem != nil {
			return nil, problem
		}
		return c, err
	}
}

// inNamespace runs do on a thread in a network namespace. Sockets stay in the one where
// they were made.
func inNamespace(name string, do func()) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	there, err := os.Open("/var/run/netns/" + name)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	do()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		return err // the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return nil
}

// What the chaos does to links is done to them, and to no other.
func TestWires(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the network of the chaos is left out with it")
	}
	w := newWires(t, 3)
	listen := func(i int) *net.UDPConn {
		var c *net.UDPConn
		require.NoError(t, inNamespace(w.namespaces[i], func() {
			var err error
			c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 9000})
			require.NoError(t, err)
		}))
		t.Cleanup(func() { c.Close() })
		return c
	}
	conns := []*net.UDPConn{listen(0), listen(1), listen(2)}
	passes := func(from, to int) (bool, time.Duration) {
		buf, began := make([]byte, 100), time.Now()
		_, err := conns[from].WriteToUDP([]byte(fmt.Sprint(began)), &net.UDPAddr{IP: machineAddr(to).AsSlice(), Port: 9000})
		require.NoError(t, err)
		require.NoError(t, conns[to].SetReadDeadline(began.Add(300*time.Millisecond)))
		n, _, err := conns[to].ReadFromUDP(buf)
		return err == nil && string(buf[:n]) == fmt.Sprint(began), time.Since(began)
	}
	requirePasses := func(from, to int, want bool) {
		t.Helper()
		got, _ := passes(from, to)
		require.Equal(t, want, got, "%d to %d", from, to)
	}
	requirePasses(0, 1, true)
	w.set(0, 1, wireState{cut: true})
	requirePasses(0, 1, false)
	requirePasses(1, 0, true)
	requirePasses(0, 2, true)
	w.set(0, 1, wireState{loss: 1})
	requirePasses(0, 1, false)
	w.set(0, 1, wireState{delay: 100 * time.Millisecond})
	ok, took := passes(0, 1)
	require.True(t, ok)
	require.GreaterOrEqual(t, took, 100*time.Millisecond)
	w.heal()
	requirePasses(0, 1, true)
}
