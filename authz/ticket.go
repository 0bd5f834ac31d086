package authz

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Limits of a ticket's text.
const (
	MaxTicketAddrs    = 8   // coordinators' addresses in one ticket
	MaxTicketAddrSize = 255 // bytes of one address: its length is one byte
)

const (
	ticketPrefix     = "vzt1"
	ticketSecretSize = 16
	ticketSumSize    = 4
	ticketIDSize     = 5 // bytes of the hash that name one
	ticketMinSize    = 2 + farmHashSize + ticketSecretSize + 1 + 1 + 1 + ticketSumSize
	ticketMaxSize    = ticketMinSize + MaxTicketAddrs*(2+MaxTicketAddrSize)
	// maxTicketInput leaves room for the line breaks of a wrapped copy.
	maxTicketInput = 8 << 10
)

// ErrTicketText is wrapped by every error of [ParseTicket]: the text is not a
// ticket, whatever the farm knows.
var ErrTicketText = errors.New("this is not a whole ticket")

// Ticket is the one-time secret that admits a machine, with what the machine
// needs to find the farm. Its role and coordinator flag are for people to read:
// what the ticket grants stands in the farm's roster.
type Ticket struct {
	Farm        FarmID
	Role        Role
	Coordinator bool
	// Addrs are multiaddrs of coordinators to ask, in text with /p2p/ID.
	Addrs  []string
	secret [ticketSecretSize]byte
}

// NewTicket makes a ticket with a new secret of 16 bytes read from random, which
// is rand.Reader of crypto/rand outside tests.
func NewTicket(random io.Reader, farm FarmID, role Role, coordinator bool, addrs []string) (Ticket, error) {
	t := Ticket{Farm: farm, Role: role, Coordinator: coordinator, Addrs: slices.Clone(addrs)}
	if err := t.validate(); err != nil {
		return Ticket{}, err
	}
	if _, err := io.ReadFull(random, t.secret[:]); err != nil {
		return Ticket{}, fmt.Errorf("making a ticket: %w", err)
	}
	return t, nil
}

func (t Ticket) validate() error {
	if _, err := t.Farm.hash(); err != nil {
		return err
	}
	if _, err := ParseRole(string(t.Role)); err != nil {
		return err
	}
	if len(t.Addrs) > MaxTicketAddrs {
		return fmt.Errorf("a ticket holds %d addresses at most, not %d", MaxTicketAddrs, len(t.Addrs))
	}
	for _, a := range t.Addrs {
		if !strings.HasPrefix(a, "/") || len(a) > MaxTicketAddrSize || !printable(a) {
			return fmt.Errorf("%.64q is not an address that a ticket can hold: use a multiaddr of %d bytes at most", a, MaxTicketAddrSize)
		}
	}
	return nil
}

// Hash is what the farm remembers of the ticket.
func (t Ticket) Hash() Hash { return hashSecret(t.secret[:]) }

// Record is what the farm is told to remember: the ticket admits uses machines
// until it expires. by is the user who asked for it.
func (t Ticket) Record(uses int, expires time.Time, by string) TicketRecord {
	return TicketRecord{Hash: t.Hash(), Role: t.Role, Coordinator: t.Coordinator, Uses: uses, ExpiresAt: canonical(expires), By: by}
}

// Proves tells, in constant time, whether the ticket is the one of that hash.
func (t Ticket) Proves(h Hash) bool { return h.matches(t.secret[:]) }

// String is the whole ticket, secret included: print it once, to whoever asked
// for it, and never log it.
func (t Ticket) String() string {
	// size (2) | farm (20) | secret (16) | role (1) | flags (1) | number of
	// addresses (1) | each: how many bytes its end shares with the one before
	// it (1), size of the rest (1), the rest | checksum of all before it (4).
	// Addresses of one machine end alike, and a ticket is copied by hand.
	// The size comes first so that a cut ticket is told from a mistyped one.
	farm, err := t.Farm.hash()
	if err != nil {
		return ""
	}
	b := make([]byte, 2, ticketMaxSize)
	b = append(b, farm...)
	b = append(b, t.secret[:]...)
	b = append(b, byte(slices.Index(Roles(), t.Role)))
	var flags byte
	if t.Coordinator {
		flags |= 1
	}
	b = append(b, flags, byte(len(t.Addrs)))
	last := ""
	for _, a := range t.Addrs {
		shared := commonEnd(last, a)
		b = append(b, byte(shared), byte(len(a)-shared))
		b = append(b, a[:len(a)-shared]...)
		last = a
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)+ticketSumSize))
	sum := sha256.Sum256(b)
	return ticketPrefix + base32Text.EncodeToString(append(b, sum[:ticketSumSize]...))
}

