package httpapi

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Blobs is the content store of this machine as its people see it. A root is
// content that is named by itself: a folder or a file. Whoever may not know of a
// root gets [ErrNotFound] for it: an admin may know of all, others of those that
// they pinned on this machine, as adding does. Safe for concurrent use.
type Blobs interface {
	// AddBlob stores files as ImportProject does, as a folder or, with alone, the
	// one file itself, and pins the root for the caller.
	AddBlob(ctx context.Context, p authz.Principal, files iter.Seq2[ProjectFile, error], alone bool) (Blob, error)
	// Roots yields the roots that this machine holds, or is to hold, and that p
	// may know of. An error ends it.
	Roots(context.Context, authz.Principal) iter.Seq2[Root, error]
	// FetchBlob brings a root here from the farm where this machine lacks it.
	FetchBlob(ctx context.Context, p authz.Principal, cid string, progress func(done, total int64)) (Root, error)
	// Files yields the files of a folder that is here, as ImportProject gets them.
	Files(ctx context.Context, p authz.Principal, cid string) iter.Seq2[ProjectFile, error]
	// OpenBlob opens a file that is here.
	OpenBlob(ctx context.Context, p authz.Principal, cid string) (io.ReadSeekCloser, int64, error)
	// RootOf says what this machine knows of one root.
	RootOf(ctx context.Context, p authz.Principal, cid string) (Root, error)
	// PinBlob keeps a root that is here until UnpinBlob.
	PinBlob(ctx context.Context, p authz.Principal, cid string) (Root, error)
	// UnpinBlob takes back the pin of user, whom only an admin may name; "" is the
	// caller.
	UnpinBlob(ctx context.Context, p authz.Principal, cid, user string) (Root, error)
	// VerifyBlobs reads one root, or with "" everything, drops what is damaged and
	// fetches it again.
	VerifyBlobs(ctx context.Context, p authz.Principal, cid string, progress func(done, total int64)) (Verified, error)
	// CollectBlobs removes what nothing needs, and with all also what is only cached
	// and was not used just now.
	CollectBlobs(ctx context.Context, all bool) (Collected, error)
	StoreStat(context.Context) (StoreStat, error)
}

// Blob is the answer to POST /v1/blobs.
type Blob struct {
	CID      string   `json:"cid"`
	Files    int      `json:"files"`
	Size     int64    `json:"size"`
	NewBytes int64    `json:"new_bytes"` // what this machine did not hold yet
	Receipts []string `json:"receipts,omitempty" doc:"with ?receipts=true: for each file in the order sent, what proves that the caller sent it"`
}

// Root is a line of GET /v1/blobs.
type Root struct {
	CID    string `json:"cid"`
	Folder bool   `json:"folder"`
	Files  int    `json:"files"`
	Size   int64  `json:"size"` // of the files; 0 while it is not known
	Whole  bool   `json:"whole" doc:"whether all of it is here"`
	// Pins say who keeps it from being let go; without one it is only cached.
	Pins     []Pin      `json:"pins"`
	LastUsed *time.Time `json:"last_used,omitempty"`
}

// Pin is why a root is kept.
type Pin struct {
	Holder string    `json:"holder" doc:"user:NAME; job:ID for a project, frames:ID for a frame or a log; upload:NAME for a day after an upload; blender:CID for a Blender that the farm offers"`
	Since  time.Time `json:"since"`
}

// StoreStat is GET /v1/blobs/stat.
type StoreStat struct {
	Disk     int64 `json:"disk" doc:"what the store takes on the disk"`
	Quota    int64 `json:"quota"`
	Reserved int64 `json:"reserved" doc:"room that is kept for what is being fetched"`
	Pinned   int64 `json:"pinned" doc:"content that is kept"`
	Cached   int64 `json:"cached" doc:"content that is let go, least recently used first, when there is need of room"`
	Garbage  int64 `json:"garbage" doc:"content that nothing needs: gc removes it"`
	Free     int64 `json:"free" doc:"on the store's disk"`
	MinFree  int64 `json:"min_free" doc:"of free, what the store leaves alone"`
	Blocks   int   `json:"blocks"`
	Roots    int   `json:"roots" doc:"that are pinned"`
	// Full is as of [Full].
	Full string `json:"full,omitempty" doc:"why this machine takes no more work, in words"`
	Caps Caps   `json:"caps"`
}

