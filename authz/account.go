package authz

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	passwordIterations    = 600_000 // of HMAC-SHA-256; about 0.2 s of one core
	maxPasswordIterations = 10_000_000
	passwordSaltSize      = 16
	minPassword           = 12   // bytes
	maxPassword           = 1024 // bytes
)

// Person is what every peer knows of an account: never its password.
type Person struct {
	User string `json:"user"`
	Role Role   `json:"role"` // never node
	// Disabled tells that the person's sessions, and the API keys in the person's
	// name, are refused.
	Disabled bool `json:"disabled,omitempty"`
	// MustChange tells that the password is a one-time one: with it, a person can
	// choose another and nothing else.
	MustChange bool `json:"must_change,omitempty"`
	// ValidAfter ends the sessions that were issued before it.
	ValidAfter time.Time `json:"valid_after,omitzero"`
}

func (p Person) validate() error {
	if _, err := ParseRole(string(p.Role)); err != nil {
		return err
	}
	if p.Role == Node {
		return errors.New("an account is a person's: use one of admin, operator, viewer, not node")
	}
	if p.ValidAfter.Year() > maxYear {
		return errors.New("the account's sessions would never begin")
	}
	return checkName("user", p.User)
}

// Password is what the farm keeps of a password. The zero value is nobody's.
type Password struct {
	Salt       []byte `json:"salt"`
	Iterations int    `json:"iterations"`
	Hash       Hash   `json:"hash"` // PBKDF2-HMAC-SHA-256
}

// Account is a person who logs in with a password. It is held by the
// coordinators alone.
type Account struct {
	Person
	Password
}

// NewAccount makes an account with a salt read from random, which is rand.Reader
// of crypto/rand outside tests. It takes about 0.2 s of one core.
func NewAccount(random io.Reader, user string, role Role, password string) (Account, error) {
	a := Account{Person: Person{User: user, Role: role}}
	if err := a.Person.validate(); err != nil {
		return Account{}, err
	}
	var err error
	a.Password, err = NewPassword(random, password)
	return a, err
}

// CheckPassword says what is wrong with a password that somebody chose.
func CheckPassword(password string) error {
	if len(password) < minPassword || len(password) > maxPassword {
		return fmt.Errorf("the password has %d bytes: use %d to %d", len(password), minPassword, maxPassword)
	}
	return nil
}

// NewPassword is what the farm keeps of password, with a salt read from random. It
// takes about 0.2 s of one core.
func NewPassword(random io.Reader, password string) (Password, error) {
	if err := CheckPassword(password); err != nil {
		return Password{}, err
	}
	p := Password{Salt: make([]byte, passwordSaltSize), Iterations: passwordIterations}
	if _, err := io.ReadFull(random, p.Salt); err != nil {
		return Password{}, fmt.Errorf("making a password's salt: %w", err)
	}
	var err error
	if p.Hash, err = p.derive(password); err != nil {
		return Password{}, fmt.Errorf("deriving a password's hash: %w", err)
	}
	return p, p.validate()
}

// CheckPassword tells whether the password is the account's. It takes about
// 0.2 s whatever the answer, for the zero Account too, so that a stranger cannot
// tell an unknown user from a wrong password: call it outside any lock.
func (a Account) CheckPassword(password string) bool {
	known := a.validate() == nil && len(password) <= maxPassword
	if !known {
		a.Password = Password{Salt: make([]byte, passwordSaltSize), Iterations: passwordIterations}
		password = ""
	}
	got, err := a.derive(password)
	return subtle.ConstantTimeCompare(got[:], a.Hash[:]) == 1 && known && err == nil
}

func (p Password) derive(password string) (Hash, error) {
	sum, err := pbkdf2.Key(sha256.New, password, p.Salt, p.Iterations, sha256.Size)
	if err != nil {
		return Hash{}, err
	}
	return Hash(sum), nil
}

func (p Password) validate() error {
	if len(p.Salt) != passwordSaltSize || p.Iterations < passwordIterations || p.Iterations > maxPasswordIterations || p.Hash == (Hash{}) {
		return errors.New("the account's password record is damaged or too weak")
	}
	return nil
}

func (a Account) validate() error {
	return errors.Join(a.Person.validate(), a.Password.validate())
}
