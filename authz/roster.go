package authz

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"vizpeer/authz/level"
)

// snapshotFormat is the version of the snapshot's JSON.
const snapshotFormat = 1

// maxSnapshot bounds what Restore reads: well above a full roster.
const maxSnapshot = 256 << 20

// maxYear is the last year that JSON can write.
const maxYear = 9999

// Roster is the replicated list of a farm's members, tickets, keys and accounts.
// It is not safe for concurrent use: the replicated log guards it.
type Roster struct {
	directory
	tickets  []TicketRecord // by hash
	accounts []Account      // by user

	seen   map[PeerID]time.Time // when members were noted last: see [Seen]
	former []Former             // by peer
}

// NewRoster is the roster of no farm yet.
func NewRoster() *Roster { return &Roster{} }

// View is a copy of what every peer may hold.
func (r *Roster) View() *View { return &View{directory: r.clone(), level: level.Known} }

// Account returns the account of that user. The zero Account stands for an
// unknown user: check the password all the same, so that both take as long.
func (r *Roster) Account(user string) Account {
	if i, ok := r.account(user); ok {
		return r.accounts[i]
	}
	return Account{}
}

// Apply makes the change, or answers why not and changes nothing.
func (r *Roster) Apply(c Command) ([]Event, error) {
	set := 0
	for _, is := range []bool{
		c.Found != nil, c.Mint != nil, c.Redeem != nil, c.Label != nil, c.Offer != nil, c.Withdraw != nil, c.Trust != nil,
		c.AddUser != nil, c.SetPassword != nil, c.Disable != nil, c.SetRole != nil, c.CreateKey != nil, c.RevokeKey != nil, c.EndSession != nil,
		c.Approve != nil, c.Revoke != nil, c.Seen != nil, c.Expire != nil, c.RevokeTicket != nil, c.Standby != nil,
	} {
		if is {
			set++
		}
	}
	if set != 1 {
		return nil, fmt.Errorf("a roster command holds one change, not %d", set)
	}
	if c.At.IsZero() || c.At.UTC().Year() > maxYear {
		return nil, errors.New("a roster command must say when it was given")
	}
	at := canonical(c.At)
	var events []Event
	var err error
	switch {
	case c.Found != nil:
		events, err = r.found(at, *c.Found)
	case r.Farm() == "":
		return nil, ErrNotFounded
	case c.Mint != nil:
		events, err = r.mint(at, c.Mint.Ticket)
	case c.Redeem != nil:
		events, err = r.redeem(at, *c.Redeem)
	case c.Standby != nil:
		events, err = r.standby(*c.Standby)
	case c.Label != nil:
		events, err = r.label(*c.Label)
	case c.Offer != nil:
		events, err = r.offer(at, *c.Offer)
	case c.Withdraw != nil:
		events, err = r.withdraw(c.Withdraw.Root)
	case c.Trust != nil:
		events, err = r.trust(*c.Trust)
	case c.AddUser != nil:
		events, err = r.addUser(*c.AddUser)
	case c.SetPassword != nil:
		events, err = r.setPassword(at, *c.SetPassword)
	case c.Disable != nil:
		events, err = r.disable(at, *c.Disable)
	case c.SetRole != nil:
		events, err = r.setRole(*c.SetRole)
	case c.CreateKey != nil:
		events, err = r.createKey(at, *c.CreateKey)
	case c.RevokeKey != nil:
		events, err = r.revokeKey(*c.RevokeKey)
	case c.EndSession != nil:
		events, err = r.endSession(at, *c.EndSession)
	case c.Approve != nil:
		events, err = r.approve(at, *c.Approve)
	case c.Revoke != nil:
		events, err = r.revoke(at, *c.Revoke)
	case c.Seen != nil:
		err = r.note(at, *c.Seen)
	case c.Expire != nil:
		events, err = r.expire(at, *c.Expire)
	case c.RevokeTicket != nil:
		events, err = r.revokeTicket(at, *c.RevokeTicket)
	}
	if err == nil && len(events) > 0 {
		r.version++
		r.forgetEnded(at)
	}
	return events, err
}