// The room that a machine must have to be given work, in bytes: on its disk, and in
// its store.
const (
	MinDisk = 256 << 20
	MinRoom = 16 << 20
)

// Full says in words why a machine takes nothing more; "" while it has room.
func Full(can *lease.Capability) string {
	switch {
	case can == nil:
	case can.FreeDisk < MinDisk:
		return fmt.Sprintf("its disk is full: %d MiB are free and %d MiB must be; make room there", can.FreeDisk>>20, MinDisk>>20)
	case can.Room != nil && *can.Room < MinRoom:
		return fmt.Sprintf("its store is full: what it holds is kept for jobs and people, and %d MiB are left; raise cache_quota there, or unpin content", *can.Room>>20)
	}
	return ""
}

// Caps are what this machine may send and take, in bytes a second; 0 is no cap.
type Caps struct {
	Upload   int64    `json:"upload"`
	Download int64    `json:"download"`
	Hours    []string `json:"hours,omitempty" doc:"when the caps hold; absent: always"`
	Active   bool     `json:"active" doc:"whether they hold now"`
}

// Verified is the end of POST /v1/blobs/verify.
type Verified struct {
	Blocks   int      `json:"blocks"`  // read
	Bytes    int64    `json:"bytes"`   // read
	Dropped  int      `json:"dropped"` // damaged, and dropped
	Repaired []string `json:"repaired" doc:"roots that lacked something and are whole again, of those that the caller may know of"`
	Lacking  []string `json:"lacking" doc:"roots that lack something which no machine that answers has"`
}

// Collected is the answer to POST /v1/blobs/gc.
type Collected struct {
	Blocks int   `json:"blocks"`
	Bytes  int64 `json:"bytes"`
	Disk   int64 `json:"disk"` // by how much the store shrank
}

type blobInput struct {
	exchange
	CID string `path:"cid" pattern:"^[a-zA-Z0-9]{1,128}$"`
}

func (s *Server) addBlob(ctx context.Context, in *struct {
	exchange
	File     bool `query:"file" doc:"the tar's one file itself is the content, not a folder with it"`
	Receipts bool `query:"receipts" doc:"answer with receipts"`
}) (*answer[Blob], error) {
	up, err := s.uploaded(&in.exchange)
	if err != nil {
		return nil, err
	}
	blob, err := s.local.AddBlob(ctx, callerOf(ctx).Principal, up.files(), in.File)
	if err != nil {
		return nil, err
	}
	up.drain()
	if !in.Receipts {
		blob.Receipts = nil
	}
	return answerWith(blob, s.fits(blob.Size))
}

// roots lists the roots, one a line, as they are found.
func (s *Server) roots(ctx context.Context, in *struct{ exchange }) (*huma.StreamResponse, error) {
	next, stop := iter.Pull2(s.local.Roots(ctx, callerOf(ctx).Principal))
	root, err, more := next()
	if err != nil {
		stop()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer stop()
		in.w.Header().Set("Content-Type", linesType)
		out := json.NewEncoder(in.w)
		for ; more; root, err, more = next() {
			if err != nil {
				s.log.Warn("the roots could not be listed to the end", "error", err)
				panic(http.ErrAbortHandler) // the caller must not take this for all
			}
			root.Pins = list(root.Pins)
			if out.Encode(root) != nil {
				return
			}
		}
	}}, nil
}

func (s *Server) storeStat(ctx context.Context, _ *nothing) (*answer[StoreStat], error) {
	return answerWith(s.local.StoreStat(ctx))
}

