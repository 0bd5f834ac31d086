package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"vizpeer/authz"
	"vizpeer/peer/render"
)

// place is where a route is answered.
type place int

const (
	here     place = iota // by the peer that is asked, for programs on its machine only
	anywhere              // by the peer that is asked, for callers over HTTPS as well
	atLeader              // by the leader: others pass it on
	atJob                 // by the peer that is asked while the job waits there to be submitted, else as atLeader
	internal              // by the leader, for other peers only: it is in no document
)

// asked tells whether the peer that is asked answers, whoever leads.
func (p place) asked() bool { return p == here || p == anywhere }

// rule says who may use a route. The zero rule lets nobody in.
type rule struct {
	who    string
	open   bool // needs no token
	allows func(authz.Principal) bool
	first  bool // also for who must choose a password before anything else
	tries  bool // takes a password: an address may try few
}

// refuses says why the rule does not let somebody in; nil where it does.
func (ru rule) refuses(p authz.Principal) error {
	switch {
	case ru.open:
		return nil
	case p.MustChange && !ru.first:
		return newProblem(http.StatusForbidden, CodeMustChange, "the password is a one-time one: choose your own with `vizpeer user passwd` (POST /v1/auth/password) before anything else")
	case ru.allows == nil || !ru.allows(p):
		return fmt.Errorf("%w: this is for %s, and you are %s", ErrDenied, ru.who, p.Role)
	}
	return nil
}

var (
	everybody  = rule{who: "everybody, without a token", open: true}
	guests     = rule{who: "everybody who knows a password", open: true, tries: true}
	selves     = rule{who: "everybody with a token, also a session with a one-time password", allows: func(authz.Principal) bool { return true }, first: true}
	owners     = rule{who: "admins, operators and viewers, also a session with a one-time password", allows: func(p authz.Principal) bool { return p.Role != authz.Node }, first: true, tries: true}
	members    = rule{who: "everybody with a token", allows: func(authz.Principal) bool { return true }}
	people     = rule{who: "admins, operators and viewers", allows: func(p authz.Principal) bool { return p.Role != authz.Node }}
	submitters = rule{who: "admins and operators", allows: authz.Principal.MaySubmit}
	inviters   = rule{who: "admins", allows: authz.Principal.MayInvite}
	managers   = rule{who: "admins", allows: authz.Principal.MayManageMachines}
	auditors   = rule{who: "admins", allows: authz.Principal.MayAudit}
	registrars = rule{who: "admins", allows: authz.Principal.MayManagePeople}
	suppliers  = rule{who: "admins", allows: authz.Principal.MayOffer}
)

// route is one line of the API.
type route struct {
	Method, Path string
	place        place
	rule         rule
	id           string
	summary      string
	status       int    // of success; 0: 200
	answers      string // the content type of an answer that is not JSON
	add          endpoint
}

// The routes whose body is a stream of any length.
const (
	uploadProject = "POST /v1/projects"
	uploadBlob    = "POST /v1/blobs"
)

