// Package peer is the daemon: it builds this machine's libp2p host, joins every
// part of vizpeer to it, and runs the roles that the machine holds.
//
// A peer always keeps one work stream to whoever leads the queue ([link]). On it
// the worker takes leases and renders, and the keeper fetches frames that this
// machine must hold. A coordinator runs the queue beside them, and every peer
// serves the HTTP API to its own machine.
//
// It promises that nothing finished is lost: frames are on disk before they are
// reported, reports that nobody has answered survive a restart, and a machine
// that was cut off goes on with what it has and offers the result when it is
// back. Only members of the roster are served.
//
// It decides nothing about the queue: packages lease, coord/sched and authz do.
package peer
