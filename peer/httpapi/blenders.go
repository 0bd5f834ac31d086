package httpapi

import (
	"context"
	"time"

	"vizpeer/lease"
)

// Blender is a line of GET /v1/blenders: one that machines of the farm have, or that it
// offers to them.
type Blender struct {
	Name    string        `json:"name"`
	Version lease.Version `json:"version"`
	Hash    string        `json:"hash,omitempty"` // the build hash it prints
	OS      string        `json:"os"`
	Arch    string        `json:"arch"`
	OIDN    bool          `json:"oidn"`
	Count   int           `json:"count" doc:"machines that have it"`
	// Machines are those of them that the caller may see.
	Machines []string `json:"machines" doc:"the names of those machines, as far as the caller may know them"`
	Offer    *Offered `json:"offer,omitempty" doc:"that machines may fetch it, where an admin offers it"`
}

// Offered is what machines fetch of a Blender.
type Offered struct {
	Root  string    `json:"root"` // CID of its folder
	Files int       `json:"files"`
	Size  int64     `json:"size"`
	By    string    `json:"by"`
	At    time.Time `json:"at"`
}

// BlenderList is GET /v1/blenders, the latest version first.
type BlenderList struct {
	Blenders []Blender `json:"blenders"`
}

// NewOffer is the body of POST /v1/blenders. The folder was stored before, as `vizpeer
// blender add` does, on a machine that stays up until others have fetched it.
type NewOffer struct {
	Root    string        `json:"root" pattern:"^[a-zA-Z0-9]{1,128}$" doc:"CID of the folder, with its manifest vizpeer-build.json"`
	Name    string        `json:"name" maxLength:"64"`
	Version lease.Version `json:"version"`
	Hash    string        `json:"hash,omitempty" maxLength:"128"`
	OS      string        `json:"os" enum:"linux,windows,darwin"`
	Arch    string        `json:"arch" maxLength:"16" doc:"as Go names it, such as amd64 or arm64"`
	Engines []string      `json:"engines,omitempty" maxItems:"64"`
	OIDN    bool          `json:"oidn,omitempty"`
	Files   int           `json:"files" minimum:"1"`
	Size    int64         `json:"size" minimum:"1" doc:"bytes of all files"`
}

func (s *Server) blenders(ctx context.Context, _ *nothing) (*answer[BlenderList], error) {
	all, err := s.queue.Blenders(ctx, callerOf(ctx).Principal)
	return answerWith(BlenderList{list(all)}, err)
}

func (s *Server) offer(ctx context.Context, in *struct{ Body NewOffer }) (*answer[Blender], error) {
	return answerWith(s.queue.Offer(ctx, callerOf(ctx).Principal, in.Body))
}

func (s *Server) withdraw(ctx context.Context, in *struct {
	CID string `path:"cid" pattern:"^[a-zA-Z0-9]{1,128}$"`
}) (*answer[Blender], error) {
	return answerWith(s.queue.Withdraw(ctx, callerOf(ctx).Principal, in.CID))
}
