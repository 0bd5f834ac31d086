package peer

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"vizpeer/authz"
	"vizpeer/peer/cert"
)

// TicketLife is how long a ticket admits machines unless its maker says
// otherwise.
const TicketLife = 24 * time.Hour

// Founding names a new farm and its first machine.
type Founding struct {
	FarmName    string
	MachineName string // "": the host's name
}

// Founded is what a new farm's founder must write down: none of it is shown
// again, and none of it is kept in a readable form but the recovery file.
type Founded struct {
	Farm          authz.FarmID
	Peer          authz.PeerID
	AdminUser     string
	AdminPassword string
	NodeTicket    string
	OperatorKey   string
	RecoveryFile  string
	CAFingerprint string // no secret
}

// Init founds a farm in cfg.DataDir. No peer needs to run. It fails with
// [ErrMember] where the folder belongs to a farm, and changes nothing then.
func Init(cfg Config, f Founding) (Founded, error) {
	cfg = cfg.withDefaults()
	d := dataDir(cfg.DataDir)
	if m, err := d.membership(); err == nil {
		return Founded{}, fmt.Errorf("%w, %s: start it with `vizpeer up`, or use another --data-dir", ErrMember, m.Farm)
	} else if !errors.Is(err, ErrNotMember) {
		return Founded{}, err
	}
	if err := d.create(); err != nil {
		return Founded{}, err
	}
	name, err := machineName(f.MachineName)
	if err != nil {
		return Founded{}, err
	}
	identity, err := d.identity()
	if err != nil {
		return Founded{}, err
	}
	id, err := peer.IDFromPrivateKey(identity)
	if err != nil {
		return Founded{}, err
	}
	key, err := authz.NewFarmKey(rand.Reader)
	if err != nil {
		return Founded{}, err
	}
	now := time.Now()
	out := Founded{Farm: key.ID(), Peer: authz.PeerID(id.String()), AdminUser: "admin", AdminPassword: password(), RecoveryFile: d.path(RecoveryFile)}
	found := authz.Found{Farm: out.Farm, Name: f.FarmName, Charter: key.SignCharter(out.Peer, 1), Founder: out.Peer, FounderName: name}
	if found.Admin, err = authz.NewAccount(rand.Reader, out.AdminUser, authz.Admin, out.AdminPassword); err != nil {
		return Founded{}, err
	}
	found.Admin.MustChange = true
	ticket, err := authz.NewTicket(rand.Reader, out.Farm, authz.Node, false, reachable(slices.Concat(cfg.P2PListen, cfg.Announce), id))
	if err != nil {
		return Founded{}, err
	}
	out.NodeTicket = ticket.String()
	found.NodeTicket = ticket.Record(1, now.Add(TicketLife), out.AdminUser)
	if out.OperatorKey, found.OperatorKey, err = authz.NewKey(rand.Reader, "operator", authz.Operator, now); err != nil {
		return Founded{}, err
	}
	token, machineKey, err := authz.NewKey(rand.Reader, out.AdminUser, authz.Admin, now)
	if err != nil {
		return Founded{}, err
	}
	machineKey.Peer = out.Peer
	found.MachineKey = machineKey
	ca, err := cert.NewRoot("vizpeer "+string(out.Farm), now)
	if err != nil {
		return Founded{}, err
	}
	found.CA = ca.Root().Raw
	out.CAFingerprint = cert.Fingerprint(found.CA)
	caKey, err := ca.PrivateKey()
	if err != nil {
		return Founded{}, err
	}
	caFile, err := ca.Encode()
	if err != nil {
		return Founded{}, err
	}
	genesis := authz.Command{At: now.UTC(), Found: &found}
	if _, err := authz.NewRoster().Apply(genesis); err != nil {
		return Founded{}, err
	}
	// membership.json makes the folder a farm's: it comes last, so that an
	// interrupted init can be run again.
	err = errors.Join(
		d.write(RecoveryFile, authz.AppendCA(key.EncodeRecovery(), caKey), 0o600),
		d.write(caKeyFile, caFile, 0o600),
		d.write(caFileName, cert.Bundle([][]byte{found.CA}), 0o644),
		d.write("token", []byte(token+"\n"), 0o600),
		d.writeJSON("genesis.json", genesis, 0o600),
	)
	if err != nil {
		return Founded{}, err
	}
	return out, d.writeJSON("membership.json", membership{Farm: out.Farm, Name: name, NoWork: cfg.NoWork}, 0o600)
}

// machineName is the name that people know the machine by.
func machineName(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "", fmt.Errorf("this machine has no host name: give it one with --name")
	}
	host, _, _ = strings.Cut(host, ".")
	return host[:min(len(host), authz.MaxName)], nil
}

func password() string {
	b := make([]byte, 10)
	_, _ = rand.Read(b) // crypto/rand never fails
	s := hex.EncodeToString(b)
	return s[:5] + "-" + s[5:10] + "-" + s[10:15] + "-" + s[15:]
}

// reachable turns listen addresses into those under which others may reach this
// machine, for a ticket that is made before the peer listens. Addresses whose
// port is not known yet are left out: the machine is then found on the local
// network.
func reachable(listen []string, id peer.ID) []string {
	var out []string
	for _, text := range listen {
		m, err := multiaddr.NewMultiaddr(text)
		if err != nil || strings.Contains(text, "/tcp/0") || strings.Contains(text, "/udp/0") {
			continue
		}
		expanded := []multiaddr.Multiaddr{m}
		if manet.IsIPUnspecified(m) {
			own, err := manet.InterfaceMultiaddrs()
			if err != nil {
				continue
			}
			if expanded, err = manet.ResolveUnspecifiedAddress(m, own); err != nil {
				continue
			}
		}
		for _, a := range expanded {
			if ip, err := manet.ToIP(a); err == nil && !ip.IsLinkLocalUnicast() {
				out = append(out, a.String()+"/p2p/"+id.String())
			}
		}
	}
	return bestFirst(out)
}

// ticketAddrs is how many addresses a ticket carries: it is copied by hand, and
// whoever cannot use the first few finds the coordinator on the local network.
const ticketAddrs = 4

// bestFirst orders addresses by how likely another machine can use them, and
// keeps what a ticket should carry. Loopback is for farms on one machine.
func bestFirst(addrs []string) []string {
	var lan, far, loop []string
	for _, a := range addrs {
		m, err := multiaddr.NewMultiaddr(a)
		if err != nil {
			continue
		}
		if ip, err := manet.ToIP(m); err == nil && ip.IsLoopback() {
			loop = append(loop, a)
		} else if err != nil || circuit(m) || manet.IsPublicAddr(m) { // its own, a name, or one through a relay
			far = append(far, a)
		} else {
			lan = append(lan, a)
		}
	}
	// Two places are kept for machines elsewhere, and one for another peer on this machine.
	keep := ticketAddrs - min(len(loop), 1)
	far = far[:min(len(far), max(2, keep-len(lan)))]
	lan = lan[:min(len(lan), keep-len(far))]
	all := slices.Concat(lan, far, loop)
	return all[:min(len(all), ticketAddrs)]
}
