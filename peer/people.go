package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// maxDeriving is how many passwords may be hashed or checked, or wait for their turn.
const maxDeriving = 16

// passwords hashes and checks passwords, each of which takes about 0.2 s of a core,
// without taking the machine away from its other work.
type passwords struct {
	slots   *semaphore.Weighted
	waiting atomic.Int32
}

func newPasswords() *passwords {
	return &passwords{slots: semaphore.NewWeighted(int64(min(2, max(1, runtime.NumCPU()/2))))}
}

// do derives once it is its turn, or fails at once where too many wait.
func (p *passwords) do(ctx context.Context, derive func()) error {
	defer p.waiting.Add(-1)
	if p.waiting.Add(1) > maxDeriving {
		return fmt.Errorf("%w: too many passwords are being checked: try again in a few seconds", httpapi.ErrUnavailable)
	}
	if err := p.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer p.slots.Release(1)
	derive()
	return nil
}

// check tells whether password is the account's: the zero account has none.
func (p *passwords) check(ctx context.Context, a authz.Account, password string) error {
	right := false
	err := p.do(ctx, func() { right = a.CheckPassword(password) })
	if err == nil && !right {
		err = authz.ErrPassword
	}
	return err
}

// derive is what the farm keeps of a password.
func (p *passwords) derive(ctx context.Context, password string) (out authz.Password, err error) {
	if err := authz.CheckPassword(password); err != nil {
		return out, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	if done := p.do(ctx, func() { out, err = authz.NewPassword(rand.Reader, password) }); done != nil {
		return out, done
	}
	return out, err
}

func (q queue) Login(ctx context.Context, in httpapi.Credentials) (httpapi.Session, error) {
	asked := time.Now()
	account, err := q.account(ctx, in.Username)
	if err != nil {
		return httpapi.Session{}, err
	}
	if doing := authz.DoingOf(ctx); doing != nil {
		// The name itself may be a password that was typed too early.
		doing.Object = cmp.Or(account.User, "an unknown user")
	}
	if err := q.passwords.check(ctx, account, in.Password); err != nil {
		return httpapi.Session{}, err
	}
	if account.Disabled { // this is for whoever knows the password
		return httpapi.Session{}, authz.ErrDisabled
	}
	return q.session(account.Person, asked)
}

// account is the account of a user; the zero account where there is none.
func (q queue) account(ctx context.Context, user string) (out authz.Account, err error) {
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, _ coord.Knowledge) error {
		out = r.Account(user)
		return nil
	})
	return out, err
}

// session begins a session for somebody who has just proved who they are. Every peer
// believes it because this machine's own key signs it.
func (q queue) session(p authz.Person, asked time.Time) (httpapi.Session, error) {
	if err := q.mustLead(); err != nil { // no more while the password was being checked
		return httpapi.Session{}, err
	}
	s, err := authz.NewSession(rand.Reader, p, q.self, asked)
	if err != nil {
		return httpapi.Session{}, err
	}
	key := q.host.Peerstore().PrivKey(q.host.ID())
	if key == nil {
		return httpapi.Session{}, errors.New("sign a session: this machine's key is not at hand")
	}
	token, err := s.Sign(q.farm, key.Sign)
	if err != nil {
		return httpapi.Session{}, err
	}
	return httpapi.Session{Token: token, Username: p.User, Role: p.Role, ExpiresAt: s.Expires, MustChange: p.MustChange}, nil
}

func (q queue) Logout(ctx context.Context, p authz.Principal) error {
	return q.change(ctx, authz.Command{EndSession: &authz.EndSession{ID: p.Session, User: p.User, Until: p.Expires}})
}

// change commits a change of people, keys or sessions.
func (q queue) change(ctx context.Context, c authz.Command) error {
	if err := q.mustLead(); err != nil {
		return err
	}
	c.At = time.Now()
	err := q.coord.Admit(ctx, c)
	if coord.Refused(err) {
		return fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	return answer(err)
}

func (q queue) ChangePassword(ctx context.Context, p authz.Principal, in httpapi.PasswordChange) (none httpapi.Session, err error) {
	account, err := q.account(ctx, p.User)
	switch {
	case err != nil:
		return none, err
	case account.User == "":
		return none, fmt.Errorf("%w: %s has no account, and so no password: an admin can make one (`vizpeer user add`)", httpapi.ErrInvalid, p.User)
	case in.New == in.Old:
		return none, fmt.Errorf("%w: the new password is the old one: choose another", httpapi.ErrInvalid)
	}
	switch err := q.passwords.check(ctx, account, in.Old); {
	case errors.Is(err, authz.ErrPassword):
		return none, fmt.Errorf("%w: the old password is wrong", httpapi.ErrDenied)
	case err != nil:
		return none, err
	}
	password, err := q.passwords.derive(ctx, in.New)
	if err != nil {
		return none, err
	}
	if err := q.change(ctx, authz.Command{SetPassword: &authz.SetPassword{User: p.User, Password: password, Was: account.Hash, By: p}}); err != nil {
		return none, err
	}
	q.slog.Info("a password was changed", "user", p.User)
	asked := time.Now()
	if account, err = q.account(ctx, p.User); err != nil {
		return none, err
	}
	if account.Hash != password.Hash {
		return none, authz.ErrPasswordChanged
	}
	return q.session(account.Person, asked)
}

// mayManagePeople refuses who may not decide about accounts and keys.
func (q queue) mayManagePeople(p authz.Principal) error {
	if !p.MayManagePeople() {
		return authz.ErrNotAdmin
	}
	return q.mustLead()
}

func (q queue) Users(ctx context.Context, p authz.Principal) (out []httpapi.User, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return nil, err
	}
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, _ coord.Knowledge) error {
		for _, person := range r.People() {
			out = append(out, user(person))
		}
		return nil
	})
	return out, err
}

