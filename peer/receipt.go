package peer

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/ipfs/go-cid"

	"vizpeer/authz"
)

// receipts prove to this machine that somebody has sent it a file: whoever shows
// one need not send the bytes again. To name content is no right to read it, and
// a render reads all of its project, so a CID alone is never taken for a file: a
// receipt can be made by this machine only, and is good only for the person whose
// upload it answered.
type receipts struct{ key []byte }

const receiptKeyFile = "receipts.key"

// openReceipts reads the key of the data folder, making one on first use. With
// the key all receipts are lost, which costs nothing but sending files again.
func openReceipts(d dataDir) (receipts, error) {
	key, err := os.ReadFile(d.path(receiptKeyFile))
	switch {
	case err == nil && len(key) == sha256.Size:
		return receipts{key}, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return receipts{}, fmt.Errorf("read the key of receipts: %w", err)
	}
	key = make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return receipts{key}, d.write(receiptKeyFile, key, 0o600)
}

// issue makes the receipt of a file that p sent here.
func (r receipts) issue(p authz.Principal, file cid.Cid) string {
	return base64.RawURLEncoding.EncodeToString(append(file.Bytes(), r.mac(p, file)...))
}

// accept answers which file p sent here by the receipt that it shows.
func (r receipts) accept(p authz.Principal, receipt string) (file cid.Cid, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(receipt)
	if err != nil || len(b) <= sha256.Size {
		return cid.Undef, false
	}
	file, err = cid.Cast(b[:len(b)-sha256.Size])
	if err != nil || !hmac.Equal(b[len(b)-sha256.Size:], r.mac(p, file)) {
		return cid.Undef, false
	}
	return file, true
}

func (r receipts) mac(p authz.Principal, file cid.Cid) []byte {
	h := hmac.New(sha256.New, r.key)
	// The CID delimits itself, so no name can be stretched into it.
	h.Write([]byte("vizpeer receipt 1\x00"))
	h.Write(file.Bytes())
	h.Write([]byte(p.User))
	return h.Sum(nil)
}
