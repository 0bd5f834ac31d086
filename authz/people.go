package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of people.
const (
	MaxPeople = 5_000 // accounts
	MaxKeys   = 5_000 // API keys that are no machine's
	// maxEnded is how many ended sessions of one person are remembered; with one more,
	// all of the person's sessions end.
	maxEnded = 64
)

// Errors about people.
var (
	ErrUserUnknown     = errors.New("the farm has no account of that name: see `vizpeer user ls`")
	ErrUserExists      = errors.New("the farm has an account of that name already: choose another name")
	ErrUserMachine     = errors.New("a machine of the farm acts under that name, and would own what the account does: choose another name")
	ErrKeyUnknown      = errors.New("the farm has no API key of that ID: see `vizpeer key ls`")
	ErrLastAdmin       = errors.New("this is the last admin who can log in: make another admin first")
	ErrPassword        = errors.New("the user name or the password is wrong")
	ErrDisabled        = errors.New("the account is disabled: ask an admin of the farm")
	ErrNotAdmin        = errors.New("accounts and API keys are for admins to change")
	ErrPasswordChanged = errors.New("the password was changed in the meantime: log in with the new one")
	ErrPeopleFull      = fmt.Errorf("the farm is full: %d accounts and %d API keys are its limits", MaxPeople, MaxKeys)
)

// AddUser makes an account, whose password was derived before: a log holds none.
type AddUser struct {
	Account Account   `json:"account"`
	By      Principal `json:"by"`
}

// SetPassword changes the password of an account, and ends its sessions. An admin
// sets a one-time password, which its owner must change; whoever proved the old one
// sets a lasting one.
type SetPassword struct {
	User     string   `json:"user"`
	Password Password `json:"password"`
	// Was is the hash of the old password, which its owner has proved; zero where an
	// admin sets a new one.
	Was Hash      `json:"was,omitzero"`
	By  Principal `json:"by"`
}

// Disable has an account's sessions, and the API keys in its name, refused from now
// on, or allows the keys, and new sessions, again.
type Disable struct {
	User string    `json:"user"`
	On   bool      `json:"on"`
	By   Principal `json:"by"`
}

// SetRole gives an account another role, at once for its sessions and keys too.
type SetRole struct {
	User string    `json:"user"`
	Role Role      `json:"role"`
	By   Principal `json:"by"`
}

// CreateKey adds an API key, whose secret the maker of the command has drawn. Its
// user need not have an account.
type CreateKey struct {
	Key Key       `json:"key"`
	By  Principal `json:"by"`
}

// RevokeKey removes an API key, a person's or a machine's, with the tickets that gave it
// to the machine. A machine without a key goes on working for the farm, as a node: it is
// its person's no more, until a ticket says so again.
type RevokeKey struct {
	ID string    `json:"id"`
	By Principal `json:"by"`
}

// EndSession ends a session before its time, by the one who has it.
type EndSession struct {
	ID    string    `json:"id"`
	User  string    `json:"user"`
	Until time.Time `json:"until"` // when it would have ended by itself
}

// Ended is a session that was ended before its time.
type Ended struct {
	ID    string    `json:"id"`
	User  string    `json:"user"`
	Until time.Time `json:"until"`
}

// People lists all accounts by user. The slice is the caller's.
func (d *directory) People() []Person { return slices.Clone(d.people) }

// Person is the account of a user, if there is one.
func (d *directory) Person(user string) (Person, bool) {
	i, ok := slices.BinarySearchFunc(d.people, user, func(p Person, user string) int { return strings.Compare(p.User, user) })
	if !ok {
		return Person{}, false
	}
	return d.people[i], true
}

// Keys lists all API keys by ID. The slice is the caller's.
func (d *directory) Keys() []Key { return slices.Clone(d.keys) }

// Key is the API key of that ID, if there is one.
func (d *directory) Key(id string) (Key, bool) {
	i, ok := d.key(id)
	if !ok {
		return Key{}, false
	}
	return d.keys[i], true
}

// standing is the role that a user who was given role has now: no more than the
// account's, where there is one.
func (d *directory) standing(user string, role Role) (Role, error) {
	p, ok := d.Person(user)
	switch {
	case !ok:
		return role, nil
	case p.Disabled:
		return "", ErrDisabled
	}
	return weaker(role, p.Role), nil
}

// Acting is the machine of that ID as it acts for its user: with the role that the
// user has now. That of somebody disabled is nobody's, and goes on as a node.
func (d *directory) Acting(id PeerID) (Member, bool) {
	m, ok := d.Member(id)
	if !ok {
		return m, false
	}
	role, err := d.standing(m.User, m.Role)
	if err != nil {
		role = Node
	}
	m.Role = role
	return m, true
}

