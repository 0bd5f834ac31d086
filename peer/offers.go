package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// Blenders lists the farm's Blenders: those that its machines have, and those that it
// offers to them.
func (q queue) Blenders(ctx context.Context, p authz.Principal) (out []httpapi.Blender, err error) {
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, known coord.Knowledge) error {
		out = blendersOf(r, known, func(m authz.Member) bool { return p.MaySeeMachines() || m.User == p.User })
		return nil
	})
	return out, err
}

// blendersOf lists the Blenders of a farm, the latest first, with the names of those
// machines that the caller may see.
func blendersOf(r *authz.Roster, known coord.Knowledge, visible func(authz.Member) bool) []httpapi.Blender {
	var out []httpapi.Blender
	at := func(b lease.Build, os, arch string) *httpapi.Blender {
		i := slices.IndexFunc(out, func(o httpapi.Blender) bool {
			return o.Name == b.Name && o.Version == b.Version && o.Hash == b.Hash && o.OS == os && o.Arch == arch
		})
		if i < 0 {
			i, out = len(out), append(out, httpapi.Blender{Name: b.Name, Version: b.Version, Hash: b.Hash, OS: os, Arch: arch, OIDN: b.OIDN, Machines: []string{}})
		}
		return &out[i]
	}
	for _, o := range r.Offers() {
		if b, err := lease.BuildOf(o); err == nil {
			at(b, o.OS, o.Arch).Offer = &httpapi.Offered{Root: o.Root, Files: o.Files, Size: o.Size, By: o.By, At: o.At}
		}
	}
	for _, m := range r.Members() {
		can := known.Members[m.ID].Can
		if can == nil {
			continue
		}
		for _, b := range can.Builds {
			line := at(b, can.OS, can.Arch)
			line.Count++
			if visible(m) {
				line.Machines = append(line.Machines, m.Name)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b httpapi.Blender) int {
		switch {
		case a.Version.Less(b.Version):
			return 1
		case b.Version.Less(a.Version):
			return -1
		}
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.OS+a.Arch, b.OS+b.Arch), strings.Compare(a.Hash, b.Hash))
	})
	return out
}

// Offer offers a Blender to all machines.
func (q queue) Offer(ctx context.Context, p authz.Principal, n httpapi.NewOffer) (out httpapi.Blender, err error) {
	if !p.MayOffer() {
		return out, fmt.Errorf("%w: only an admin may offer a Blender to all machines", httpapi.ErrDenied)
	}
	o := authz.Offer{
		Root: n.Root, Name: n.Name, Version: n.Version.String(), Hash: n.Hash, OS: n.OS, Arch: n.Arch, Engines: n.Engines, OIDN: n.OIDN,
		Files: n.Files, Size: n.Size, By: p.User,
	}
	if err := o.Validate(); err != nil {
		return out, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	if err := q.coord.Admit(ctx, authz.Command{At: time.Now(), Offer: &o}); err != nil {
		return out, answer(err)
	}
	q.slog.Info("a Blender is offered to all machines", "root", o.Root, "name", o.Name, "version", o.Version, "user", p.User)
	return q.offered(p, o.Root)
}

// Withdraw takes an offer back.
func (q queue) Withdraw(ctx context.Context, p authz.Principal, root string) (out httpapi.Blender, err error) {
	if !p.MayOffer() {
		return out, fmt.Errorf("%w: only an admin may withdraw a Blender", httpapi.ErrDenied)
	}
	if out, err = q.offered(p, root); err != nil {
		return out, err
	}
	if err := q.coord.Admit(ctx, authz.Command{At: time.Now(), Withdraw: &authz.Withdraw{Root: root}}); errors.Is(err, authz.ErrNotOffered) {
		return out, httpapi.ErrNotFound
	} else if err != nil {
		return out, answer(err)
	}
	q.slog.Info("a Blender is not offered any more", "root", root, "user", p.User)
	out.Offer = nil
	return out, nil
}

// offered is the line of an offer.
func (q queue) offered(p authz.Principal, root string) (httpapi.Blender, error) {
	all, err := q.Blenders(context.Background(), p)
	if err != nil {
		return httpapi.Blender{}, err
	}
	i := slices.IndexFunc(all, func(b httpapi.Blender) bool { return b.Offer != nil && b.Offer.Root == root })
	if i < 0 {
		return httpapi.Blender{}, httpapi.ErrNotFound
	}
	return all[i], nil
}
