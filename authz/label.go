package authz

import (
	"fmt"
	"slices"
	"strings"
)

// Limits of labels.
const (
	MaxLabels = 64 // that one machine is granted
	maxLabel  = 64 // bytes
)

// Label sets the labels that an admin grants a machine, in place of those before.
type Label struct {
	Peer   PeerID   `json:"peer"`
	Labels []string `json:"labels"`
}

// OnlyGranted tells whether a label counts on a machine only where an admin granted
// it, whatever the machine says of itself: one that means a licence, as every label
// with a colon may (lic:keyshot), or a calibrated screen. Any other a machine may
// also give itself.
func OnlyGranted(label string) bool {
	return label == "calibrated" || strings.Contains(label, ":")
}

// CheckLabel says what is wrong with a label that somebody wrote.
func CheckLabel(label string) error {
	if label == "" || len(label) > maxLabel || strings.ContainsFunc(label, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("._:+-", r)
	}) {
		return fmt.Errorf("the label %.80q is not possible: use 1 to %d letters, digits and . _ : + -", label, maxLabel)
	}
	return nil
}

// CheckLabels says what is wrong with a list of labels for one machine.
func CheckLabels(labels []string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%d labels are more than the %d that one machine may have", len(labels), MaxLabels)
	}
	for _, l := range labels {
		if err := CheckLabel(l); err != nil {
			return err
		}
	}
	return nil
}

func (r *Roster) label(c Label) ([]Event, error) {
	m, ok := r.Member(c.Peer)
	if !ok {
		return nil, ErrNotMember
	}
	if err := CheckLabels(c.Labels); err != nil {
		return nil, err
	}
	labels := slices.Compact(slices.Sorted(slices.Values(c.Labels)))
	if slices.Equal(labels, m.Labels) {
		return nil, nil
	}
	m.Labels = labels
	r.putMember(m)
	return []Event{{Type: PeerLabelled, Peer: m.ID, User: m.User, Role: m.Role}}, nil
}

// checkGranted refuses granted labels that Apply could not have made.
func checkGranted(labels []string) error {
	if !slices.IsSorted(labels) || len(slices.Compact(slices.Clone(labels))) != len(labels) {
		return fmt.Errorf("the labels %.80q are not in order", labels)
	}
	return CheckLabels(labels)
}
