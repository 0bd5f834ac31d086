package peer

import (
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/peer/httpapi"
)

// Protocols lists what peers speak with each other, as libp2p names it. A number in one
// grows where machines that know only the former could not go on at all; what is added
// to one meanwhile is told apart by levels: see package level.
func Protocols() []string {
	return []string{joinProtocol, charterProtocol, coord.WorkProtocol, coord.RaftProtocol, coord.AuditProtocol, string(httpapi.Protocol), certProtocol, string(swarm.Protocol)}
}
