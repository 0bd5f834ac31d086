package authz

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

const (
	passwordIterations    = 600_000 // of HMAC-SHA-256; about 0.2 s of one core
	maxPasswordIterations = 10_000_000
	passwordSaltSize      = 16
	minPassword           = 12   // bytes
	maxPassword           = 1024 // bytes
)

// Account is a person who logs in with a password. It is held by the
// coordinators alone.
type Account struct {
	User       string `json:"user"`
	Role       Role   `json:"role"`
	Salt       []byte `json:"salt"`
	Iterations int    `json:"iterations"`
	Hash       Hash   `json:"hash"` // PBKDF2-HMAC-SHA-256
}

// NewAccount makes an account with a salt read from random, which is rand.Reader
// of crypto/rand outside tests. It takes about 0.2 s of one core.
func NewAccount(random io.Reader, user string, role Role, password string) (Account, error) {
	if len(password) < minPassword || len(password) > maxPassword {
		return Account{}, fmt.Errorf("the password has %d bytes: use %d to %d", len(password), minPassword, maxPassword)
	}
	a := Account{User: user, Role: role, Salt: make([]byte, passwordSaltSize), Iterations: passwordIterations}
	if _, err := io.ReadFull(random, a.Salt); err != nil {
		return Account{}, fmt.Errorf("making an account: %w", err)
	}
	var err error
	if a.Hash, err = a.derive(password); err != nil {
		return Account{}, fmt.Errorf("making an account: %w", err)
	}
	return a, a.validate()
}

// CheckPassword tells whether the password is the account's. It takes about
// 0.2 s whatever the answer, for the zero Account too, so that a stranger cannot
// tell an unknown user from a wrong password: call it outside any lock.
func (a Account) CheckPassword(password string) bool {
	known := a.validate() == nil && len(password) <= maxPassword
	if !known {
		a = Account{Salt: make([]byte, passwordSaltSize), Iterations: passwordIterations}
		password = ""
	}
	got, err := a.derive(password)
	return subtle.ConstantTimeCompare(got[:], a.Hash[:]) == 1 && known && err == nil
}

func (a Account) derive(password string) (Hash, error) {
	sum, err := pbkdf2.Key(sha256.New, password, a.Salt, a.Iterations, sha256.Size)
	if err != nil {
		return Hash{}, err
	}
	return Hash(sum), nil
}

func (a Account) validate() error {
	if _, err := ParseRole(string(a.Role)); err != nil {
		return err
	}
	if len(a.Salt) != passwordSaltSize || a.Iterations < passwordIterations || a.Iterations > maxPasswordIterations || a.Hash == (Hash{}) {
		return errors.New("the account's password record is damaged or too weak")
	}
	return checkName("user", a.User)
}