func (r *Roster) found(at time.Time, f Found) ([]Event, error) {
	switch {
	case r.Farm() == f.Farm && f.Farm != "":
		return nil, nil
	case r.Farm() != "":
		return nil, ErrOtherFarm
	}
	if err := f.Charter.Verify(f.Farm); err != nil {
		return nil, err
	}
	if f.Charter.Coordinator != f.Founder {
		return nil, fmt.Errorf("%w: it is for %.64q, not for the founder", ErrCharter, string(f.Charter.Coordinator))
	}
	ticket := canonicalTicket(f.NodeTicket)
	f.MachineKey.Peer = f.Founder
	for _, k := range []*Key{&f.MachineKey, &f.OperatorKey} {
		k.Created = at
	}
	founder := Member{
		ID: f.Founder, Name: f.FounderName, Worker: true, Coordinator: true,
		Role: Admin, User: f.Admin.User, Key: f.MachineKey.ID, JoinedAt: at,
	}
	for _, err := range []error{
		checkName("farm", f.Name), founder.validate(), f.Admin.validate(),
		ticket.validate(), f.OperatorKey.validate(), f.MachineKey.validate(),
	} {
		if err != nil {
			return nil, err
		}
	}
	switch {
	case f.Admin.Role != Admin || f.MachineKey.Role != Admin || f.MachineKey.User != f.Admin.User:
		return nil, errors.New("the founder's account and machine key must be the same admin's")
	case f.OperatorKey.Role != Operator || f.OperatorKey.User == f.Admin.User || f.OperatorKey.ID == f.MachineKey.ID:
		return nil, errors.New("the operator key must be an operator's own, of another user than the admin")
	case ticket.Role != Node || ticket.Coordinator:
		return nil, errors.New("the farm's first ticket must be a node ticket")
	}
	if len(f.CA) > 0 {
		if err := checkCA(f.CA); err != nil {
			return nil, err
		}
		r.ca = [][]byte{f.CA}
	}
	r.charter, r.name = f.Charter, f.Name
	r.putMember(founder)
	r.putKey(f.MachineKey)
	r.putKey(f.OperatorKey)
	r.tickets = []TicketRecord{ticket}
	r.putAccount(f.Admin)
	return []Event{
		{Type: FarmFounded, Peer: f.Founder, User: f.Admin.User, Role: Admin},
		{Type: PeerAdmitted, Peer: f.Founder, User: f.Admin.User, Role: Admin},
	}, nil
}

func (r *Roster) mint(at time.Time, t TicketRecord) ([]Event, error) {
	t = canonicalTicket(t)
	if err := t.validate(); err != nil {
		return nil, err
	}
	if !at.Before(t.ExpiresAt) {
		return nil, errors.New("the ticket would be expired at once: give it some time, such as 24h")
	}
	open := slices.Collect(func(yield func(TicketRecord) bool) {
		for _, old := range r.tickets {
			if at.Before(old.ExpiresAt) && !yield(old) {
				return
			}
		}
	})
	i, taken := findTicket(open, t.Hash)
	switch {
	case taken:
		return nil, errors.New("this ticket was minted before: make a new one")
	case len(open) >= MaxTickets:
		return nil, ErrFull
	}
	r.tickets = slices.Insert(open, i, t)
	return []Event{{Type: TicketMinted, User: t.By, Role: t.Role}}, nil
}

// MintedBy is the user who minted a ticket; "" for one that the farm does not know.
func (r *Roster) MintedBy(ticket Hash) string {
	if i, ok := findTicket(r.tickets, ticket); ok {
		return r.tickets[i].By
	}
	return ""
}

// CheckTicket reports why the ticket of c would not admit its machine, so that a
// stranger's guess costs no place in the log.
func (r *Roster) CheckTicket(at time.Time, c Redeem) error {
	i, ok := findTicket(r.tickets, c.Ticket)
	if !ok {
		return ErrTicketUnknown
	}
	ticket := r.tickets[i]
	_, isMember := r.Member(c.Peer)
	again := isMember && slices.Contains(ticket.Redeemed, c.Peer)
	switch {
	case r.unchanged(c, again):
		return nil
	case !isMember && slices.Contains(ticket.Redeemed, c.Peer):
		return ErrTicketBefore // who was removed has no way back by what it had
	case !at.Before(ticket.ExpiresAt):
		return ErrTicketExpired
	case !again && len(ticket.Redeemed) >= ticket.Uses:
		return ErrTicketUsed
	case !isMember && len(r.members) >= MaxMembers:
		return ErrFull
	}
	return nil
}

// unchanged tells that c repeats what its machine did before, to the letter.
func (r *Roster) unchanged(c Redeem, again bool) bool {
	old, _ := r.Member(c.Peer)
	return again && old.Key == c.KeyID && old.Name == c.Name && old.Worker == c.Worker && r.hasKey(c)
}

func (r *Roster) redeem(at time.Time, c Redeem) ([]Event, error) {
	if err := r.CheckTicket(at, c); err != nil {
		return nil, err
	}
	i, _ := findTicket(r.tickets, c.Ticket)
	ticket := r.tickets[i]
	_, isMember := r.Member(c.Peer)
	again := isMember && slices.Contains(ticket.Redeemed, c.Peer)
	if r.unchanged(c, again) {
		return nil, nil
	}
	events, err := r.admit(at, c, ticket.Role, ticket.Coordinator)
	if err == nil && !again {
		ticket.Redeemed = append(slices.Clone(ticket.Redeemed), c.Peer)
		r.tickets[i] = ticket
	}
	return events, err
}

// hasKey tells whether the machine's key is already the one that c brings.
func (r *Roster) hasKey(c Redeem) bool {
	if c.KeyID == "" {
		return true
	}
	i, ok := r.key(c.KeyID)
	return ok && r.keys[i].Hash == c.KeyHash
}

