package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of offers.
const (
	MaxOffers    = 64
	maxOfferText = 128 // bytes
	maxOfferList = 64  // engines
)

// ErrNotOffered says that there is no such offer to withdraw.
var ErrNotOffered = errors.New("the farm offers no such Blender")

// Offer is a Blender that the farm's machines may fetch and run where a job needs it.
// It is a program that then runs on all of them, so an admin alone makes one, and
// machines believe nothing but the roster.
type Offer struct {
	Root    string   `json:"root"` // CID of the folder; it names the offer
	Name    string   `json:"name"` // "Blender"
	Version string   `json:"version"`
	Hash    string   `json:"hash,omitempty"` // the build hash it prints
	OS      string   `json:"os"`             // GOOS of the machines it is for
	Arch    string   `json:"arch"`           // GOARCH
	Engines []string `json:"engines,omitempty"`
	OIDN    bool     `json:"oidn"`
	Files   int      `json:"files"`
	Size    int64    `json:"size"` // bytes of the files
	By      string   `json:"by"`   // the user who offered it
	// At is when; Apply sets it.
	At time.Time `json:"at"`
}

// Withdraw takes an offer back: machines then remove what they fetched of it.
type Withdraw struct {
	Root string `json:"root"`
}

// Offers lists, by root, the Blenders that the farm offers. The slice is the
// caller's.
func (d *directory) Offers() []Offer { return slices.Clone(d.offers) }

// Offered is the offer of a root, if there is one.
func (d *directory) Offered(root string) (Offer, bool) {
	i, ok := d.offered(root)
	if !ok {
		return Offer{}, false
	}
	return d.offers[i], true
}

func (d *directory) offered(root string) (int, bool) {
	return slices.BinarySearchFunc(d.offers, root, func(o Offer, root string) int { return strings.Compare(o.Root, root) })
}

func (r *Roster) offer(at time.Time, o Offer) ([]Event, error) {
	o.At, o.Engines = at, slices.Clone(o.Engines)
	if err := o.Validate(); err != nil {
		return nil, err
	}
	i, known := r.offered(o.Root)
	switch {
	case known:
		return nil, nil // the first word stands: the same content is the same Blender
	case len(r.offers) >= MaxOffers:
		return nil, fmt.Errorf("the farm offers %d Blenders, as many as it can: withdraw one (`vizpeer blender rm`)", MaxOffers)
	}
	r.offers = slices.Insert(r.offers, i, o)
	return []Event{{Type: BlenderOffered, User: o.By, Role: Admin}}, nil
}

func (r *Roster) withdraw(root string) ([]Event, error) {
	i, ok := r.offered(root)
	if !ok {
		return nil, ErrNotOffered
	}
	r.offers = slices.Delete(r.offers, i, i+1)
	return []Event{{Type: BlenderWithdrawn, Role: Admin}}, nil
}

// Validate says what is wrong with an offer.
func (o Offer) Validate() error {
	word := func(text string, max int) bool { // a name for programs
		return text != "" && len(text) <= max && !strings.ContainsFunc(text, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("._+-", r)
		})
	}
	switch {
	case !word(o.Root, maxOfferText):
		return fmt.Errorf("%.80q is no CID of a Blender's folder", o.Root)
	case !word(o.OS, maxOfferText) || !word(o.Arch, maxOfferText):
		return fmt.Errorf("a Blender is for a system such as linux and amd64, not %.40q and %.40q", o.OS, o.Arch)
	case !word(o.Version, 16):
		return fmt.Errorf("%.40q is no version of a Blender", o.Version)
	case o.Hash != "" && !word(o.Hash, maxOfferText):
		return fmt.Errorf("%.80q is no build hash of a Blender", o.Hash)
	case o.Files < 1 || o.Size < 1:
		return errors.New("a Blender's folder is not empty")
	case len(o.Engines) > maxOfferList:
		return fmt.Errorf("a Blender has %d engines at most", maxOfferList)
	}
	for _, e := range o.Engines {
		if !word(e, maxOfferText) {
			return fmt.Errorf("%.80q is no engine", e)
		}
	}
	if err := checkName("Blender", o.Name); err != nil {
		return err
	}
	return checkName("user", o.By)
}
