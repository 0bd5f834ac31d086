package coord

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
)

// AuditProtocol gives a coordinator older records of the audit than its log and its
// snapshots have. Nobody else gets an answer.
//
//	coordinator → other one   which records
//	other one → coordinator   those of them that it has, up to the last one asked for
//	                          and at most [auditPart], as JSON lines in order
const AuditProtocol = "/vizpeer/audit/1"

const (
	auditPart    = 1024
	auditTimeout = 30 * time.Second
	// auditAgain is how long after a try in vain the others are asked again.
	auditAgain = time.Minute
)

type auditRequest struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// lookForAudit has completeAudit look whether something is missing.
func (c *Coordinator) lookForAudit() {
	select {
	case c.lacking <- struct{}{}:
	default:
	}
}

// completeAudit fetches the older records that this machine lacks, such as one that
// came to hold the queue by a snapshot, until ctx ends. The snapshot names the last of
// them by its hash, and each names the one before it: records are taken from the end,
// and whoever gives others is found out.
func (c *Coordinator) completeAudit(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-c.lacking:
		case <-again.C:
		case <-ctx.Done():
			return
		}
		for {
			stored, _ := c.log().auditEnd()
			gaps := c.log().fsm.ledger.gaps(stored)
			if len(gaps) == 0 {
				break
			}
			if err := c.fetchAudit(ctx, gaps[len(gaps)-1]); err != nil {
				if ctx.Err() == nil {
					c.slog.Warn("older records of the audit are missing here", "gaps", len(gaps), "err", err)
				}
				if !errors.Is(err, errAlone) { // a new coordinator is heard of
					again.Reset(auditAgain)
				}
				break
			}
		}
	}
}

var errAlone = errors.New("no other coordinator is known")

// fetchAudit gets the end of a gap from whoever has it.
func (c *Coordinator) fetchAudit(ctx context.Context, g gap) error {
	tried := errAlone
	for _, id := range c.Roster().Coordinators() {
		p, err := peer.Decode(string(id))
		if err != nil || id == c.self {
			continue
		}
		records, err := c.askForAudit(ctx, p, g)
		if err == nil {
			return c.log().fsm.ledger.insert(records)
		}
		tried = fmt.Errorf("asking %s: %w", id.Short(), err)
	}
	return tried
}

// askForAudit asks one coordinator and verifies what it answers.
func (c *Coordinator) askForAudit(ctx context.Context, p peer.ID, g gap) ([]authz.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	s, err := c.host.NewStream(ctx, p, AuditProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	_ = s.SetDeadline(time.Now().Add(auditTimeout))
	if err := json.NewEncoder(s).Encode(auditRequest{g.first, g.last}); err != nil {
		return nil, err
	}
	if err := s.CloseWrite(); err != nil {
		return nil, err
	}
	var records []authz.Record
	in := json.NewDecoder(io.LimitReader(s, auditPart*maxRecord))
	for {
		var r authz.Record
		if err := in.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		if records = append(records, r); len(records) > auditPart {
			return nil, errors.New("it answered more than was asked for")
		}
	}
	if len(records) == 0 || records[0].Seq < g.first {
		return nil, errors.New("it does not have them")
	}
	v := authz.Verifier{At: authz.Mark{Seq: records[0].Seq - 1, Hash: records[0].Prev}}
	for _, r := range records {
		if err := v.Next(r); err != nil {
			return nil, err
		}
	}
	return records, v.End(authz.Mark{Seq: g.last, Hash: g.hash})
}

// giveAudit answers another coordinator.
func (c *Coordinator) giveAudit(s network.Stream) {
	defer s.Close()
	who := authz.PeerID(s.Conn().RemotePeer().String())
	_ = s.SetDeadline(time.Now().Add(auditTimeout))
	var r auditRequest
	if !c.has.Coordinates(who) || json.NewDecoder(io.LimitReader(s, 1<<10)).Decode(&r) != nil {
		_ = s.Reset()
		return
	}
	var records []authz.Record
	_ = c.log().Audit(context.Background(), r.Last+1, func(record authz.Record) bool {
		// In a row, the last one first; what is not signed is in the other's log.
		if record.Seq != r.Last-uint64(len(records)) || record.Seq < r.First || record.Signature == nil {
			return false
		}
		records = append(records, record)
		return len(records) < auditPart
	})
	slices.Reverse(records)
	w := bufio.NewWriter(s)
	out := json.NewEncoder(w)
	for _, record := range records {
		if out.Encode(record) != nil {
			return
		}
	}
	_ = w.Flush()
}
