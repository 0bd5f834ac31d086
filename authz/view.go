package authz

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vizpeer/authz/level"
)

// Limits of a roster.
const (
	MaxMembers = 5_000
	MaxTickets = 10_000
)

// Member is an admitted machine.
type Member struct {
	ID          PeerID `json:"id"`
	Name        string `json:"name"` // for people; not unique
	Worker      bool   `json:"worker"`
	Coordinator bool   `json:"coordinator"` // may hold the queue
	// Standby keeps a coordinator from voting, by an admin's word.
	Standby  bool      `json:"standby,omitempty"`
	Role     Role      `json:"role"` // of its person, or node
	User     string    `json:"user"` // who owns what it submits; unique among members
	Key      string    `json:"key,omitempty"`
	JoinedAt time.Time `json:"joined_at"`
	// NamedAt is when it took its name; zero where it has it since it joined.
	NamedAt time.Time `json:"named_at,omitzero"`
	// Labels are those that an admin granted it, in order, each once.
	Labels []string `json:"labels,omitempty"`
}

// RoleNames lists what the machine does, for people: worker, coordinator,
// submitter.
func (m Member) RoleNames() []string {
	names := []string{}
	if m.Worker {
		names = append(names, "worker")
	}
	if m.Coordinator {
		names = append(names, "coordinator")
	}
	if m.Principal().MaySubmit() {
		names = append(names, "submitter")
	}
	return names
}

// Principal is who acts when the machine itself does, with its peer key.
func (m Member) Principal() Principal { return Principal{User: m.User, Role: m.Role} }

// named is since when it has its name.
func (m Member) named() time.Time {
	if m.NamedAt.IsZero() {
		return m.JoinedAt
	}
	return m.NamedAt
}

func (m Member) validate() error {
	if err := checkPeer(m.ID); err != nil {
		return err
	}
	if _, err := ParseRole(string(m.Role)); err != nil {
		return err
	}
	if err := checkName("user", m.User); err != nil {
		return err
	}
	if err := checkGranted(m.Labels); err != nil {
		return err
	}
	return checkName("machine", m.Name)
}

// View is the copy of the roster that every peer holds: who is a member, which
// API keys exist, who has an account, which sessions were ended, which Blenders are
// offered, whose certificates HTTPS listeners show, and which farm this is. It holds no
// tickets and no passwords.
//
// Views are exchanged as JSON. A view that came from outside goes through
// [ParseView]. Reading a view is safe for concurrent use: nothing changes it.
//
// A program that reads a view of a higher level keeps what it knows of it: the view's
// level tells later programs, which know more, that it lacks something.
type View struct {
	directory
	level int
}

// directory is what a [Roster] and a [View] share. Its slices are sorted by ID,
// so that lookups are binary searches and the JSON is the same on every machine.
type directory struct {
	version uint64
	name    string
	charter Charter
	members []Member
	keys    []Key
	offers  []Offer
	ca      [][]byte // DER, the oldest first
	people  []Person // by user; a roster's follow from its accounts
	ended   []Ended  // by ID
}

type directoryJSON struct {
	Version uint64   `json:"version"`
	Name    string   `json:"name"`
	Charter Charter  `json:"charter"`
	Members []Member `json:"members"`
	Keys    []Key    `json:"keys"`
	Offers  []Offer  `json:"offers,omitempty"`
	CA      [][]byte `json:"ca,omitempty"`
	People  []Person `json:"people,omitempty"`
	Ended   []Ended  `json:"ended,omitempty"`
}

type viewJSON struct {
	directoryJSON
	Level int `json:"level,omitempty"`
}

// Version counts the changes to the roster; it never goes back within an epoch.
func (d *directory) Version() uint64 { return d.version }

// Farm is the farm's ID, or "" where no farm was founded.
func (d *directory) Farm() FarmID {
	if d.charter.Epoch == 0 {
		return ""
	}
	return d.charter.ID()
}

// Name is the farm's name for people.
func (d *directory) Name() string { return d.name }

// Charter is the farm key's word on who founded the queue.
func (d *directory) Charter() Charter { return d.charter }

// Member returns the machine of that ID, if it is admitted.
func (d *directory) Member(id PeerID) (Member, bool) {
	i, ok := d.member(id)
	if !ok {
		return Member{}, false
	}
	return d.members[i], true
}

// IsCoordinator tells whether the machine is a member that may hold the queue.
func (d *directory) IsCoordinator(id PeerID) bool {
	m, ok := d.Member(id)
	return ok && m.Coordinator
}

// Members lists all members by ID. The slice is the caller's.
func (d *directory) Members() []Member { return slices.Clone(d.members) }

