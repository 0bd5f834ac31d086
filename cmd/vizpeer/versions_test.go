package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func TestVersionsInWords(t *testing.T) {
	machine := func(name, version string, knows int) httpapi.Peer {
		return httpapi.Peer{Name: name, Capability: &lease.Capability{Version: version, Level: knows}}
	}
	farm := []httpapi.Peer{machine("desk", "0.4", level.Known), machine("box", "0.4", level.Known), {Name: "never heard"}}
	require.Empty(t, mixedText(farm, nil))
	require.Empty(t, mixedText(nil, map[string]int{"0.4": 3}))
	require.Equal(t, "0.3 on 1, 0.4 on 3 of the machines", mixedText(farm[:1], map[string]int{"0.4": 3, "0.3": 1}), "as who sees only its own")
	farm = append(farm, machine("old", "0.3", 0))
	require.Equal(t, "0.4 on box, desk; 0.3 (level 2) on old", mixedText(farm, nil))
	farm = append(farm, machine("a", "0.4", level.Known), machine("b", "0.4", level.Known))
	require.Equal(t, "0.4 on 4 machines; 0.3 (level 2) on old", mixedText(farm, nil))
	require.Equal(t, "(level 2)", versionText(machine("nameless", "", 2)))

	names := map[authz.PeerID]string{"o": "old", "a": "away", "n": "new"}
	co := httpapi.Coordination{Level: 3, Coordinators: []httpapi.CoordinatorInfo{{Peer: "n", Version: "0.4", Level: 3}, {Peer: "o", Version: "0.3", Level: 2, State: "old"}}}
	require.Equal(t, "3", levelText(co, names), "who does not hold the queue holds nothing back")
	require.Contains(t, levelText(httpapi.Coordination{}, nil), "too old to say")
	co.Level, co.Coordinators[1].HoldsBack = 2, true
	co.Coordinators = append(co.Coordinators, httpapi.CoordinatorInfo{Peer: "a", HoldsBack: true, Level: 2})
	require.Equal(t, "2, until vizpeer is updated on old (0.3) and away (which was not heard from)", levelText(co, names))
}

func TestDoctorOnVersions(t *testing.T) {
	var mild concern
	_, err := versionsCheck{&peerVisit{}}.Run(t.Context())
	require.ErrorAs(t, err, &mild)
	_, err = versionsCheck{&peerVisit{status: &httpapi.Status{Leader: "x", Version: "another"}}}.Run(t.Context())
	require.ErrorAs(t, err, &mild)
	require.ErrorContains(t, err, "start it again")
}
