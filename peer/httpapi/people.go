package httpapi

import (
	"context"
	"fmt"
	"time"

	"vizpeer/authz"
)

// People is the farm's accounts, sessions and API keys, as its leader knows them. As
// of [Queue], its methods apply the rules to the principal themselves. No password is
// kept, logged or answered, but for a one-time password to the admin who asked for it.
type People interface {
	// Login begins a session. It takes as long for an unknown user as for a wrong
	// password, both of which are authz.ErrPassword. On record goes the name of a user
	// that there is, and no other: people type passwords where names belong.
	Login(context.Context, Credentials) (Session, error)
	// Logout ends the session that the principal shows.
	Logout(context.Context, authz.Principal) error
	// ChangePassword changes the principal's own password, ends all its sessions, and
	// begins another.
	ChangePassword(context.Context, authz.Principal, PasswordChange) (Session, error)
	// The rest is an admin's.
	Users(context.Context, authz.Principal) ([]User, error)
	AddUser(context.Context, authz.Principal, NewUser) (User, error)
	// ResetPassword gives a user a one-time password; where password is "", a new one.
	ResetPassword(ctx context.Context, p authz.Principal, user, password string) (User, error)
	DisableUser(ctx context.Context, p authz.Principal, user string, on bool) (User, error)
	SetRole(ctx context.Context, p authz.Principal, user string, role authz.Role) (User, error)
	Keys(context.Context, authz.Principal) ([]APIKey, error)
	CreateKey(context.Context, authz.Principal, NewKey) (APIKey, error)
	RevokeKey(ctx context.Context, p authz.Principal, id string) (APIKey, error)
}

// Credentials is the body of POST /v1/auth/login.
type Credentials struct {
	Username string `json:"username" minLength:"1" maxLength:"64"`
	Password string `json:"password" minLength:"1" maxLength:"1024"`
}

// Session is the answer to POST /v1/auth/login and POST /v1/auth/password.
type Session struct {
	Token     string     `json:"token" doc:"send it as Authorization: Bearer TOKEN; it is shown this once"`
	Username  string     `json:"username"`
	Role      authz.Role `json:"role"`
	ExpiresAt time.Time  `json:"expires_at"`
	// MustChange tells that the password is a one-time one.
	MustChange bool `json:"must_change,omitempty" doc:"the session is good for POST /v1/auth/password only, until a password was chosen there"`
}

// PasswordChange is the body of POST /v1/auth/password.
type PasswordChange struct {
	Old string `json:"old" minLength:"1" maxLength:"1024"`
	New string `json:"new" minLength:"12" maxLength:"1024"`
}

// User is an account: a line of GET /v1/admin/users.
type User struct {
	Username   string     `json:"username"`
	Role       authz.Role `json:"role"`
	Disabled   bool       `json:"disabled"`
	MustChange bool       `json:"must_change" doc:"the password is a one-time one that was not changed yet"`
	// Password is a one-time password that the farm has drawn.
	Password string `json:"password,omitempty" doc:"the one-time password, where one was drawn; it is shown this once"`
}

// UserList is GET /v1/admin/users, by name.
type UserList struct {
	Users []User `json:"users"`
}

// NewUser is the body of POST /v1/admin/users.
type NewUser struct {
	Username string     `json:"username" minLength:"1" maxLength:"64"`
	Role     authz.Role `json:"role" enum:"admin,operator,viewer"`
	Password string     `json:"password,omitempty" minLength:"12" maxLength:"1024" doc:"a one-time password; drawn if absent"`
}

// NewPassword is the body of POST /v1/admin/users/{user}/password, which may have
// none.
type NewPassword struct {
	Password string `json:"password,omitempty" minLength:"12" maxLength:"1024" doc:"a one-time password; drawn if absent"`
}

// NewRole is the body of POST /v1/admin/users/{user}/role.
type NewRole struct {
	Role authz.Role `json:"role" enum:"admin,operator,viewer"`
}

