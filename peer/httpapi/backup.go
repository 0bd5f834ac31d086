package httpapi

import (
	"context"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/authz"
)

// backupType is the content type of a backup: a tar, gzipped.
const backupType = "application/gzip"

// BackupMade says what a backup is of, once it is written.
type BackupMade struct {
	Farm    authz.FarmID `json:"farm"`
	Epoch   uint64       `json:"epoch"`
	Index   uint64       `json:"applied_index"` // of the last entry of the queue's log that is in it
	At      time.Time    `json:"at"`
	Records uint64       `json:"records"` // of the audit
}

// backup answers the farm's state. A backup ends with its own sum, so that one that
// was cut short can be told from a whole one.
func (s *Server) backup(ctx context.Context, in *struct{ exchange }) (*huma.StreamResponse, error) {
	p := callerOf(ctx).Principal
	pipe, to := io.Pipe()
	go func() {
		_, err := s.queue.Backup(ctx, p, to)
		to.CloseWithError(err)
	}()
	// What fails before the first byte is an ordinary error.
	first := make([]byte, 64<<10)
	n, err := io.ReadAtLeast(pipe, first, 1)
	if err != nil {
		_ = pipe.Close()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer pipe.Close()
		in.w.Header().Set("Content-Type", backupType)
		in.w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": "vizpeer-" + time.Now().UTC().Format("20060102-150405") + ".backup"}))
		_, err := in.w.Write(first[:n])
		if err == nil {
			_, err = io.Copy(in.w, pipe)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("a backup could not be sent to its end", "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}}, nil
}
