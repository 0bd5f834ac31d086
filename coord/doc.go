// Package coord runs the queue: the log that is replicated among the farm's
// coordinators, the election of the one that leads, and what only a leader does
// — granting leases over each machine's open work stream, watching that they are
// renewed, and seeing that finished frames are kept by enough machines.
//
// It promises that nobody is told yes before a majority of the coordinators has
// the command on disk; that a new leader has applied everything committed before
// it (a barrier) and gives every lease a full TTL before it expires anything;
// and that what a leader holds in memory dies with its leadership. What people change
// is on record: the audit gets its record with the change itself, whoever leads signs
// it, and every coordinator keeps it on its disk.
//
// A farm whose voters are gone for good goes on in its next epoch, which the farm key signs:
// [Succeed] makes its queue of a copy that a machine holds, [Restore] of a backup. Each epoch
// has a folder and a protocol of its own, so that nothing of a log that was given up
// can come into the one that took its place; a coordinator of an earlier epoch keeps its
// queue aside, and follows, as soon as its machine hears of a later one.
//
// It does not decide: package lease holds the rules of the queue, package sched
// the placement, package authz who is a member. It does not render, fetch or
// store frames: package peer does, at the other end of the work stream.
package coord