// APIKey is a line of GET /v1/admin/keys.
type APIKey struct {
	ID       string       `json:"id"`
	Username string       `json:"username" doc:"who acts with it"`
	Role     authz.Role   `json:"role"`
	Name     string       `json:"name,omitempty" doc:"what it is for"`
	Peer     authz.PeerID `json:"peer,omitempty" doc:"the machine whose token file holds it"`
	PeerName string       `json:"peer_name,omitempty"`
	By       string       `json:"by,omitempty" doc:"who made it; absent where a ticket did"`
	Created  time.Time    `json:"created_at"`
	Key      string       `json:"key,omitempty" doc:"the key itself, shown once: when it is made"`
}

// KeyList is GET /v1/admin/keys, the oldest first.
type KeyList struct {
	Keys []APIKey `json:"keys"`
}

// NewKey is the body of POST /v1/admin/keys.
type NewKey struct {
	Role     authz.Role `json:"role" enum:"admin,operator,viewer,node"`
	Username string     `json:"username,omitempty" maxLength:"64" doc:"who acts with it: a user, or a name of its own for a program; the caller if absent"`
	Name     string     `json:"name,omitempty" maxLength:"64" doc:"what it is for"`
}

func (s *Server) login(ctx context.Context, in *struct{ Body Credentials }) (*answer[Session], error) {
	doing := authz.DoingOf(ctx)
	session, err := s.queue.Login(ctx, in.Body)
	if err == nil {
		// Nobody gets in unrecorded.
		doing.User, doing.Noted = session.Username, true
		err = s.queue.Note(ctx, doing.Deed)
	}
	return answerWith(session, err)
}

func (s *Server) logout(ctx context.Context, _ *nothing) (*answer[Health], error) {
	c := callerOf(ctx)
	if c.Session == "" {
		return nil, fmt.Errorf("%w: this is an API key, which has no end: revoke it with `vizpeer key revoke %s`", ErrInvalid, c.Key)
	}
	return answerWith(Health{"ok"}, s.queue.Logout(ctx, c.Principal))
}

func (s *Server) changePassword(ctx context.Context, in *struct{ Body PasswordChange }) (*answer[Session], error) {
	return answerWith(s.queue.ChangePassword(ctx, callerOf(ctx).Principal, in.Body))
}

func (s *Server) users(ctx context.Context, _ *nothing) (*answer[UserList], error) {
	all, err := s.queue.Users(ctx, callerOf(ctx).Principal)
	return answerWith(UserList{list(all)}, err)
}

func (s *Server) addUser(ctx context.Context, in *struct{ Body NewUser }) (*answer[User], error) {
	return answerWith(s.queue.AddUser(ctx, callerOf(ctx).Principal, in.Body))
}

type userInput struct {
	User string `path:"user" maxLength:"64"`
}

func (s *Server) resetPassword(ctx context.Context, in *struct {
	User string `path:"user" maxLength:"64"`
	Body *NewPassword
}) (*answer[User], error) {
	password := ""
	if in.Body != nil {
		password = in.Body.Password
	}
	return answerWith(s.queue.ResetPassword(ctx, callerOf(ctx).Principal, in.User, password))
}

// disable makes the handler that disables an account, or the one that enables it.
func disable(on bool) func(*Server, context.Context, *userInput) (*answer[User], error) {
	return func(s *Server, ctx context.Context, in *userInput) (*answer[User], error) {
		return answerWith(s.queue.DisableUser(ctx, callerOf(ctx).Principal, in.User, on))
	}
}

func (s *Server) setRole(ctx context.Context, in *struct {
	User string `path:"user" maxLength:"64"`
	Body NewRole
}) (*answer[User], error) {
	return answerWith(s.queue.SetRole(ctx, callerOf(ctx).Principal, in.User, in.Body.Role))
}

func (s *Server) keys(ctx context.Context, _ *nothing) (*answer[KeyList], error) {
	all, err := s.queue.Keys(ctx, callerOf(ctx).Principal)
	return answerWith(KeyList{list(all)}, err)
}

func (s *Server) createKey(ctx context.Context, in *struct{ Body NewKey }) (*answer[APIKey], error) {
	return answerWith(s.queue.CreateKey(ctx, callerOf(ctx).Principal, in.Body))
}

func (s *Server) revokeKey(ctx context.Context, in *struct {
	ID string `path:"id" pattern:"^[a-z2-7]{1,64}$"`
}) (*answer[APIKey], error) {
	return answerWith(s.queue.RevokeKey(ctx, callerOf(ctx).Principal, in.ID))
}
