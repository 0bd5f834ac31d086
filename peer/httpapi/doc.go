// Package httpapi is the HTTP API that every peer serves: /v1, its OpenAPI
// document, server-sent events, and the guards in front of them.
//
// A request is answered in one of three places. What is about this machine (its
// status, an upload, the bytes of a frame) is answered here, from [Local]. What
// reads or changes the farm is answered by the leader of the queue: by [Queue]
// where this peer leads, and otherwise by passing the request, with the caller's
// own credential, over a libp2p stream of the protocol [Protocol] to the peer
// that does. A submission and the reading of a frame need both.
//
// It promises that no route is served without a rule that says who may use it
// (the table in routes.go), that a job which the caller may not see looks like
// one that does not exist, that every error is an RFC 9457 problem document with
// a code for scripts, that every request has limits in bytes and in idle time,
// and that the leader believes nothing about a submission that the stream and
// the credential do not prove: not its owner, and not its machine.
//
// Programs of this machine speak plain HTTP on loopback. Others speak HTTPS, with the
// certificate of Config.TLS; what is about this machine's own folders and store is not
// for them (see place in routes.go).
//
// It does not keep or schedule anything, it does not decide what a role may do
// (package authz does), and it makes no certificates (package cert does).
package httpapi
