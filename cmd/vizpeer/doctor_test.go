package main

import (
	"testing"

	"github.com/stretchr/testify/require"

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
