package peer

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/coord"
	"vizpeer/lease"
)

// A machine renders side by side on its devices, and refuses what a device has no
// slot for, whatever the leader thinks.
func TestAttemptsHaveTheirDevices(t *testing.T) {
	gpu := lease.GPU{Vendor: lease.NVIDIA, Model: "RTX 3060", Backends: []lease.Backend{lease.CUDA}}
	can := lease.Capability{Slots: 2, GPUs: []lease.GPU{{Vendor: lease.Intel, Model: "UHD"}, gpu}}
	w := &worker{can: func() lease.Capability { return can }, attempts: make(map[lease.ID]*attempt)}
	makes := func(id lease.ID, d lease.Device) {
		w.attempts[id] = &attempt{order: coord.Order{Report: lease.Report{Lease: id}, Device: d}}
	}
	require.Empty(t, w.busy("cpu"))
	require.Empty(t, w.busy("gpu1"))
	require.Empty(t, w.busy(""))
	require.Equal(t, `the machine does not render on a device "gpu0"`, w.busy("gpu0"))
	require.Equal(t, `the machine does not render on a device "gpu2"`, w.busy("gpu2"))
	makes("a", "gpu1")
	require.Equal(t, "no free slot on gpu1", w.busy("gpu1"))
	makes("b", "cpu")
	require.Empty(t, w.busy("cpu"))
	makes("c", "cpu")
	for _, d := range []lease.Device{"cpu", "gpu1", ""} {
		require.Equal(t, "no free slot", w.busy(d))
	}
	w.attempts["a"].over = true
	require.Empty(t, w.busy("gpu1"), "only the report is under way")
	require.Equal(t, "no free slot on cpu", w.busy("cpu"))

	can.Slots = 0
	require.NotEmpty(t, w.busy("gpu1"), "its owner wants no work")
}

func TestGrantOnABusyDeviceIsHandedBack(t *testing.T) {
	ctx, stop := context.WithCancelCause(t.Context())
	w := &worker{
		ctx: ctx, slog: slog.New(slog.DiscardHandler), attempts: make(map[lease.ID]*attempt),
		can: func() lease.Capability { return lease.Capability{Slots: 1} }, link: &link{waiting: make(map[uint64]chan coord.Ack), changed: make(chan struct{})},
	}
	w.attempts["l1"] = &attempt{order: coord.Order{Report: lease.Report{Lease: "l1"}, Device: "cpu"}}
	w.start(coord.Order{Report: lease.Report{Lease: "l2"}, Device: "cpu"})
	require.True(t, w.runs("l1"))
	require.False(t, w.runs("l2"))
	stop(errors.New("over")) // ends the report, which nobody takes
	w.crew.Dismiss()
}