// freeUser is the first of name, name-2, name-3 … that is nobody's yet: a
// machine must not become the owner of somebody's jobs by taking a name.
func (r *Roster) freeUser(name string) string {
	taken := make(map[string]bool, len(r.members)+len(r.keys)+len(r.accounts))
	for _, m := range r.members {
		taken[m.User] = true
	}
	for _, k := range r.keys {
		taken[k.User] = true
	}
	for _, a := range r.accounts {
		taken[a.User] = true
	}
	for _, f := range r.former {
		taken[f.User] = true
	}
	user := name
	for n := 2; taken[user]; n++ {
		suffix := "-" + strconv.Itoa(n)
		user = strings.TrimSpace(strings.ToValidUTF8(name[:min(len(name), MaxName-len(suffix))], "")) + suffix
	}
	return user
}

// weaker is the less powerful of two roles.
func weaker(a, b Role) Role {
	if stronger(a, b) == a {
		return b
	}
	return a
}

// stronger is the more powerful of two roles.
func stronger(a, b Role) Role {
	if slices.Index(Roles(), a) <= slices.Index(Roles(), b) {
		return a
	}
	return b
}

func (r *Roster) account(user string) (int, bool) {
	return slices.BinarySearchFunc(r.accounts, user, func(a Account, user string) int { return strings.Compare(a.User, user) })
}

func findTicket(tickets []TicketRecord, h Hash) (int, bool) {
	return slices.BinarySearchFunc(tickets, h, func(t TicketRecord, h Hash) int { return bytes.Compare(t.Hash[:], h[:]) })
}

func canonicalTicket(t TicketRecord) TicketRecord {
	t.ExpiresAt, t.Redeemed = canonical(t.ExpiresAt), nil
	return t
}

func (t TicketRecord) validate() error {
	switch {
	case t.Hash == (Hash{}):
		return errors.New("the ticket has no hash")
	case t.Uses < 1 || t.Uses > MaxMembers:
		return fmt.Errorf("a ticket for %d machines is not possible: use 1 to %d", t.Uses, MaxMembers)
	case t.ExpiresAt.IsZero() || t.ExpiresAt.Year() > maxYear:
		return errors.New("the ticket never expires: give it some time, such as 24h")
	}
	if _, err := ParseRole(string(t.Role)); err != nil {
		return err
	}
	return checkName("user", t.By)
}

type rosterJSON struct {
	Format int `json:"format"`
	directoryJSON
	Tickets  []TicketRecord `json:"tickets"`
	Accounts []Account      `json:"accounts"`

	Seen   map[PeerID]time.Time `json:"seen,omitempty"`
	Former []Former             `json:"former,omitempty"`
}

// Snapshot writes the whole roster; equal rosters give equal bytes.
func (r *Roster) Snapshot(w io.Writer) error {
	doc := r.document()
	doc.People = nil // they follow from the accounts
	return json.NewEncoder(w).Encode(rosterJSON{
		Format: snapshotFormat, directoryJSON: doc, Tickets: r.tickets, Accounts: r.accounts, Seen: r.seen, Former: r.former,
	})
}

// Restore reads what [Roster.Snapshot] wrote, and refuses what Apply could not
// have made.
func Restore(in io.Reader) (*Roster, error) {
	r, err := restore(in)
	if err != nil {
		return nil, fmt.Errorf("restoring the roster: %w", err)
	}
	return r, nil
}

func restore(in io.Reader) (*Roster, error) {
	var doc rosterJSON
	d := json.NewDecoder(io.LimitReader(in, maxSnapshot))
	d.DisallowUnknownFields() // what is not read is lost: see package level
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if doc.Format != snapshotFormat {
		return nil, fmt.Errorf("its format is %d and this vizpeer reads %d: update vizpeer", doc.Format, snapshotFormat)
	}
	r := NewRoster()
	doc.People = nil
	for _, a := range doc.Accounts {
		doc.People = append(doc.People, a.Person)
	}
	if err := r.load(doc.directoryJSON); err != nil {
		return nil, err
	}
	if len(doc.Tickets) > MaxTickets {
		return nil, ErrFull
	}
	for i, t := range doc.Tickets {
		if err := t.validate(); err != nil {
			return nil, err
		}
		if i > 0 && bytes.Compare(doc.Tickets[i-1].Hash[:], t.Hash[:]) >= 0 {
			return nil, errors.New("its tickets are not in order")
		}
	}
	for i, a := range doc.Accounts {
		if err := a.validate(); err != nil {
			return nil, err
		}
		if i > 0 && doc.Accounts[i-1].User >= a.User {
			return nil, errors.New("its accounts are not in order")
		}
	}
	r.tickets, r.accounts = doc.Tickets, doc.Accounts
	return r, r.loadAway(doc.Seen, doc.Former)
}
