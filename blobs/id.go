package blobs

import (
	"crypto/rand"
	"errors"

	"github.com/dgraph-io/badger/v4"
)

// idKey holds the store's ID.
var idKey = []byte{'i'}

// ID names what this folder holds: it is random, drawn when the folder is first
// opened, and lost with it. One that was emptied, or put in another's place, has
// another.
func (s *Store) ID() string { return s.id }

// identify reads the ID, or draws it.
func (s *Store) identify() error {
	err := s.index.db.View(func(t *badger.Txn) error {
		it, err := t.Get(idKey)
		if err != nil {
			return err
		}
		return it.Value(func(v []byte) error { s.id = string(v); return nil })
	})
	if !errors.Is(err, badger.ErrKeyNotFound) {
		return err
	}
	s.id = rand.Text()
	return s.index.write(adding, func(t *badger.Txn) error { return t.Set(idKey, []byte(s.id)) })
}
