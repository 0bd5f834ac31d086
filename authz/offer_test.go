package authz

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func anOffer(root string) Offer {
	return Offer{Root: root, Name: "Blender", Version: "4.2.3", Hash: "0e22e4fcea03", OS: "linux", Arch: "amd64", Engines: []string{"CYCLES"}, OIDN: true, Files: 4000, Size: 1 << 30, By: "ann"}
}

func TestOffers(t *testing.T) {
	r, g := founded(t)
	apply := func(c Command) ([]Event, error) { c.At = noon; return r.Apply(c) }
	version := r.Version()
	b := anOffer("bafyb")
	events, err := apply(Command{Offer: &b})
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: BlenderOffered, User: "ann", Role: Admin}}, events)
	require.Equal(t, version+1, r.Version())
	a := anOffer("bafya")
	_, err = apply(Command{Offer: &a})
	require.NoError(t, err)
	got, ok := r.View().Offered("bafya")
	require.True(t, ok)
	require.Equal(t, noon, got.At.In(noon.Location()))
	require.Equal(t, []string{"bafya", "bafyb"}, []string{r.Offers()[0].Root, r.Offers()[1].Root})

	// The same content again changes nothing, whatever is said of it.
	again := anOffer("bafya")
	again.Version, again.By = "9.9.9", "bob"
	events, err = apply(Command{Offer: &again})
	require.NoError(t, err)
	require.Empty(t, events)
	got, _ = r.Offered("bafya")
	require.Equal(t, "4.2.3", got.Version)

	// It travels with the view, and outlasts a snapshot.
	text, err := json.Marshal(r.View())
	require.NoError(t, err)
	v, err := ParseView(text, g.farm.ID())
	require.NoError(t, err)
	require.Equal(t, r.Offers(), v.Offers())
	back, err := Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	require.Equal(t, r.Offers(), back.Offers())

	view := r.View()
	events, err = apply(Command{Withdraw: &Withdraw{Root: "bafya"}})
	require.NoError(t, err)
	require.Equal(t, BlenderWithdrawn, events[0].Type)
	_, err = apply(Command{Withdraw: &Withdraw{Root: "bafya"}})
	require.ErrorIs(t, err, ErrNotOffered)
	require.Len(t, r.Offers(), 1)
	require.Equal(t, "bafya", view.Offers()[0].Root, "a view stays as it was")

	for i := range MaxOffers - 1 {
		o := anOffer(fmt.Sprintf("bafyz%03d", i))
		_, err = apply(Command{Offer: &o})
		require.NoError(t, err)
	}
	last := anOffer("bafyzzz")
	_, err = apply(Command{Offer: &last})
	require.ErrorContains(t, err, "vizpeer blender rm")
}

func TestOfferThatIsNone(t *testing.T) {
	r, g := founded(t)
	before := snapshotOf(t, r)
	for name, change := range map[string]func(*Offer){
		"no root":           func(o *Offer) { o.Root = "" },
		"a path for a root": func(o *Offer) { o.Root = "../x" },
		"no system":         func(o *Offer) { o.OS = "" },
		"no processor":      func(o *Offer) { o.Arch = "a b" },
		"no version":        func(o *Offer) { o.Version = "" },
		"a long version":    func(o *Offer) { o.Version = strings.Repeat("1", 17) },
		"an odd hash":       func(o *Offer) { o.Hash = "a/b" },
		"no name":           func(o *Offer) { o.Name = "" },
		"an odd name":       func(o *Offer) { o.Name = "Blen\x1bder" },
		"an odd engine":     func(o *Offer) { o.Engines = []string{"CYCLES", "\x00"} },
		"many engines":      func(o *Offer) { o.Engines = make([]string, maxOfferList+1) },
		"nobody's":          func(o *Offer) { o.By = "" },
		"no files":          func(o *Offer) { o.Files = 0 },
		"a negative size":   func(o *Offer) { o.Size = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			o := anOffer("bafya")
			change(&o)
			_, err := r.Apply(Command{At: noon, Offer: &o})
			require.Error(t, err)
			require.Equal(t, before, snapshotOf(t, r))
			// Nor by a roster from outside.
			o.At = noon.Add(time.Hour)
			doc := r.document()
			doc.Offers = []Offer{o}
			text, err := json.Marshal(doc)
			require.NoError(t, err)
			_, err = ParseView(text, g.farm.ID())
			require.Error(t, err)
		})
	}
	doc := r.document()
	doc.Offers = []Offer{anOffer("b"), anOffer("a")}
	text, err := json.Marshal(doc)
	require.NoError(t, err)
	_, err = ParseView(text, g.farm.ID())
	require.ErrorContains(t, err, "not in order")
}
