package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/pflag"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
)

// load fills what no flag gave, as [fill] does, and refuses what no peer could
// run with.
func (s *settings) load(flags *pflag.FlagSet, dir string, getenv func(string) string) error {
	origin, err := fill(flags, dir, getenv)
	if err != nil {
		return err
	}
	err = s.check()
	if err == nil {
		return nil
	}
	// The message speaks of flags; what was typed stands elsewhere.
	name, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "--"), " ")
	if place := origin[name]; place != "" {
		return usagef("%s: %w", place, err)
	}
	return err
}

// minQuota is the least, in bytes, that a store can work in.
const minQuota = 64 << 20

func (s *settings) check() error {
	if s.slots < 0 || s.slots > lease.MaxSlots {
		return usagef("--slots %d is not possible: use 1 to %d, or 0 for one where a Blender is found", s.slots, lease.MaxSlots)
	}
	if s.spotNotice != "" {
		if err := peer.CheckSpotNotice(s.spotNotice); err != nil {
			return usagef("--spot-notice %w", err)
		}
	}
	if err := checkLabels(s.labels); err != nil {
		return err
	}
	for _, l := range s.labels {
		if authz.OnlyGranted(l) {
			return usagef("--label %s is not a machine's own to give, as it may mean a licence or a calibration: an admin grants it with `vizpeer peer label NAME %s`", l, l)
		}
	}
	for _, a := range s.apiListen {
		if err := checkAPIListen(a); err != nil {
			return err
		}
	}
	for _, n := range s.apiNames {
		if _, err := authz.CheckCertName(n); err != nil {
			return usagef("--api-name: %w", err)
		}
	}
	if _, err := s.trustedProxies(); err != nil {
		return err
	}
	for _, a := range s.p2pListen {
		if err := checkP2PListen(a); err != nil {
			return err
		}
	}
	if r := peer.Relay(s.relay); r != peer.RelayAuto && r != peer.RelayOn && r != peer.RelayOff {
		return usagef("--relay %q is not possible: use auto, on or off", s.relay)
	}
	for _, a := range s.announce {
		if err := checkAnnounce(a); err != nil {
			return err
		}
	}
	for flag, n := range map[string]int{"api-rate": s.apiRate, "max-tasks": s.maxTasks, "max-open-jobs": s.maxOpenJobs, "max-open-tasks": s.maxOpenTasks} {
		if n < 0 {
			return usagef("--%s %d is not possible: use 1 or more, or 0 for the default", flag, n)
		}
	}
	if s.cacheQuota != 0 && s.cacheQuota < minQuota {
		return usagef("--cache-quota %s is too small: give %s or more", &s.cacheQuota, bytesText(minQuota))
	}
	if s.cacheHigh != 0 && s.cacheLow != 0 && s.cacheLow > s.cacheHigh {
		return usagef("--cache-low %s is above --cache-high %s: what is let go begins at the high mark and ends at the low one", &s.cacheLow, &s.cacheHigh)
	}
	_, err := s.caps()
	return err
}

func checkLabels(labels []string) error {
	for _, l := range labels {
		if authz.CheckLabel(l) != nil {
			return usagef("--label %q is not possible: use 1 to 64 letters, digits and . _ : + -", l)
		}
	}
	return nil
}

func checkAPIListen(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return usagef("--api-listen %q is not an address and a port: write it like 127.0.0.1:8787", addr)
	}
	return nil
}

// trustedProxies are the networks of --trusted-proxy.
func (s *settings) trustedProxies() (out []netip.Prefix, err error) {
	for _, text := range s.proxies {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(text); err == nil {
				p, err = addr.Prefix(addr.BitLen())
			}
		}
		if err != nil || p.Bits() == 0 {
			return nil, usagef("--trusted-proxy %q is not possible: give an address or a network, such as 10.0.0.5 or 10.0.0.0/24", text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func checkP2PListen(addr string) error {
	m, err := multiaddr.NewMultiaddr(addr)
	has := func(protocol int) bool {
		_, err := m.ValueForProtocol(protocol)
		return err == nil
	}
	if err != nil || !has(multiaddr.P_IP4) && !has(multiaddr.P_IP6) || !has(multiaddr.P_TCP) && !has(multiaddr.P_QUIC_V1) {
		return usagef("--p2p-listen %q is not possible: write it like /ip4/0.0.0.0/tcp/8788 or /ip4/0.0.0.0/udp/8788/quic-v1", addr)
	}
	return nil
}

func checkAnnounce(addr string) error {
	m, err := multiaddr.NewMultiaddr(addr)
	if err == nil {
		var network string
		if network, _, err = manet.DialArgs(m); err == nil && network != "" && !strings.Contains(addr, "/p2p/") {
			return nil
		}
	}
	return usagef("--p2p-announce %q is not possible: write it like /ip4/203.0.113.5/tcp/8788, /ip4/203.0.113.5/udp/8788/quic-v1 or /dns4/render.example.org/tcp/8788", addr)
}

// checkName says what is wrong with the name that flag gives a farm or machine.
func checkName(flag, name string) error {
	switch {
	case name == "":
		return usagef("%s is empty: give a name such as attic", flag)
	case len(name) > authz.MaxName:
		return usagef("%s has %d bytes: use %d at most", flag, len(name), authz.MaxName)
	case !utf8.ValidString(name) || strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return usagef("%s %q is not possible: use printable characters, without spaces around them", flag, name)
	}
	return nil
}

// flagError is a flag's failure in plain words.
func flagError(err error) error {
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	return fmt.Errorf("--%s %q is not possible: %s", bad.GetFlag().Name, bad.GetValue(), wanted(bad.GetFlag().Value))
}

// wanted says what a flag takes.
func wanted(v pflag.Value) string {
	switch v.Type() {
	case "int", "int32":
		return "give a whole number such as 8"
	case "float64":
		return "give a number such as 12 or 1.5"
	case "duration":
		return "give a time such as 30m or 24h"
	case "bool":
		return "give true or false"
	case "size":
		return `give a number with its unit, such as "20 GiB" or "500 MB"`
	case "rate":
		return `give a number with its unit, such as "2 MB/s" or "16 Mbit/s"; 0 is no cap`
	case "percent":
		return `give a share from 1% to 100%, such as "90%"`
	}
	return "it cannot be read"
}
