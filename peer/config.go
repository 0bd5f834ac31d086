package peer

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p"

	"vizpeer/blobs/swarm"
	"vizpeer/lease"
)

// Config says where a peer keeps its data, where it listens, and what it offers.
// The zero value of every field but DataDir is a default.
type Config struct {
	// DataDir holds everything the peer knows. One process uses it at a time.
	DataDir string
	// P2PListen are multiaddrs to listen on for other peers; port 0 picks a free
	// one. Default: port 8788 on TCP and QUIC, on every interface.
	P2PListen []string
	// APIListen are the addresses of the HTTP API; port 0 picks a free one. Those
	// that other machines reach speak HTTPS. Default: 127.0.0.1:8787.
	APIListen []string
	// APINames are names and addresses that others call this machine by over HTTPS,
	// beside its own. An admin must allow them, unless the machine is an admin's.
	APINames []string
	// TrustedProxies are those that may say whom they speak for (X-Forwarded-For).
	TrustedProxies []netip.Prefix
	// APIRate is how many requests a second one client address may make; 0: 50.
	APIRate int
	// Blender are paths of Blender builds beside those found by themselves.
	Blender []string
	// Labels are matched with the labels that a job asks for.
	Labels []string
	// Slots is how many attempts to make at once on the CPU, beside one on each GPU; 0 is one where a Blender is
	// found.
	Slots int
	// NoWork keeps this machine from rendering.
	NoWork bool
	// NoFetch keeps it from taking Blenders that the farm offers.
	NoFetch bool
	// Quota is the most, in bytes, that the content store may take on the disk; 0 is
	// the store's own default. Of it, High and Low are the shares from which, and
	// down to which, the least recently used is let go; 0 as well.
	Quota     int64
	High, Low float64
	// MinFree is how many bytes of the disk the store leaves free; 0: 256 MiB.
	MinFree int64
	// Limits are of what people submit while this machine leads the queue; the zero
	// value is the default of each.
	Limits lease.Limits
	// Stable is how long a standby must be up before it votes, and Replace how long a
	// voter may be away before a standby votes in its place, while this machine leads; 0:
	// 1 and 10 minutes.
	Stable, Replace time.Duration
	// Caps limit what is sent to and taken from other peers; the zero value does not.
	Caps Caps
	// SpotNotice is where the word comes from that this machine will be taken away, as
	// package spot explains; "" where it will not.
	SpotNotice string
	// Relay says whether this machine passes on what members behind a NAT say to each
	// other; "" is [RelayAuto].
	Relay Relay
	// Announce are multiaddrs that others reach this machine by, beside those that it
	// finds out itself: a name, or a port that a router forwards.
	Announce []string
	// NoPortMapping keeps it from asking its router to forward its ports (UPnP, NAT-PMP).
	NoPortMapping bool
	// NoNAT keeps all that reaches beyond the local network from running, for farms
	// whose network is simulated.
	NoNAT bool
	// NoMDNS keeps it from finding peers, and being found, on the local network.
	NoMDNS bool
	// Version is the program's, for people.
	Version string
	// HostOptions are added to those of the libp2p host, for farms whose network
	// is simulated.
	HostOptions []libp2p.Option
	// Logger takes what an operator may want to read; nil discards it.
	Logger *slog.Logger
}

// Caps and Hours are those of package swarm, which explains them.
type (
	Caps  = swarm.Caps
	Hours = swarm.Hours
)

// DefaultAPI and DefaultPort are where peers listen unless told otherwise.
const (
	DefaultAPI  = "127.0.0.1:8787"
	DefaultPort = 8788
)

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MinFree == 0 {
		c.MinFree = minFree
	}
	if len(c.APIListen) == 0 {
		c.APIListen = []string{DefaultAPI}
	}
	if len(c.P2PListen) == 0 {
		c.P2PListen = []string{
			fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", DefaultPort), fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1", DefaultPort),
			fmt.Sprintf("/ip6/::/tcp/%d", DefaultPort), fmt.Sprintf("/ip6/::/udp/%d/quic-v1", DefaultPort),
		}
	}
	return c
}

// DefaultDataDir is where data lives unless told otherwise: a folder of the
// user's own on Linux and macOS, and of the machine's on Windows.
func DefaultDataDir() (string, error) {
	if d := os.Getenv("VIZPEER_DATA_DIR"); d != "" {
		return filepath.Abs(d)
	}
	if runtime.GOOS == "windows" {
		if d := os.Getenv("ProgramData"); d != "" {
			return filepath.Join(d, "vizpeer"), nil
		}
		return "", fmt.Errorf("no data folder: ProgramData is not set; use --data-dir")
	}
	home, err := os.UserHomeDir()
	switch {
	case runtime.GOOS == "darwin" && err == nil:
		return filepath.Join(home, "Library", "Application Support", "vizpeer"), nil
	case os.Getenv("XDG_DATA_HOME") != "":
		return filepath.Join(os.Getenv("XDG_DATA_HOME"), "vizpeer"), nil
	case err == nil:
		return filepath.Join(home, ".local", "share", "vizpeer"), nil
	}
	return "", fmt.Errorf("no data folder: %w; use --data-dir", err)
}
