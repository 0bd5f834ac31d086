package coord

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// equipped lists the offered Blenders that it was told to fetch.
func (p *part) equipped() (out []string) {
	for _, d := range p.heard() {
		if d.Equip != nil {
			out = append(out, d.Equip.Root)
		}
	}
	return out
}

// Machines are told to fetch a Blender when a job waits for it that they would serve
// with it: once, and only while an admin offers it.
func TestEquip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		takes := machine(1)
		takes.OS, takes.Arch, takes.Fetches = "linux", "amd64", true
		bare, other := takes, takes
		bare.Builds, bare.Slots = nil, 0
		other.OS = "windows"
		refuses := takes
		refuses.Fetches = false
		bob, eve, win, own := d.join("bob", takes), d.join("eve", bare), d.join("win", other), d.join("own", refuses)
		offer := func(root, version string) {
			t.Helper()
			o := authz.Offer{Root: root, Name: "Blender", Version: version, OS: "linux", Arch: "amd64", Files: 1, Size: 1, By: "root"}
			require.NoError(t, d.Admit(t.Context(), authz.Command{At: time.Now(), Offer: &o}))
		}
		withdraw := func(root string) {
			t.Helper()
			require.NoError(t, d.Admit(t.Context(), authz.Command{At: time.Now(), Withdraw: &authz.Withdraw{Root: root}}))
		}
		offer("r42", "4.2.3")
		offer("r41", "4.1.0")
		time.Sleep(time.Minute)
		require.Empty(t, bob.equipped(), "no job wants it")

		needs := func(s *lease.Spec) { s.Needs.Blender = "4.2" }
		d.submit("ann", aCID(1), 2, needs)
		d.submit("ann", aCID(2), 2, needs)
		d.submit("ann", aCID(3), 2, func(s *lease.Spec) { s.Needs.Blender = "5.0" })
		time.Sleep(time.Minute)
		require.Equal(t, []string{"r42"}, bob.equipped())
		require.Equal(t, []string{"r42"}, eve.equipped(), "a machine without a Blender may become a worker")
		require.Empty(t, win.equipped())
		require.Empty(t, own.equipped())

		withdraw("r42")
		time.Sleep(10 * time.Second)
		offer("r42", "4.2.3")
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"r42", "r42"}, bob.equipped(), "offered anew, it is told anew")

		// With it, the machine is granted the job, and wants nothing more.
		takes.Builds = append(takes.Builds, lease.Build{Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 3}})
		d.Advertise("bob", takes, nil)
		d.within(5*time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.leave()
		bob = d.join("bob", takes)
		time.Sleep(time.Minute)
		require.Empty(t, bob.equipped())
	})
}