// routes is the whole API: what is not here does not exist. A role decides
// whether a route may be used at all; whose job it is about, Queue decides.
func routes() []*route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	return []*route{
		{get, "/healthz", anywhere, everybody, "healthz", "Whether this peer's process answers", 0, "", bind((*Server).healthz)},
		{get, "/readyz", anywhere, everybody, "readyz", "Whether this peer is of use; names the checks that fail", 0, "", bind((*Server).readyz)},
		{get, "/ca.crt", anywhere, everybody, "ca", "The certificates of the farm's CA, in PEM: compare a fingerprint before you trust one", 0, caType, bind((*Server).authority)},
		{get, "/openapi.json", anywhere, everybody, "openapi", "This document", 0, "application/openapi+json", bind((*Server).document)},

		{get, "/metrics", anywhere, people, "metrics", "Numbers of this machine and, on coordinators, of the queue, for Prometheus", 0, "text/plain", bind((*Server).metrics)},

		{get, "/v1/status", anywhere, members, "status", "This machine, answered without a coordinator", 0, "", bind((*Server).status)},
		{get, "/v1/auth/whoami", anywhere, selves, "whoami", "Who the token belongs to", 0, "", bind((*Server).whoami)},
		{post, "/v1/projects", anywhere, submitters, "upload-project", "Store a project: a tar of plain files, with the manifest " + render.ManifestName + " at its root", 0, "", takesTar(bind((*Server).importProject))},
		{post, "/v1/jobs", anywhere, submitters, "submit-job", "Submit a job; its output folder is on this machine, and programs elsewhere may not name one. 202: nobody leads the queue, and the job waits on this machine until somebody does", http.StatusCreated, "", bind((*Server).submit)},
		{get, "/v1/jobs/{id}/frames/{frame}", anywhere, people, "frame", "The picture of a finished frame (GET and HEAD; ranges; the ETag is its CID), a small one, or what there is to see of one that is being rendered", 0, "image/*", bind((*Server).frame)},
		{get, "/v1/jobs/{id}/frames/{frame}/extra", anywhere, people, "frame-extra", "What Blender wrote beside the picture of a finished frame, other views and what File Output nodes write: a tar, with the places below the job's output folder", 0, tarType, bind((*Server).frameExtra)},
		{get, "/v1/jobs/{id}/logs", anywhere, people, "task-log", "Blender's output in the latest attempt at a task that left one, or all that attempts said about one frame", 0, "text/plain", bind((*Server).taskLog)},

		{get, "/v1/blobs", anywhere, people, "list-blobs", "The content that this machine holds, a Root a line: all of it for an admin, what one has pinned oneself for others", 0, linesType, bind((*Server).roots)},
		{post, "/v1/blobs", here, submitters, "add-blob", "Store a tar of plain files as a folder, and pin it for the caller", 0, "", takesTar(bind((*Server).addBlob))},
		{get, "/v1/blobs/stat", anywhere, people, "blob-stat", "How full this machine's store is, and of what", 0, "", bind((*Server).storeStat)},
		{post, "/v1/blobs/gc", here, submitters, "collect-blobs", "Remove what nothing needs", 0, "", bind((*Server).collectBlobs)},
		{post, "/v1/blobs/verify", here, submitters, "verify-blobs", "Read content, drop what is damaged and fetch it again; a Step a line, the last with a Verified", 0, linesType, bind((*Server).verifyBlobs)},
		{get, "/v1/blobs/{cid}", anywhere, people, "blob", "Content that this machine holds: the bytes of a file (GET and HEAD; ranges), a tar of a folder", 0, "application/octet-stream", bind((*Server).blob)},
		{post, "/v1/blobs/{cid}/fetch", here, people, "fetch-blob", "Bring content here from the farm; a Step a line, the last with a Root", 0, linesType, bind((*Server).fetchBlob)},
		{post, "/v1/blobs/{cid}/pin", here, submitters, "pin-blob", "Keep content that is here for the caller", 0, "", bind((*Server).pinBlob)},
		{post, "/v1/blobs/{cid}/unpin", here, submitters, "unpin-blob", "Take the caller's pin back", 0, "", bind((*Server).unpinBlob)},

		{get, "/v1/outbox", anywhere, people, "list-waiting", "The jobs that wait on this machine for somebody to lead the queue, and those of them that were refused then, the newest first", 0, "", bind((*Server).outbox)},

		{get, "/v1/jobs", atLeader, people, "list-jobs", "The jobs that the caller may see, the newest first", 0, "", bind((*Server).jobs)},
		{get, "/v1/jobs/{id}", atJob, people, "job", "One job with its frames", 0, "", bind((*Server).job)},
		{get, "/v1/jobs/{id}/tasks", atJob, people, "tasks", "A job's tasks with their attempts", 0, "", bind((*Server).tasks)},
		{post, "/v1/jobs/{id}/cancel", atJob, submitters, "cancel-job", "Cancel a job", 0, "", bind(control(Cancel))},
		{post, "/v1/jobs/{id}/pause", atJob, submitters, "pause-job", "Grant nothing more of a job; what is being rendered goes on", 0, "", bind(control(Pause))},
		{post, "/v1/jobs/{id}/resume", atJob, submitters, "resume-job", "End a pause", 0, "", bind(control(Resume))},
		{post, "/v1/jobs/{id}/retry", atJob, submitters, "retry-job", "Open a job again that failed or was cancelled, or have frames of a job rendered again; finished frames stay", 0, "", bind((*Server).retry)},
		{post, "/v1/jobs/{id}/priority", atJob, submitters, "prioritise-job", "Move a job that has not ended to another tier", 0, "", bind((*Server).prioritise)},
		{post, "/v1/jobs/{id}/more", atJob, submitters, "add-samples", "Add samples to the frames of a job that is split by samples, also where they are finished", 0, "", bind((*Server).more)},
		{get, "/v1/jobs/{id}/why", atJob, people, "why", "Why a job, or one of its tasks, is where it is", 0, "", bind((*Server).why)},
		{get, "/v1/peers", atLeader, members, "list-peers", "The machines of the farm: all of them for an admin, one's own for others (GET /v1/farm has the numbers for all)", 0, "", bind((*Server).peerList)},
		{post, "/v1/peers/{id}/drain", atLeader, managers, "drain-peer", "Grant a machine nothing more; it finishes what it has", 0, "", bind(drain(true))},
		{post, "/v1/peers/{id}/undrain", atLeader, managers, "undrain-peer", "Let a machine that is drained take work again", 0, "", bind(drain(false))},
		{put, "/v1/peers/{id}/labels", atLeader, managers, "label-peer", "Set the labels that a machine is granted, such as those that mean a licence", 0, "", bind((*Server).label)},
		{post, "/v1/peers/{id}/revoke", atLeader, managers, "revoke-peer", "Remove a machine from the farm: its connections, leases and API keys end at once on every machine", 0, "", bind((*Server).revokePeer)},
		{get, "/v1/peers/pending", atLeader, inviters, "list-pending", "The machines without a ticket that wait to be let in", 0, "", bind((*Server).pending)},
		{post, "/v1/peers/pending/{id}/approve", atLeader, inviters, "approve-peer", "Let a machine in that waits and shows the same four words", 0, "", bind((*Server).approve)},
		{post, "/v1/peers/pending/{id}/deny", atLeader, inviters, "deny-peer", "Send a machine away that waits", 0, "", bind((*Server).deny)},
		{get, "/v1/blenders", atLeader, people, "list-blenders", "The Blenders that machines of the farm have, and those that they may fetch", 0, "", bind((*Server).blenders)},
		{post, "/v1/blenders", atLeader, suppliers, "offer-blender", "Let all machines fetch and run a Blender whose folder was stored before", http.StatusCreated, "", bind((*Server).offer)},
		{post, "/v1/blenders/{cid}/withdraw", atLeader, suppliers, "withdraw-blender", "Offer a Blender no more: machines remove what they fetched of it", 0, "", bind((*Server).withdraw)},
		{get, "/v1/farm", atLeader, members, "farm", "The farm in numbers, and who leads its queue", 0, "", bind((*Server).farmInfo)},
		{post, "/v1/coordinators/{id}/promote", atLeader, managers, "promote-coordinator", "Let a coordinator vote, as soon as that makes the number of voters odd", 0, "", bind(coordinate(PromoteCoordinator))},
		{post, "/v1/coordinators/{id}/demote", atLeader, managers, "demote-coordinator", "Keep a coordinator from voting: it only copies the queue", 0, "", bind(coordinate(DemoteCoordinator))},
		{post, "/v1/coordinators/{id}/transfer", atLeader, managers, "transfer-queue", "Have a coordinator lead the queue", 0, "", bind(coordinate(TransferTo))},
		{post, "/v1/tickets", atLeader, inviters, "invite", "Mint a ticket that admits a machine; it is shown this once", http.StatusCreated, "", bind((*Server).invite)},
		{get, "/v1/audit", atLeader, auditors, "audit", "Who did what, from where and with what result, the latest first", 0, "", bind((*Server).audit)},
		{get, "/v1/audit/verify", atLeader, auditors, "verify-audit", "Check the chain of all records and their signatures; a Step a line, counted in records, the last with an AuditVerified", 0, linesType, bind((*Server).verifyAudit)},
		{get, "/v1/backup", atLeader, registrars, "backup", "The farm's state as it is now: its queue, its members and its audit, for `vizpeer restore`. It holds the hashes of passwords", 0, backupType, bind((*Server).backup)},
		{post, "/v1/auth/login", atLeader, guests, authz.ActionLogin, "Begin a session with a user name and a password", 0, "", bind((*Server).login)},
		{post, "/v1/auth/logout", atLeader, selves, "logout", "End the session that is shown", 0, "", bind((*Server).logout)},
		{post, "/v1/auth/password", atLeader, owners, "change-password", "Change the caller's own password, which ends all its sessions and begins another", 0, "", bind((*Server).changePassword)},
		{get, "/v1/admin/users", atLeader, registrars, "list-users", "The farm's accounts", 0, "", bind((*Server).users)},
		{post, "/v1/admin/users", atLeader, registrars, "add-user", "Make an account, with a one-time password that is shown this once", http.StatusCreated, "", bind((*Server).addUser)},
		{post, "/v1/admin/users/{user}/password", atLeader, registrars, "reset-password", "Give a user a one-time password, and end the user's sessions", 0, "", bind((*Server).resetPassword)},
		{post, "/v1/admin/users/{user}/disable", atLeader, registrars, "disable-user", "Refuse a user's sessions, and the API keys in the user's name", 0, "", bind(disable(true))},
		{post, "/v1/admin/users/{user}/enable", atLeader, registrars, "enable-user", "Let a user log in again who was disabled", 0, "", bind(disable(false))},
		{post, "/v1/admin/users/{user}/role", atLeader, registrars, "set-role", "Give a user another role, at once", 0, "", bind((*Server).setRole)},
		{get, "/v1/admin/keys", atLeader, registrars, "list-keys", "The farm's API keys, those of machines too", 0, "", bind((*Server).keys)},
		{post, "/v1/admin/keys", atLeader, registrars, "create-key", "Make an API key; it is shown this once", http.StatusCreated, "", bind((*Server).createKey)},
		{del, "/v1/admin/keys/{id}", atLeader, registrars, "revoke-key", "Refuse an API key from now on", 0, "", bind((*Server).revokeKey)},
		{get, "/v1/tickets", atLeader, inviters, "list-tickets", "The tickets that would admit a machine now, without their secrets", 0, "", bind((*Server).tickets)},
		{del, "/v1/tickets/{id}", atLeader, inviters, "revoke-ticket", "Let a ticket admit nobody any more; whom it admitted stays", 0, "", bind((*Server).revokeTicket)},
		{get, "/v1/events", atJob, people, "events", "What happens, as server-sent events whose data are Event documents", 0, "text/event-stream", eventStream},

		{post, "/v1/queue/jobs", internal, submitters, "queue-job", "", http.StatusCreated, "", bind((*Server).enqueue)},
		{get, "/v1/queue/jobs/{id}/frames/{frame}", internal, people, "queue-frame", "", 0, "", bind((*Server).frameInfo)},
		{get, "/v1/queue/jobs/{id}/frames/{frame}/tasks", internal, people, "queue-frame-tasks", "", 0, "", bind((*Server).frameTasks)},
		{get, "/v1/queue/jobs/{id}/tasks/{task}", internal, people, "queue-task", "", 0, "", bind((*Server).taskInfo)},
		{get, "/v1/queue/principal", internal, selves, "queue-principal", "", 0, "", bind((*Server).principal)},
	}
}