// commonEnd is how many bytes a and b have in common at their ends.
func commonEnd(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	return n
}

// LogValue names the farm and hides the secret.
func (t Ticket) LogValue() slog.Value {
	return slog.StringValue(fmt.Sprintf("a %s ticket of farm %s", t.Role, t.Farm))
}

// GoString is LogValue's text: %#v must not print the secret either.
func (t Ticket) GoString() string { return t.LogValue().String() }

// ParseTicket reads a ticket as a person pasted it: white space, even inside, is
// taken for a wrapped line. Its errors say what is wrong with the text and never
// quote it; they wrap [ErrTicketText].
func ParseTicket(s string) (Ticket, error) {
	fail := func(format string, args ...any) (Ticket, error) {
		return Ticket{}, fmt.Errorf("%w: %s", ErrTicketText, fmt.Sprintf(format, args...))
	}
	if len(s) > maxTicketInput {
		return fail("it has %d characters, more than any ticket", len(s))
	}
	text := strings.Join(strings.Fields(s), "")
	body, ok := strings.CutPrefix(text, ticketPrefix)
	switch {
	case text == "":
		return fail("it is empty; paste the line that `vizpeer invite` printed")
	case strings.HasPrefix(text, tokenPrefix):
		return fail("it is an API key; paste the line that `vizpeer invite` printed")
	case !ok && strings.HasPrefix(ticketPrefix, text):
		return fail("it is cut short; copy the whole line")
	case !ok && strings.HasPrefix(text, "vzt"):
		return fail("it was made by another version of vizpeer; use the same version on both machines")
	case !ok:
		return fail("a ticket begins with %q; paste the line that `vizpeer invite` printed", ticketPrefix)
	case strings.Trim(body, "abcdefghijklmnopqrstuvwxyz234567") != "":
		return fail("it holds characters that no ticket has; copy the whole line and nothing else")
	case len(body) < 8:
		return fail("it is cut short; copy the whole line")
	}
	head, err := base32Text.DecodeString(body[:8])
	if err != nil {
		return fail("it is mistyped; copy the whole line")
	}
	size := int(binary.BigEndian.Uint16(head))
	if size < ticketMinSize || size > ticketMaxSize {
		return fail("it is mistyped near its beginning; copy the whole line")
	}
	switch want := base32Text.EncodedLen(size); {
	case len(body) < want:
		return fail("it is cut short: %d of %d characters are here; copy the whole line", len(ticketPrefix)+len(body), len(ticketPrefix)+want)
	case len(body) > want:
		return fail("it has %d characters too many; copy that line and nothing else", len(body)-want)
	}
	b, err := base32Text.DecodeString(body)
	if err != nil {
		return fail("it is mistyped; copy the whole line")
	}
	b, sum := b[:size-ticketSumSize], b[size-ticketSumSize:]
	if want := sha256.Sum256(b); !slices.Equal(sum, want[:ticketSumSize]) {
		return fail("its check sum is wrong: a character is mistyped; copy the whole line")
	}

	// From here on the text is whole: what is still wrong was never a ticket.
	b = b[2:]
	var t Ticket
	t.Farm, b = farmIDFrom(b[:farmHashSize]), b[farmHashSize:]
	b = b[copy(t.secret[:], b):]
	role, flags, count := int(b[0]), b[1], int(b[2])
	b = b[3:]
	if role >= len(Roles()) || flags > 1 || count > MaxTicketAddrs {
		return fail("it was made by a newer version of vizpeer; update this machine")
	}
	t.Role, t.Coordinator = Roles()[role], flags == 1
	last := ""
	for range count {
		if len(b) < 2 || int(b[0]) > len(last) || len(b) < 2+int(b[1]) {
			return fail("its addresses are damaged; ask for a new one")
		}
		end := 2 + int(b[1])
		last = string(b[2:end]) + last[len(last)-int(b[0]):]
		t.Addrs = append(t.Addrs, last)
		b = b[end:]
	}
	if len(b) != 0 {
		return fail("its addresses are damaged; ask for a new one")
	}
	if err := t.validate(); err != nil {
		return fail("%v", err)
	}
	if t.String() != text {
		return fail("its last character is mistyped; copy the whole line")
	}
	return t, nil
}
