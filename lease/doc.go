// Package lease is the farm's queue: jobs, the tasks they expand into, the
// attempts at each task, and the leases that give one machine the right to try.
//
// It is a pure state machine. [State.Apply] takes a [Command] and answers with
// the [Event]s it caused or an error that changed nothing; the same commands in
// the same order give the same state on every machine, byte for byte. Time is
// in the command; there is no clock, no randomness, no map order, no logging
// and no I/O here, so the package is tested without a network or a disk.
//
// It promises that a task is leased to one machine at a time, or to a second one
// only where it was granted as such because the first is stuck; that a result is
// accepted at most once; that a frame is done only when enough machines hold
// it; and that no accepted job is lost or left without a reason. A [State] can be
// frozen and written out while it goes on.
//
// It does not decide which machine gets a task (package coord/sched does), nor
// when a lease has expired (the leader's timers in package coord do), nor who
// may ask (package authz does).
package lease