// blob answers a file as its bytes, with ranges, and a folder as a tar.
func (s *Server) blob(ctx context.Context, in *blobInput) (*huma.StreamResponse, error) {
	p := callerOf(ctx).Principal
	root, err := s.local.RootOf(ctx, p, in.CID)
	if err != nil {
		return nil, err
	}
	if !root.Whole {
		return nil, newProblem(http.StatusNotFound, CodeNotFound, "this machine does not hold all of it: fetch it first, as `vizpeer blob get` does")
	}
	if !root.Folder {
		return serveContent(&in.exchange, content{root.CID, root.Size, "application/octet-stream", root.CID},
			func() (io.ReadSeekCloser, int64, error) { return s.local.OpenBlob(ctx, p, in.CID) })
	}
	return s.sendTar(ctx, &in.exchange, root.CID, s.local.Files(ctx, p, in.CID)), nil
}

// sendTar answers the folder of that CID.
func (s *Server) sendTar(ctx context.Context, x *exchange, cid string, files iter.Seq2[ProjectFile, error]) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(huma.Context) {
		x.w.Header().Set("Content-Type", tarType)
		x.w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": cid + ".tar"}))
		if err := writeTar(x.w, files); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("a folder could not be sent to its end", "cid", cid, "error", err)
			}
			panic(http.ErrAbortHandler) // a tar that ends well would pass for a whole one
		}
	}}
}

func writeTar(w io.Writer, files iter.Seq2[ProjectFile, error]) error {
	t := tar.NewWriter(w)
	for f, err := range files {
		if err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: 0o644, Size: f.Size}); err != nil {
			return err
		}
		if _, err := io.Copy(t, f.Body); err != nil {
			return err
		}
	}
	return t.Close()
}

func (s *Server) fetchBlob(ctx context.Context, in *blobInput) (*huma.StreamResponse, error) {
	p := callerOf(ctx).Principal
	return steps(s, ctx, "/v1/blobs/{cid}/fetch", &in.exchange, func(ctx context.Context, progress func(done, total int64)) (Root, error) {
		root, err := s.local.FetchBlob(ctx, p, in.CID, progress)
		root.Pins = list(root.Pins)
		return root, err
	})
}

func (s *Server) pinBlob(ctx context.Context, in *blobInput) (*answer[Root], error) {
	root, err := s.local.PinBlob(ctx, callerOf(ctx).Principal, in.CID)
	root.Pins = list(root.Pins)
	return answerWith(root, err)
}

func (s *Server) unpinBlob(ctx context.Context, in *struct {
	CID  string `path:"cid" pattern:"^[a-zA-Z0-9]{1,128}$"`
	User string `query:"user" maxLength:"200" doc:"whose pin, for an admin; the caller's own if absent"`
}) (*answer[Root], error) {
	p := callerOf(ctx).Principal
	if in.User != "" && in.User != p.User && p.Role != authz.Admin {
		return nil, fmt.Errorf("%w: only an admin may take back another's pin", ErrDenied)
	}
	root, err := s.local.UnpinBlob(ctx, p, in.CID, in.User)
	root.Pins = list(root.Pins)
	return answerWith(root, err)
}

func (s *Server) verifyBlobs(ctx context.Context, in *struct {
	exchange
	CID string `query:"cid" pattern:"^[a-zA-Z0-9]{0,128}$" doc:"one root; everything if absent"`
}) (*huma.StreamResponse, error) {
	p := callerOf(ctx).Principal
	return steps(s, ctx, "/v1/blobs/verify", &in.exchange, func(ctx context.Context, progress func(done, total int64)) (Verified, error) {
		v, err := s.local.VerifyBlobs(ctx, p, in.CID, progress)
		v.Repaired, v.Lacking = list(v.Repaired), list(v.Lacking)
		return v, err
	})
}

func (s *Server) collectBlobs(ctx context.Context, in *struct {
	All bool `query:"all" doc:"let go also of what is only cached"`
}) (*answer[Collected], error) {
	return answerWith(s.local.CollectBlobs(ctx, in.All))
}

// MaxLacking bounds the paths of a [Lacking].
const MaxLacking = 10_000

// Lacking is the error of ImportProject and AddBlob for receipts that name what
// is not here, or is not the caller's: the files must be sent. It does not say
// which of the two, so that nobody learns what others have.
type Lacking struct{ Paths []string }

func (e *Lacking) Error() string {
	return fmt.Sprintf("%d files are not held here any more: send them, the first is %q", len(e.Paths), e.Paths[0])
}