// mayManage refuses whoever is no admin any more when the command is applied.
func (r *Roster) mayManage(by Principal) error {
	role, err := r.standing(by.User, by.Role)
	if err == nil && !(Principal{User: by.User, Role: role}).MayManagePeople() {
		err = ErrNotAdmin
	}
	return err
}

func (r *Roster) addUser(c AddUser) ([]Event, error) {
	a := c.Account
	a.Disabled, a.ValidAfter, a.Salt = false, time.Time{}, slices.Clone(a.Salt)
	if err := errors.Join(r.mayManage(c.By), a.validate(), CheckUser(a.User)); err != nil {
		return nil, err
	}
	switch _, exists := r.account(a.User); {
	case exists:
		return nil, ErrUserExists
	case slices.ContainsFunc(r.members, func(m Member) bool { return m.User == a.User && m.Role != Node }):
		return nil, ErrUserMachine
	case len(r.accounts) >= MaxPeople:
		return nil, ErrPeopleFull
	}
	r.putAccount(a)
	return []Event{{Type: UserAdded, User: a.User, Role: a.Role}}, nil
}

func (r *Roster) setPassword(at time.Time, c SetPassword) ([]Event, error) {
	i, ok := r.account(c.User)
	own := c.Was != (Hash{})
	if !own {
		if err := r.mayManage(c.By); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, ErrUserUnknown
	}
	a := r.accounts[i]
	switch {
	case own && c.By.User != c.User:
		return nil, ErrNotAdmin
	case own && a.Disabled:
		return nil, ErrDisabled
	case own && a.Hash != c.Was:
		return nil, ErrPasswordChanged
	}
	if err := c.Password.validate(); err != nil {
		return nil, err
	}
	a.Password, a.MustChange = c.Password, !own
	a.Salt = slices.Clone(a.Salt)
	r.endSessions(at, &a)
	r.putAccount(a)
	return []Event{{Type: PasswordChanged, User: a.User, Role: a.Role}}, nil
}

// managed is the account of a user whom an admin wants to change.
func (r *Roster) managed(by Principal, user string) (Account, error) {
	if err := r.mayManage(by); err != nil {
		return Account{}, err
	}
	i, ok := r.account(user)
	if !ok {
		return Account{}, ErrUserUnknown
	}
	return r.accounts[i], nil
}

func (r *Roster) disable(at time.Time, c Disable) ([]Event, error) {
	a, err := r.managed(c.By, c.User)
	switch {
	case err != nil:
		return nil, err
	case a.Disabled == c.On:
		return nil, nil
	case c.On && r.lastAdmin(a):
		return nil, ErrLastAdmin
	}
	a.Disabled = c.On
	if !c.On {
		r.putAccount(a)
		return []Event{{Type: UserEnabled, User: a.User, Role: a.Role}}, nil
	}
	r.endSessions(at, &a) // an account that is enabled again begins without any
	r.putAccount(a)
	return []Event{{Type: UserDisabled, User: a.User, Role: a.Role}}, nil
}

func (r *Roster) setRole(c SetRole) ([]Event, error) {
	a, err := r.managed(c.By, c.User)
	switch {
	case err != nil:
		return nil, err
	case a.Role == c.Role:
		return nil, nil
	case r.lastAdmin(a):
		return nil, ErrLastAdmin
	}
	a.Role = c.Role
	if err := a.validate(); err != nil {
		return nil, err
	}
	r.putAccount(a)
	return []Event{{Type: RoleChanged, User: a.User, Role: a.Role}}, nil
}

// lastAdmin tells that without a, nobody could manage the farm by a password.
func (r *Roster) lastAdmin(a Account) bool {
	return a.Role == Admin && !a.Disabled && !slices.ContainsFunc(r.accounts, func(o Account) bool {
		return o.Role == Admin && !o.Disabled && o.User != a.User
	})
}

func (r *Roster) createKey(at time.Time, c CreateKey) ([]Event, error) {
	k := c.Key // of any role: its maker is an admin, and it can do no more
	k.Created, k.Peer, k.By = at, "", c.By.User
	if err := errors.Join(r.mayManage(c.By), k.validate()); err != nil {
		return nil, err
	}
	switch role, err := r.standing(k.User, k.Role); {
	case err != nil:
		return nil, err
	case role != k.Role:
		return nil, fmt.Errorf("%s is %s: a key in that name can do no more", k.User, role)
	}
	if _, taken := r.key(k.ID); taken {
		return nil, errors.New("another API key has this ID: make a new one")
	}
	own := 0
	for _, o := range r.keys {
		if o.Peer == "" {
			own++
		}
	}
	if own >= MaxKeys {
		return nil, ErrPeopleFull
	}
	r.putKey(k)
	return []Event{{Type: KeyCreated, User: k.User, Role: k.Role, Key: k.ID}}, nil
}

