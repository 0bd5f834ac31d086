package authz

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Limits of the farm's CA and of what it certifies.
const (
	MaxCA        = 8       // certificates that the roster holds
	maxCABytes   = 4 << 10 // of one
	MaxCertNames = 64      // names and addresses in one certificate
)

// Trust adds the certificate of a CA to those that the farm's machines and people go
// by: of a farm that had none, or of one whose CA was lost. The oldest are never
// dropped, so that what was pinned stays good.
type Trust struct {
	CA []byte `json:"ca"` // DER; whoever proposes it has looked into it
}

// checkCA goes by size alone: all coordinators must come to the same end, and what
// parses may change from release to release.
func checkCA(der []byte) error {
	if len(der) == 0 || len(der) > maxCABytes {
		return fmt.Errorf("a CA certificate of %d bytes is not possible: %d at most", len(der), maxCABytes)
	}
	return nil
}

func (r *Roster) trust(t Trust) ([]Event, error) {
	if err := checkCA(t.CA); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(r.ca, func(old []byte) bool { return bytes.Equal(old, t.CA) }) {
		return nil, nil
	}
	if len(r.ca) >= MaxCA {
		return nil, fmt.Errorf("the farm has %d CA certificates, and no room for more", MaxCA)
	}
	r.ca = append(slices.Clone(r.ca), t.CA)
	return []Event{{Type: CATrusted}}, nil
}

// CA lists the certificates, in DER, that the certificates of the farm's HTTPS
// listeners lead to. They are no secret. The slices are for reading only.
func (d *directory) CA() [][]byte { return slices.Clone(d.ca) }

// certLabel is what a label begins with that lets its machine have a certificate for
// the name or address behind it. Like all labels with a colon it is an admin's to grant.
const certLabel = "name:"

// CertNames sorts the names and addresses that a member asks a certificate for into
// those that it may have and, with the reason, those that it may not. It may have
//
//   - localhost and loopback addresses, which lead nowhere else;
//   - its name in the roster, if that is one plain word and no other member had it before;
//   - proven: the addresses that it was seen at by whoever issues the certificate;
//   - what an admin granted it with a label "name:…", and whatever it likes if its own
//     role is admin.
//
// No other machine can so be made to look like it, nor any site whose name has a dot. A
// name of one word is a machine's own choice, and may be that of something else on the
// local network: whoever goes by the farm's CA should go by it for the farm alone.
func (d *directory) CertNames(id PeerID, asked []string, proven []netip.Addr) (granted []string, refused []error) {
	m, ok := d.Acting(id) // as an admin's machine only while it is one
	if !ok {
		return nil, []error{ErrNotMember}
	}
	if len(asked) > MaxCertNames {
		refused = append(refused, fmt.Errorf("a certificate for %d names is not possible: the first %d are looked at", len(asked), MaxCertNames))
		asked = asked[:MaxCertNames]
	}
	for _, name := range asked {
		name, err := CheckCertName(name)
		switch {
		case err != nil:
			refused = append(refused, err)
		case slices.Contains(granted, name):
		case d.mayBe(m, name, proven):
			granted = append(granted, name)
		default:
			refused = append(refused, fmt.Errorf("%s may not call itself %s over HTTPS: an admin allows it with `vizpeer peer label %s %s%s`", m.Name, name, m.ID.Short(), certLabel, name))
		}
	}
	return granted, refused
}

func (d *directory) mayBe(m Member, name string, proven []netip.Addr) bool {
	if m.Role == Admin || name == "localhost" || slices.ContainsFunc(m.Labels, func(l string) bool { return strings.EqualFold(l, certLabel+name) }) {
		return true
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.IsLoopback() || slices.Contains(proven, addr)
	}
	if name != strings.ToLower(m.Name) || strings.Contains(name, ".") {
		return false
	}
	for _, other := range d.members {
		if other.ID != m.ID && strings.EqualFold(other.Name, m.Name) &&
			(other.named().Before(m.named()) || other.named().Equal(m.named()) && other.ID < m.ID) {
			return false
		}
	}
	return true
}

// CheckCertName reads the name of a host or an address, as it may stand in a
// certificate of the farm: no wildcard, in lower case, an address in its one form.
func CheckCertName(name string) (string, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		if addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "" {
			return "", fmt.Errorf("%q is no address that a machine can be reached at", name)
		}
		return addr.Unmap().String(), nil
	}
	bad := fmt.Errorf("%.64q is no host name: use letters, digits, dashes and dots, such as render.example.org", name)
	if name == "" || len(name) > 253 {
		return "", bad
	}
	name = strings.ToLower(name)
	words := strings.Split(name, ".")
	for _, w := range words {
		if w == "" || len(w) > 63 || w[0] == '-' || w[len(w)-1] == '-' || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", bad
		}
	}
	// What looks like an address in some program's eyes, such as 127.1, is no name.
	if strings.Trim(words[len(words)-1], "0123456789") == "" {
		return "", errors.New("a host name does not end with a number: " + bad.Error())
	}
	return name, nil
}
