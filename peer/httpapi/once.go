package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"vizpeer/lease"
)

// replayedHeader tells that an answer is that of an earlier request with the same key.
const replayedHeader = "Idempotency-Replayed"

// Repeatable is the part of a request by which it can be sent again without being done
// again. It is exported because huma looks into no other.
type Repeatable struct {
	Key string `header:"Idempotency-Key" maxLength:"64" doc:"1 to 64 printable characters, of the caller's choice and a new one for each request: for 24 hours the same request with the same key is done once, and answered each time, also by another leader"`
}

// once is what the key stands for: all that the caller asks for. nil without a key.
func (in Repeatable) once(c caller, request any) (*lease.Once, error) {
	if in.Key == "" {
		return nil, nil
	}
	if err := lease.CheckKey(in.Key); err != nil {
		return nil, fmt.Errorf("%w: the header Idempotency-Key: %w", ErrInvalid, err)
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	sum := sha256.Sum256(text)
	return &lease.Once{User: c.User, Key: in.Key, Request: hex.EncodeToString(sum[:])}, nil
}

// onceAnswer is an answer that may be of an earlier request.
type onceAnswer[T any] struct {
	Status   int
	Replayed string `header:"Idempotency-Replayed" doc:"true where this is the answer to an earlier request with the same key"`
	Body     T
}

func answerOnce[T any](status int, doc T, replayed bool, err error) (*onceAnswer[T], error) {
	if err != nil {
		return nil, err
	}
	a := &onceAnswer[T]{Status: status, Body: doc}
	if replayed {
		a.Replayed = "true"
	}
	return a, nil
}
