package httpapi

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// clientHeader tells the leader where the caller is that a peer passes on a request of.
// It is believed on members' streams only, and of callers nowhere.
const clientHeader = "Vizpeer-Client"

type addrKey struct{}

// clientAddr is where the caller of ctx's request is: the other end of its connection or,
// behind a trusted proxy, what that says; loopback for programs of this machine. On the
// leader it is what the peer says that the request came to. The zero Addr is not known.
func clientAddr(ctx context.Context) netip.Addr {
	addr, _ := ctx.Value(addrKey{}).(netip.Addr)
	return addr
}

// stateClient puts the caller's address into a request to the leader.
func stateClient(h http.Header, c caller) {
	h.Del(clientHeader)
	if c.addr.IsValid() {
		h.Set(clientHeader, c.addr.String())
	}
}

// findClient finds out what clientAddr then tells.
func (s *Server) findClient(from side, r *http.Request) netip.Addr {
	if from == stream {
		addr, err := netip.ParseAddr(r.Header.Get(clientHeader))
		if err != nil || addr.Zone() != "" {
			return netip.Addr{}
		}
		return addr.Unmap()
	}
	addr := remoteAddr(r)
	// Each proxy adds the address that it was called from at the end: what stands before
	// the last one that is not trusted may be anything.
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.proxy(addr); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil || hop.Zone() != "" {
			break
		}
		addr = hop.Unmap()
	}
	if addr.IsValid() && addr == remoteAddr(r) && addr == ownAddr(r) {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}) // this machine, by another of its names
	}
	return addr
}

// ownAddr is this end of the connection.
func ownAddr(r *http.Request) netip.Addr {
	tcp, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// remoteAddr is the other end of the connection.
func remoteAddr(r *http.Request) netip.Addr {
	remote, _ := r.Context().Value(remoteKey{}).(net.Addr)
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// proxy tells whether an address is a trusted proxy's.
func (s *Server) proxy(a netip.Addr) bool {
	for _, p := range s.cfg.Proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// forwarded tells whether a request says that it came through a proxy.
func forwarded(r *http.Request) bool {
	return len(r.Header.Values("X-Forwarded-For")) > 0 || len(r.Header.Values("Forwarded")) > 0
}