// Coordinators lists, by ID, the members that may hold the queue.
func (d *directory) Coordinators() []PeerID {
	var ids []PeerID
	for _, m := range d.members {
		if m.Coordinator {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// Authenticate returns who shows the API key or the session. It fails with
// [ErrToken], [ErrSession] or [ErrDisabled], or with an error that wraps
// [ErrTokenText] where the text can be neither; none quotes it.
func (d *directory) Authenticate(token string, now time.Time) (Principal, error) {
	if strings.HasPrefix(token, sessionPrefix) {
		return d.session(token, now)
	}
	id, secret, err := parseToken(token)
	if err != nil {
		return Principal{}, err
	}
	var key Key // the zero key's hash matches no secret that can be found
	if i, ok := d.key(id); ok {
		key = d.keys[i]
	}
	if !key.Hash.matches(secret) {
		return Principal{}, ErrToken
	}
	role, err := d.standing(key.User, key.Role)
	if err != nil {
		return Principal{}, err
	}
	return Principal{User: key.User, Role: role, Key: key.ID, Machine: key.Peer}, nil
}

func (d *directory) member(id PeerID) (int, bool) {
	return slices.BinarySearchFunc(d.members, id, func(m Member, id PeerID) int { return strings.Compare(string(m.ID), string(id)) })
}

func (d *directory) key(id string) (int, bool) {
	return slices.BinarySearchFunc(d.keys, id, func(k Key, id string) int { return strings.Compare(k.ID, id) })
}

// putMember adds the member or replaces the one of the same ID.
func (d *directory) putMember(m Member) {
	if i, ok := d.member(m.ID); ok {
		d.members[i] = m
	} else {
		d.members = slices.Insert(d.members, i, m)
	}
}

// putKey adds the key or replaces the one of the same ID.
func (d *directory) putKey(k Key) {
	if i, ok := d.key(k.ID); ok {
		d.keys[i] = k
	} else {
		d.keys = slices.Insert(d.keys, i, k)
	}
}

func (d *directory) dropKey(id string) {
	if i, ok := d.key(id); ok {
		d.keys = slices.Delete(d.keys, i, i+1)
	}
}

func (d *directory) clone() directory {
	c := *d
	c.members, c.keys, c.offers, c.ca = slices.Clone(d.members), slices.Clone(d.keys), slices.Clone(d.offers), slices.Clone(d.ca)
	c.people, c.ended = slices.Clone(d.people), slices.Clone(d.ended)
	return c
}

func (d *directory) document() directoryJSON {
	return directoryJSON{d.version, d.name, d.charter, d.members, d.keys, d.offers, d.ca, d.people, d.ended}
}

// load takes over a document after checking all that the rest of the package
// relies on.
func (d *directory) load(doc directoryJSON) error {
	if doc.Charter.Epoch == 0 && len(doc.Members) == 0 && len(doc.Keys) == 0 && len(doc.Offers) == 0 && len(doc.CA) == 0 && len(doc.People) == 0 && len(doc.Ended) == 0 && doc.Name == "" {
		*d = directory{version: doc.Version} // no farm yet
		return nil
	}
	if err := doc.Charter.Verify(doc.Charter.ID()); err != nil {
		return err
	}
	if err := checkName("farm", doc.Name); err != nil {
		return err
	}
	if len(doc.Members) > MaxMembers || len(doc.Keys) > MaxMembers+MaxKeys {
		return fmt.Errorf("the roster has %d members and %d keys, more than possible", len(doc.Members), len(doc.Keys))
	}
	for i, m := range doc.Members {
		if err := m.validate(); err != nil {
			return err
		}
		if i > 0 && doc.Members[i-1].ID >= m.ID {
			return errors.New("the roster's members are not in order")
		}
	}
	for i, k := range doc.Keys {
		if err := k.validate(); err != nil {
			return err
		}
		if i > 0 && doc.Keys[i-1].ID >= k.ID {
			return errors.New("the roster's keys are not in order")
		}
	}
	if len(doc.Offers) > MaxOffers {
		return fmt.Errorf("the roster offers %d Blenders, more than possible", len(doc.Offers))
	}
	for i, o := range doc.Offers {
		if err := o.Validate(); err != nil {
			return err
		}
		if i > 0 && doc.Offers[i-1].Root >= o.Root {
			return errors.New("the roster's Blenders are not in order")
		}
	}
	if len(doc.CA) > MaxCA {
		return fmt.Errorf("the roster has %d CA certificates, more than possible", len(doc.CA))
	}
	for _, der := range doc.CA {
		if err := checkCA(der); err != nil {
			return err
		}
	}
	if err := checkPeople(doc.People, doc.Ended); err != nil {
		return err
	}
	*d = directory{doc.Version, doc.Name, doc.Charter, doc.Members, doc.Keys, doc.Offers, doc.CA, doc.People, doc.Ended}
	return nil
}

// ParseView reads a view that came from outside, and refuses one that is not of
// this farm or not well formed. Whom to take a view from is the caller's to
// decide: it carries no signature but the charter's.
func ParseView(data []byte, farm FarmID) (*View, error) {
	var v View
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("reading the farm's roster: %w", err)
	}
	if v.Farm() != farm {
		return nil, fmt.Errorf("reading the farm's roster: it is of farm %s, not of %s", v.Farm(), farm)
	}
	return &v, nil
}

// Replaces tells whether v is newer than old, so that it takes its place: a later
// charter (see [Charter.Supersedes]), more changes under the same one, or as many and
// written by a program that knows more. old may be nil.
func (v *View) Replaces(old *View) bool {
	if old == nil {
		return true
	}
	if v.charter.Supersedes(old.charter) || old.charter.Supersedes(v.charter) {
		return v.charter.Supersedes(old.charter)
	}
	return cmp.Or(cmp.Compare(v.version, old.version), cmp.Compare(v.level, old.level)) > 0
}

// MarshalJSON writes the view.
func (v *View) MarshalJSON() ([]byte, error) {
	return json.Marshal(viewJSON{directoryJSON: v.document(), Level: v.level})
}

// UnmarshalJSON reads and checks what MarshalJSON wrote.
func (v *View) UnmarshalJSON(data []byte) error {
	var doc viewJSON
	if err := json.Unmarshal(data, &doc); err != nil {
		return err
	}
	v.level = min(max(doc.Level, 0), level.Known)
	return v.load(doc.directoryJSON)
}
