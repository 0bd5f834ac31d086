package peer

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/tyler-smith/go-bip39/wordlists"

	"vizpeer/authz"
)

// wordRounds makes each try at a phrase cost some hundredths of a second.
const wordRounds = 100_000

// phraseSize is how many words a phrase has, of 11 bits each.
const phraseSize = 4

// nonceSize is how many random bytes each side adds to a phrase.
const nonceSize = 32

// phrase is the four words that a machine which asks to be admitted and the leader
// show to their people. Both IDs are proven by the handshake of the connection, so a
// machine between the two, which must be another one to each, makes the screens differ.
// It cannot look for identities with which they agree: the machine has bound itself to
// its nonce before the leader chose its own, and shows it only then.
func phrase(farm authz.FarmID, machine, leader peer.ID, machineNonce, leaderNonce []byte) (string, error) {
	salt := sha256.New()
	for _, part := range [][]byte{[]byte("vizpeer admission 1"), []byte(farm), machineNonce, leaderNonce} {
		_ = binary.Write(salt, binary.BigEndian, uint32(len(part))) // a hash takes everything
		salt.Write(part)
	}
	key, err := pbkdf2.Key(sha256.New, string(machine)+string(leader), salt.Sum(nil), wordRounds, 8)
	if err != nil {
		return "", err
	}
	bits := binary.BigEndian.Uint64(key)
	words := make([]string, phraseSize)
	for i := range words {
		words[i] = wordlists.English[bits&(1<<11-1)]
		bits >>= 11
	}
	return strings.Join(words, "-"), nil
}
