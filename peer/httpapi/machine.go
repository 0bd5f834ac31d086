package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/authz"
)

// answer is a JSON document.
type answer[T any] struct{ Body T }

func answerWith[T any](doc T, err error) (*answer[T], error) {
	if err != nil {
		return nil, err
	}
	return &answer[T]{doc}, nil
}

type nothing struct{}

func (s *Server) healthz(context.Context, *nothing) (*answer[Health], error) {
	return answerWith(Health{"ok"}, nil)
}

func (s *Server) readyz(ctx context.Context, _ *nothing) (*answer[Health], error) {
	var failing, words []string
	for _, c := range s.local.Ready(ctx) {
		if c.Err != nil {
			failing = append(failing, c.Name)
			if words = append(words, c.Name); c.Say != "" {
				words[len(words)-1] += " (" + c.Say + ")"
			}
			s.log.Debug("not ready", "check", c.Name, "error", c.Err)
		}
	}
	if len(failing) == 0 {
		return answerWith(Health{"ok"}, nil)
	}
	p := newProblem(http.StatusServiceUnavailable, CodeNotReady, "not ready: "+strings.Join(words, ", "), "Retry-After", "2")
	p.Failing = failing
	return nil, p
}

func (s *Server) document(context.Context, *nothing) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/openapi+json")
		hc.BodyWriter().Write(s.openAPI)
	}}, nil
}

// caType is what browsers know certificates by.
const caType = "application/x-pem-file"

func (s *Server) authority(context.Context, *nothing) (*huma.StreamResponse, error) {
	text := s.local.CA()
	if len(text) == 0 {
		return nil, fmt.Errorf("%w: the farm has no CA yet", ErrNotFound)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", caType)
		hc.BodyWriter().Write(text)
	}}, nil
}

func (s *Server) status(ctx context.Context, _ *nothing) (*answer[Status], error) {
	st := s.local.Status(ctx)
	st.Reach.At, st.Reach.Through = list(st.Reach.At), list(st.Reach.Through)
	st.Roles, st.Addrs, st.Running, st.CA = list(st.Roles), list(st.Addrs), list(st.Running), list(st.CA)
	st.HTTPS = list(st.HTTPS)
	return answerWith(st, nil)
}

func (s *Server) whoami(ctx context.Context, _ *nothing) (*answer[Whoami], error) {
	peer, farm := s.local.Identity()
	return answerWith(Whoami{Principal: callerOf(ctx).Principal, Peer: peer, Farm: string(farm)}, nil)
}

// principal tells another peer whose token it was given.
func (s *Server) principal(ctx context.Context, _ *nothing) (*answer[authz.Principal], error) {
	return answerWith(callerOf(ctx).Principal, nil)
}

func (s *Server) peerList(ctx context.Context, _ *nothing) (*answer[PeerList], error) {
	peers, err := s.queue.Peers(ctx, callerOf(ctx).Principal)
	return answerWith(PeerList{list(peers)}, err)
}

type peerInput struct {
	ID authz.PeerID `path:"id" pattern:"^[A-Za-z0-9]{1,128}$"`
}

// drain makes the handler that begins a drain, or the one that ends it.
func drain(on bool) func(*Server, context.Context, *peerInput) (*answer[Peer], error) {
	return func(s *Server, ctx context.Context, in *peerInput) (*answer[Peer], error) {
		return answerWith(s.queue.Drain(ctx, callerOf(ctx).Principal, in.ID, on))
	}
}

func (s *Server) label(ctx context.Context, in *struct {
	ID   authz.PeerID `path:"id" pattern:"^[A-Za-z0-9]{1,128}$"`
	Body Labels
}) (*answer[Peer], error) {
	return answerWith(s.queue.Label(ctx, callerOf(ctx).Principal, in.ID, in.Body.Labels))
}

func (s *Server) farmInfo(ctx context.Context, _ *nothing) (*answer[Farm], error) {
	farm, err := s.queue.Farm(ctx, callerOf(ctx).Principal)
	farm.Coord.Voters, farm.Coord.Standbys, farm.CA = list(farm.Coord.Voters), list(farm.Coord.Standbys), list(farm.CA)
	farm.Coord.Coordinators = list(farm.Coord.Coordinators)
	return answerWith(farm, err)
}

func (s *Server) invite(ctx context.Context, in *struct{ Body Invitation }) (*answer[Invited], error) {
	return answerWith(s.queue.Invite(ctx, callerOf(ctx).Principal, in.Body))
}
