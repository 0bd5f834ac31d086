package coord

import (
	"maps"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// equipPause is how long after something happened the leader looks whether machines
// should fetch a Blender: it is a matter of minutes anyway, and looking costs a match of
// each job with each machine.
const equipPause = 2 * time.Second

// maxEquipped bounds the wants that are looked at: jobs that want the same are one.
const maxEquipped = 64

// equip tells machines which Blender of those that the farm offers they should fetch:
// each the one with which it would serve a waiting job that it does not serve now, the
// first served first. A machine is told of each offer once in the life of its stream.
func (l *leader) equip() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// By the roster that the members have been sent, as they check it.
	offers := l.members.Offers()
	for _, s := range l.sessions {
		maps.DeleteFunc(s.equipped, func(root string, _ bool) bool {
			_, offered := l.members.Offered(root)
			return !offered
		})
	}
	if len(offers) == 0 {
		return
	}
	var wants []lease.Requirements
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		known := make(map[want]bool)
		for _, j := range q.Waiting(l.now(), nil) {
			w := wantOf(j.Spec.Needs)
			if !known[w] && len(wants) < maxEquipped {
				known[w] = true
				wants = append(wants, j.Spec.Needs)
			}
		}
	})
	for _, s := range l.sessions {
		for _, needs := range wants {
			o, ok := needs.Lacking(s.can, offers)
			if !ok {
				continue
			}
			if !s.equipped[o.Root] {
				s.equipped[o.Root] = true
				s.send(Down{Equip: &Equip{Root: o.Root}})
			}
			break // the next one when this one is there
		}
	}
}

// want is what tells apart what jobs need of a machine, whatever their projects take.
type want struct {
	blender, engine, os, labels string
	file                        lease.Version
	backend                     lease.Backend
	vendor                      lease.Vendor
	gpu, denoise                bool
	vram, ram                   int64
}

func wantOf(r lease.Requirements) want {
	return want{
		blender: r.Blender, engine: r.Engine, os: r.OS, labels: strings.Join(r.Labels, "\n"), file: r.FileVersion,
		backend: r.Backend, vendor: r.GPUVendor, gpu: r.RequireGPU, denoise: r.Denoise, vram: r.MinVRAM, ram: r.MinRAM,
	}
}
