package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/peer/httpapi"
)

// versionText is the version of a machine's vizpeer and, where that is another than this
// program's, its level.
func versionText(p httpapi.Peer) string {
	switch can := p.Capability; {
	case can == nil:
		return ""
	case can.Knows() != level.Known:
		return strings.TrimSpace(fmt.Sprintf("%s (level %d)", can.Version, can.Knows()))
	default:
		return can.Version
	}
}

// mixedText says which machines run which version; "" where all run the same, as far as
// they were heard from. Not everybody may see all of them: count is of the others too.
func mixedText(peers []httpapi.Peer, count map[string]int) string {
	by := make(map[string][]string)
	for _, p := range peers {
		if v := versionText(p); v != "" {
			by[v] = append(by[v], plain(p.Name))
		}
	}
	if len(by) < 2 {
		var words []string
		for _, version := range slices.Sorted(maps.Keys(count)) {
			words = append(words, fmt.Sprintf("%s on %d", plain(version), count[version]))
		}
		if len(words) < 2 {
			return ""
		}
		return strings.Join(words, ", ") + " of the machines"
	}
	type group struct {
		version string
		names   []string
	}
	var groups []group
	for version, names := range by {
		slices.Sort(names)
		groups = append(groups, group{version, names})
	}
	slices.SortFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(len(b.names), len(a.names)), cmp.Compare(a.version, b.version))
	})
	words := make([]string, len(groups))
	for i, g := range groups {
		who := fmt.Sprintf("%d machines", len(g.names))
		if len(g.names) <= 3 {
			who = strings.Join(g.names, ", ")
		}
		words[i] = plain(g.version) + " on " + who
	}
	return strings.Join(words, "; ")
}

// levelText is the farm's level and, where it is held back, by whom.
func levelText(co httpapi.Coordination, names map[authz.PeerID]string) string {
	if co.Level == 0 {
		return "not known: the vizpeer of the machine that leads is too old to say"
	}
	words := holdingBack(co, names)
	if len(words) == 0 {
		return fmt.Sprint(co.Level)
	}
	return fmt.Sprintf("%d, until vizpeer is updated on %s", co.Level, strings.Join(words, " and "))
}

// holdingBack lists who keeps the farm from the leader's level.
func holdingBack(co httpapi.Coordination, names map[authz.PeerID]string) (words []string) {
	for _, one := range co.Coordinators {
		if one.HoldsBack {
			words = append(words, fmt.Sprintf("%s (%s)", plain(nameOf(names, one.Peer)), cmp.Or(plain(one.Version), "which was not heard from")))
		}
	}
	return words
}

// versions says how far the farm's update has come: which machines run which version
// where they differ, and who holds the farm's level back. Each is "" where all is well.
func (cl *client) versions(ctx context.Context) (mixed, behind string, err error) {
	peers, err := cl.peers(ctx)
	if err != nil {
		return "", "", err
	}
	farm, err := cl.farm(ctx)
	if err != nil {
		return "", "", err
	}
	names := make(map[authz.PeerID]string, len(peers))
	for _, p := range peers {
		names[p.ID] = p.Name
	}
	if farm.Coord.Level == 0 || len(holdingBack(farm.Coord, names)) > 0 {
		behind = levelText(farm.Coord, names)
	}
	return mixedText(peers, farm.Versions), behind, nil
}

// versionsCheck finds a farm whose update was begun and not ended.
type versionsCheck struct{ visit *peerVisit }

func (versionsCheck) Name() string { return "versions" }

func (v versionsCheck) Run(ctx context.Context) (string, error) {
	if v.visit.status == nil || v.visit.status.Leader == "" {
		return "", concernf("not asked, as no peer answers that has a leader")
	}
	if running := v.visit.status.Version; running != version {
		return "", concernf("the peer that runs here is %s and this program is %s: stop `vizpeer up` and start it again", running, version)
	}
	mixed, behind, err := v.visit.client.versions(ctx)
	switch {
	case err != nil:
		return "", concernf("the other machines' cannot be asked for: %w", err)
	case behind != "":
		return "", concernf("the farm's level is %s", behind)
	case mixed != "":
		return "", concernf("machines run different versions, which works while a farm is updated: %s", mixed)
	}
	return fmt.Sprintf("%s, level %d, as everybody who was heard from", version, level.Known), nil
}