// served tells whether a route answers requests that come from that side.
func (rt *route) served(from side) bool {
	switch from {
	case loopback:
		return rt.place != internal
	case remote:
		return rt.place == anywhere || rt.place == atLeader || rt.place == atJob
	}
	return rt.place == atLeader || rt.place == atJob || rt.place == internal
}

// endpoint adds a route to an API.
type endpoint func(s *Server, from side, rt *route, api huma.API, op huma.Operation)

// bind makes an endpoint of a method, whose errors are explained to the caller.
func bind[In, Out any](method func(*Server, context.Context, *In) (*Out, error)) endpoint {
	return func(s *Server, from side, rt *route, api huma.API, op huma.Operation) {
		huma.Register(api, op, func(ctx context.Context, in *In) (*Out, error) {
			out, err := method(s, ctx, in)
			if err != nil {
				return nil, s.explain(ctx, from, rt, err)
			}
			return out, nil
		})
	}
}

const routeKey = "route"

// handler serves the routes of one side behind their guards.
func (s *Server) handler(from side) http.Handler {
	mux := http.NewServeMux()
	api := humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:       "vizpeer",
				Version:     s.cfg.Version,
				Description: "The API of a vizpeer peer. Sizes are bytes, durations seconds, times RFC 3339 in UTC.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true, // a misspelt filter must not answer as if it were not there
	})
	api.UseMiddleware(s.gate(from))
	for _, rt := range routes() {
		if rt.served(from) {
			rt.add(s, from, rt, api, rt.operation())
		} else if from == remote && rt.place == here {
			mux.HandleFunc(rt.Method+" "+rt.Path, func(w http.ResponseWriter, r *http.Request) {
				writeProblem(w, MapError(fmt.Errorf("%w: this is for programs on the machine itself: ask there, or ask the peer of your own machine", ErrDenied)))
			})
		}
	}
	if from == loopback {
		doc, err := json.Marshal(api.OpenAPI())
		if err != nil {
			panic(fmt.Sprintf("httpapi: the OpenAPI document: %v", err)) // it is made of constants
		}
		s.openAPI = doc
	}
	return s.guard(from, mux)
}