func user(p authz.Person) httpapi.User {
	return httpapi.User{Username: p.User, Role: p.Role, Disabled: p.Disabled, MustChange: p.MustChange}
}

// user is what is known of an account now.
func (q queue) user(ctx context.Context, name string) (httpapi.User, error) {
	account, err := q.account(ctx, name)
	if err == nil && account.User == "" {
		err = authz.ErrUserUnknown
	}
	return user(account.Person), err
}

// oneTime derives the hash of a one-time password, drawing one where there is none;
// then drawn is it.
func (q queue) oneTime(ctx context.Context, given string) (out authz.Password, drawn string, err error) {
	if given == "" {
		drawn = password()
	}
	out, err = q.passwords.derive(ctx, cmp.Or(given, drawn))
	return out, drawn, err
}

func (q queue) AddUser(ctx context.Context, p authz.Principal, in httpapi.NewUser) (out httpapi.User, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return out, err
	}
	if err := authz.CheckUser(in.Username); err != nil {
		return out, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	if _, err := q.user(ctx, in.Username); err == nil {
		return out, authz.ErrUserExists // without the work for a password
	}
	account := authz.Account{Person: authz.Person{User: in.Username, Role: in.Role, MustChange: true}}
	var drawn string
	if account.Password, drawn, err = q.oneTime(ctx, in.Password); err != nil {
		return out, err
	}
	if err := q.change(ctx, authz.Command{AddUser: &authz.AddUser{Account: account, By: p}}); err != nil {
		return out, err
	}
	q.slog.Info("an account was made", "user", in.Username, "role", in.Role, "by", p.User)
	out = user(account.Person)
	out.Password = drawn
	return out, nil
}

func (q queue) ResetPassword(ctx context.Context, p authz.Principal, name, given string) (out httpapi.User, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return out, err
	}
	if _, err := q.user(ctx, name); err != nil {
		return out, err
	}
	password, drawn, err := q.oneTime(ctx, given)
	if err != nil {
		return out, err
	}
	if err := q.change(ctx, authz.Command{SetPassword: &authz.SetPassword{User: name, Password: password, By: p}}); err != nil {
		return out, err
	}
	q.slog.Info("a password was reset", "user", name, "by", p.User)
	out, err = q.user(ctx, name)
	out.Password = drawn
	return out, err
}

func (q queue) DisableUser(ctx context.Context, p authz.Principal, name string, on bool) (out httpapi.User, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return out, err
	}
	if err := q.change(ctx, authz.Command{Disable: &authz.Disable{User: name, On: on, By: p}}); err != nil {
		return out, err
	}
	q.slog.Info("an account was disabled or enabled", "user", name, "disabled", on, "by", p.User)
	return q.user(ctx, name)
}

func (q queue) SetRole(ctx context.Context, p authz.Principal, name string, role authz.Role) (out httpapi.User, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return out, err
	}
	if err := q.change(ctx, authz.Command{SetRole: &authz.SetRole{User: name, Role: role, By: p}}); err != nil {
		return out, err
	}
	q.slog.Info("an account has another role", "user", name, "role", role, "by", p.User)
	return q.user(ctx, name)
}

func (q queue) Keys(ctx context.Context, p authz.Principal) (out []httpapi.APIKey, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return nil, err
	}
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, _ coord.Knowledge) error {
		for _, k := range r.Keys() {
			out = append(out, apiKey(r, k))
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b httpapi.APIKey) int { return a.Created.Compare(b.Created) })
	return out, err
}

func apiKey(r *authz.Roster, k authz.Key) httpapi.APIKey {
	out := httpapi.APIKey{ID: k.ID, Username: k.User, Role: k.Role, Name: k.Name, Peer: k.Peer, By: k.By, Created: k.Created}
	if m, ok := r.Member(k.Peer); ok {
		out.PeerName = m.Name
	}
	return out
}

// key is what is known of an API key.
func (q queue) key(ctx context.Context, id string) (out httpapi.APIKey, err error) {
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, _ coord.Knowledge) error {
		k, ok := r.Key(id)
		if !ok {
			return authz.ErrKeyUnknown
		}
		out = apiKey(r, k)
		return nil
	})
	return out, err
}

func (q queue) CreateKey(ctx context.Context, p authz.Principal, in httpapi.NewKey) (out httpapi.APIKey, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return out, err
	}
	token, key, err := authz.NewKey(rand.Reader, cmp.Or(in.Username, p.User), in.Role, time.Now())
	if err != nil {
		return out, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	key.Name = in.Name
	if err := q.change(ctx, authz.Command{CreateKey: &authz.CreateKey{Key: key, By: p}}); err != nil {
		return out, err
	}
	q.slog.Info("an API key was made", "key", key.ID, "user", key.User, "role", key.Role, "by", p.User)
	out, err = q.key(ctx, key.ID)
	out.Key = token
	return out, err
}

func (q queue) RevokeKey(ctx context.Context, p authz.Principal, id string) (out httpapi.APIKey, err error) {
	if err := q.mayManagePeople(p); err != nil {
		return out, err
	}
	if out, err = q.key(ctx, id); err != nil {
		return out, err
	}
	if err := q.change(ctx, authz.Command{RevokeKey: &authz.RevokeKey{ID: id, By: p}}); err != nil {
		return out, err
	}
	q.slog.Info("an API key was revoked", "key", id, "user", out.Username, "by", p.User)
	return out, nil
}
