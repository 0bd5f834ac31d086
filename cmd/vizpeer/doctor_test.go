package main

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

func TestDoctorSaysWhatAHostileFileIsKeptFrom(t *testing.T) {
	holds, open := confinementText([]render.Confinement{
		{Against: "using the network", By: "a wall"}, {Against: "reading files"}, {Against: "taking the memory", By: "a look"}, {Against: "singing"},
	})
	require.Equal(t, "using the network (a wall), taking the memory (a look)", holds)
	require.Equal(t, "reading files, singing", open)
	// Whatever this machine is: without a sandbox, files and the network are open.
	_, open = confinementText(render.Confinements(""))
	require.Contains(t, open, "reading this machine's files")
	require.Contains(t, open, "using the network")
}

func TestDoctorOnClocksAndCertificates(t *testing.T) {
	visit := &peerVisit{status: &httpapi.Status{ClockSkew: 59}}
	_, err := clockCheck{visit}.Run(t.Context())
	require.NoError(t, err)
	for _, off := range []float64{-301, 301} {
		visit.status.ClockSkew = off
		_, err = clockCheck{visit}.Run(t.Context())
		require.ErrorContains(t, err, "the clock is 5m1s off the leader's")
	}
	_, err = clockCheck{&peerVisit{}}.Run(t.Context())
	require.NoError(t, err, "nobody was asked")

	check := certificateCheck{visit}
	text, err := check.Run(t.Context())
	require.NoError(t, err)
	require.Contains(t, text, "none needed")
	visit.status.HTTPS = []string{"https://10.0.0.7:8787"}
	var mild concern
	visit.status.CertificateUntil = time.Now().Add(5 * 24 * time.Hour)
	text, err = check.Run(t.Context())
	require.NoError(t, err)
	require.Contains(t, text, "good until")
	visit.status.CertificateUntil = time.Now().Add(time.Hour)
	_, err = check.Run(t.Context())
	require.ErrorAs(t, err, &mild)
	visit.status.CertificateUntil = time.Now().Add(-time.Hour)
	_, err = check.Run(t.Context())
	require.ErrorContains(t, err, "could not be renewed")
	require.False(t, errors.As(err, &mild))
}