func (rt *route) operation() huma.Operation {
	op := huma.Operation{
		OperationID:   rt.id,
		Method:        rt.Method,
		Path:          rt.Path,
		Summary:       rt.summary,
		Description:   "For " + rt.rule.who + ".",
		DefaultStatus: rt.status,
		Hidden:        rt.place == internal,
		Metadata:      map[string]any{routeKey: rt},
		// The guard has read and bounded the body already. Without this, huma
		// would leave a read deadline on the connection.
		BodyReadTimeout: -1,
		MaxBodyBytes:    maxBody + 1,
	}
	if !rt.rule.open {
		op.Security = []map[string][]string{{"token": {}}}
	}
	if rt.answers != "" {
		op.Responses = map[string]*huma.Response{"200": {
			Description: "OK",
			Content:     map[string]*huma.MediaType{rt.answers: {Schema: &huma.Schema{Type: huma.TypeString}}},
		}}
	}
	return op
}

// unknown answers a path or a method that no route has.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request, h http.Handler, from side) {
	// The mux knows which methods the path would take; its own answer is text.
	verdict := headerOnly{header: http.Header{}}
	h.ServeHTTP(&verdict, r)
	if verdict.status == http.StatusMethodNotAllowed {
		allow := verdict.header.Get("Allow")
		writeProblem(w, newProblem(verdict.status, CodeInvalid, fmt.Sprintf("%s is not possible here: use %s", r.Method, allow), "Allow", allow))
		return
	}
	p := newProblem(http.StatusNotFound, CodeNotFound, "there is no such path: see routes, or /openapi.json for all about them")
	for _, rt := range routes() {
		if rt.served(from) && rt.place != internal {
			p.Routes = append(p.Routes, rt.Method+" "+rt.Path)
		}
	}
	writeProblem(w, p)
}

// headerOnly is a response of which only the status and the header matter.
type headerOnly struct {
	header http.Header
	status int
}

func (h *headerOnly) Header() http.Header         { return h.header }
func (h *headerOnly) WriteHeader(status int)      { h.status = status }
func (h *headerOnly) Write(b []byte) (int, error) { return len(b), nil }

// writeProblem answers with a problem outside of huma.
func writeProblem(w http.ResponseWriter, p *Problem) {
	maps.Copy(w.Header(), p.header)
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

// list is a slice that is [] and not null in JSON.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
