package authz

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// base32Text is the alphabet of everything that people copy: lower-case letters
// and digits, so that a double click selects all of it and no mail program
// breaks it at a dash.
var base32Text = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// farmHashSize is how many bytes of the public key's SHA-256 name a farm.
const farmHashSize = 20

const farmIDPrefix = "vf"

// FarmID names a farm: "vf" and the hash of the farm's public key. Whoever
// knows the ID can check any statement that the farm key signed.
type FarmID string

func farmIDOf(public ed25519.PublicKey) FarmID {
	sum := sha256.Sum256(public)
	return farmIDFrom(sum[:farmHashSize])
}

func farmIDFrom(hash []byte) FarmID {
	return FarmID(farmIDPrefix + base32Text.EncodeToString(hash))
}

// ParseFarmID reads a farm ID, and refuses what no farm can have.
func ParseFarmID(s string) (FarmID, error) {
	if _, err := FarmID(s).hash(); err != nil {
		return "", err
	}
	return FarmID(s), nil
}

// hash is the part of the public key's hash that the ID carries.
func (id FarmID) hash() ([]byte, error) {
	text, ok := strings.CutPrefix(string(id), farmIDPrefix)
	if ok && len(text) == base32Text.EncodedLen(farmHashSize) {
		if hash, err := base32Text.DecodeString(text); err == nil {
			return hash, nil
		}
	}
	return nil, fmt.Errorf("%.64q is not a farm's ID: it is %q and %d letters and digits, as `vizpeer status` shows it",
		string(id), farmIDPrefix, base32Text.EncodedLen(farmHashSize))
}

// FarmKey is the private key that makes a farm. It signs charters and nothing
// else (certificates are the CA's, whose key may stand beside it in the recovery file), and lives in the recovery file, never on the wire and never in the
// roster. The zero value is no key.
type FarmKey struct{ private ed25519.PrivateKey }

// NewFarmKey makes a farm's key from 32 bytes of random, which is rand.Reader
// of crypto/rand outside tests.
func NewFarmKey(random io.Reader) (FarmKey, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return FarmKey{}, fmt.Errorf("making the farm key: %w", err)
	}
	return FarmKey{ed25519.NewKeyFromSeed(seed)}, nil
}

// Public is the half of the key that charters carry.
func (k FarmKey) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// ID is the farm's name.
func (k FarmKey) ID() FarmID { return farmIDOf(k.Public()) }

// String names the key without giving it away.
func (k FarmKey) String() string {
	if k.private == nil {
		return "no farm key"
	}
	return "the key of farm " + string(k.ID())
}

// GoString is String: %#v must not print the key either.
func (k FarmKey) GoString() string { return k.String() }

// LogValue is String: a key that reaches a log is named, not shown.
func (k FarmKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

const (
	recoveryBlock  = "VIZPEER FARM KEY"
	recoveryHeader = "Farm"
	recoveryNotice = `This is the recovery file of a vizpeer farm. Whoever holds it can take the
farm over, and without it a lost coordinator cannot be replaced. Keep it off
the farm's machines.

`
	maxRecoveryFile = 16 << 10
)

// EncodeRecovery writes the text of the recovery file. It holds the private key:
// the caller writes it readable by its owner alone (0600) and shows it to no one.
func (k FarmKey) EncodeRecovery() []byte {
	return append([]byte(recoveryNotice), pem.EncodeToMemory(&pem.Block{
		Type:    recoveryBlock,
		Headers: map[string]string{recoveryHeader: string(k.ID())},
		Bytes:   k.private.Seed(),
	})...)
}

// recoveryCA is the block of the CA's private key, behind the farm key.
const recoveryCA = "VIZPEER CA KEY"

// AppendCA adds the private key of the farm's CA, in PKCS #8, to the text of a
// recovery file: where all coordinators are lost, the certificates of a new one then
// still lead to what people have pinned.
func AppendCA(file, key []byte) []byte {
	return append(file, pem.EncodeToMemory(&pem.Block{Type: recoveryCA, Bytes: key})...)
}

// RecoveredCA is the CA's key of a recovery file, nil where it holds none.
func RecoveredCA(file []byte) []byte {
	for len(file) <= maxRecoveryFile {
		var block *pem.Block
		if block, file = pem.Decode(file); block == nil {
			break
		}
		if block.Type == recoveryCA {
			return block.Bytes
		}
	}
	return nil
}

// DecodeRecovery reads what [FarmKey.EncodeRecovery] wrote, with or without what
// [AppendCA] added. Its errors never quote the file.
func DecodeRecovery(file []byte) (FarmKey, error) {
	if len(file) > maxRecoveryFile {
		return FarmKey{}, fmt.Errorf("the recovery file has %d bytes, more than the %d possible: name the file that `vizpeer init` wrote", len(file), maxRecoveryFile)
	}
	block, rest := pem.Decode(file)
	if ca, behind := pem.Decode(rest); ca != nil && ca.Type == recoveryCA {
		rest = behind
	}
	switch {
	case block == nil:
		return FarmKey{}, fmt.Errorf("this is not a recovery file, or it is cut short: name the file that `vizpeer init` wrote")
	case block.Type != recoveryBlock:
		return FarmKey{}, fmt.Errorf("this file holds a %q, not a farm key: name the file that `vizpeer init` wrote", block.Type)
	case len(block.Bytes) != ed25519.SeedSize || len(bytes.TrimSpace(rest)) != 0:
		return FarmKey{}, fmt.Errorf("the recovery file is damaged: restore it from a copy")
	}
	k := FarmKey{ed25519.NewKeyFromSeed(block.Bytes)}
	if said := block.Headers[recoveryHeader]; said != string(k.ID()) {
		return FarmKey{}, fmt.Errorf("the recovery file is damaged: it says farm %.64q but holds the key of %s: restore it from a copy", said, k.ID())
	}
	return k, nil
}