func (r *Roster) revokeKey(c RevokeKey) ([]Event, error) {
	if err := r.mayManage(c.By); err != nil {
		return nil, err
	}
	i, ok := r.key(c.ID)
	if !ok {
		return nil, ErrKeyUnknown
	}
	k := r.keys[i]
	if m, ok := r.Member(k.Peer); ok && m.Key == k.ID {
		m.Key, m.Role = "", Node
		r.putMember(m)
		// The ticket that gave it would give it another.
		r.tickets = slices.DeleteFunc(r.tickets, func(t TicketRecord) bool { return slices.Contains(t.Redeemed, m.ID) })
	}
	r.dropKey(k.ID)
	return []Event{{Type: KeyRevoked, User: k.User, Role: k.Role, Key: k.ID, Peer: k.Peer}}, nil
}

func (r *Roster) endSession(at time.Time, c EndSession) ([]Event, error) {
	e := Ended{ID: c.ID, User: c.User, Until: canonical(c.Until)}
	if err := e.validate(); err != nil {
		return nil, err
	}
	if e.Until.After(at.Add(maxSession + sessionSkew)) {
		return nil, errors.New("no session lasts as long as that")
	}
	i, ok := r.account(e.User)
	if !ok {
		return nil, ErrUserUnknown
	}
	place, ended := r.endedAt(e.ID)
	if ended || over(e, at) {
		return nil, nil
	}
	a, count := r.accounts[i], 0
	for _, o := range r.ended {
		if o.User == e.User {
			count++
		}
	}
	if count >= maxEnded {
		r.endSessions(at, &a)
		r.putAccount(a)
	} else {
		r.ended = slices.Insert(r.ended, place, e)
	}
	return []Event{{Type: SessionEnded, User: a.User, Role: a.Role}}, nil
}

// endSessions ends all sessions of an account, which then need no list.
func (r *Roster) endSessions(at time.Time, a *Account) {
	// What lies further ahead than any session lasts is by a clock that was wrong, and
	// would keep the person out until then.
	if at.After(a.ValidAfter) || a.ValidAfter.After(at.Add(maxSession+sessionSkew)) {
		a.ValidAfter = at
	}
	r.ended = slices.DeleteFunc(r.ended, func(e Ended) bool { return e.User == a.User })
}

// forgetEnded forgets the sessions that would be over by themselves.
func (r *Roster) forgetEnded(at time.Time) {
	r.ended = slices.DeleteFunc(r.ended, func(e Ended) bool { return over(e, at) })
}

// over tells that a session is over by every peer's clock.
func over(e Ended, at time.Time) bool { return !at.Before(e.Until.Add(sessionSkew)) }

func (d *directory) endedAt(id string) (int, bool) {
	return slices.BinarySearchFunc(d.ended, id, func(e Ended, id string) int { return strings.Compare(e.ID, id) })
}

// putAccount adds the account or replaces the one of the same user.
func (r *Roster) putAccount(a Account) {
	i, ok := r.account(a.User)
	if ok {
		r.accounts[i], r.people[i] = a, a.Person
		return
	}
	r.accounts = slices.Insert(r.accounts, i, a)
	r.people = slices.Insert(r.people, i, a.Person)
}

// userMarks are the characters of ASCII in the names of accounts.
const userMarks = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@+- "

// CheckUser says what is wrong with the name of a new account. It is part of paths
// of the API.
func CheckUser(user string) error {
	if strings.HasPrefix(user, ".") || strings.ContainsFunc(user, func(c rune) bool {
		return c < utf8.RuneSelf && !strings.ContainsRune(userMarks, c) // of others see shows
	}) {
		return fmt.Errorf("the user name %q is not possible: use letters, digits, spaces and . _ @ + -, and begin with no dot", user)
	}
	return checkName("user", user)
}

// checkPeople refuses what Apply could not have made.
func checkPeople(people []Person, ended []Ended) error {
	if len(people) > MaxPeople || len(ended) > MaxPeople*maxEnded {
		return fmt.Errorf("the roster has %d accounts and %d ended sessions, more than possible", len(people), len(ended))
	}
	for i, p := range people {
		if err := p.validate(); err != nil {
			return err
		}
		if i > 0 && people[i-1].User >= p.User {
			return errors.New("the roster's accounts are not in order")
		}
	}
	for i, e := range ended {
		if err := e.validate(); err != nil {
			return err
		}
		if i > 0 && ended[i-1].ID >= e.ID {
			return errors.New("the roster's ended sessions are not in order")
		}
	}
	return nil
}

func (e Ended) validate() error {
	if len(e.ID) != base32Text.EncodedLen(sessionIDSize) || !isBase32(e.ID) {
		return fmt.Errorf("%.64q is not the ID of a session", e.ID)
	}
	if e.Until.IsZero() || e.Until.Year() > maxYear {
		return errors.New("a session ends some day")
	}
	return checkName("user", e.User)
}
