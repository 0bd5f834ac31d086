package farmtest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

var admin = authz.Principal{User: "admin", Role: authz.Admin}

// What people do is on record with what it changes; what machines do is not; and the
// record is there, signed and whole, after a restart.
func TestAuditOfAFarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		m := f.Peers[0]
		as := func(action string) *authz.Doing {
			return &authz.Doing{Deed: authz.Deed{User: farmtest.Operator.User, Key: "k1", Address: "192.0.2.7", Action: action}}
		}
		f.Await(f.Submit(m, "1-4"), lease.JobDone, time.Minute)
		id := f.Submit(m, "1-100")
		doing := as("priority-job")
		_, err := m.Queue().Control(authz.WithDoing(t.Context(), doing), farmtest.Operator, id, httpapi.Control{Do: httpapi.Prioritise, Tier: lease.Urgent})
		require.NoError(t, err)
		require.True(t, doing.Noted)
		time.Sleep(time.Second)
		doing = as("retry-job")
		_, err = m.Queue().Control(authz.WithDoing(t.Context(), doing), farmtest.Operator, id, httpapi.Control{Do: httpapi.Retry})
		require.ErrorIs(t, err, lease.ErrState)
		require.True(t, doing.Noted)
		doing = as("cancel-job")
		_, err = m.Queue().Control(authz.WithDoing(t.Context(), doing), farmtest.Operator, "jnone", httpapi.Control{Do: httpapi.Cancel})
		require.ErrorIs(t, err, httpapi.ErrNotFound)
		require.False(t, doing.Noted, "whoever refused it has it recorded")

		_, err = m.Queue().Audit(t.Context(), farmtest.Operator, httpapi.AuditQuery{})
		require.ErrorIs(t, err, httpapi.ErrDenied)
		read := func(q httpapi.AuditQuery) httpapi.AuditPage {
			t.Helper()
			page, err := m.Queue().Audit(t.Context(), admin, q)
			require.NoError(t, err)
			return page
		}
		all := read(httpapi.AuditQuery{})
		require.Len(t, all.Records, 4, "%v", all.Records) // the founding, a machine, and the two above
		require.Zero(t, all.Next)
		require.Equal(t, "conflict", all.Records[0].Outcome)
		tier := all.Records[1]
		require.Equal(t, authz.Deed{User: "operator", Key: "k1", Address: "192.0.2.7", Action: "priority-job", Object: string(id), Detail: "urgent"}, tier.Deed)
		joined := all.Records[2]
		require.Equal(t, "join", joined.Action)
		require.Equal(t, "admin", joined.User)
		require.Equal(t, f.Peers[1].ID, joined.Machine)
		require.Contains(t, joined.Detail, "worker1 by ticket ")
		require.Equal(t, "1.0.0.2", joined.Address)
		require.Equal(t, "init", all.Records[3].Action)

		// Pages and filters.
		page := read(httpapi.AuditQuery{Limit: 3})
		require.Len(t, page.Records, 3)
		page = read(httpapi.AuditQuery{Limit: 3, Before: page.Next})
		require.Len(t, page.Records, 1)
		require.Zero(t, page.Next)
		require.Len(t, read(httpapi.AuditQuery{User: "operator", Outcome: "ok"}).Records, 1)
		require.Len(t, read(httpapi.AuditQuery{Outcome: httpapi.AnyRefusal}).Records, 1)
		require.Len(t, read(httpapi.AuditQuery{Object: string(id)}).Records, 2)
		require.Len(t, read(httpapi.AuditQuery{Since: tier.At, Until: all.Records[0].At}).Records, 1)
		require.Len(t, read(httpapi.AuditQuery{Action: "join"}).Records, 1)

		whole := func() httpapi.AuditVerified {
			t.Helper()
			v, err := m.Queue().VerifyAudit(t.Context(), admin, func(int64, int64) {})
			require.NoError(t, err)
			require.Nil(t, v.Fault)
			return v
		}
		f.Within(5*time.Second, "all is signed", func() bool {
			v := whole()
			return len(v.Signers) == 1 && v.Signers[0].Records == 4
		})
		before := read(httpapi.AuditQuery{}).Records
		m.Stop()
		m.Start()
		f.Within(10*time.Second, "it leads again", m.Leads)
		require.Equal(t, before, read(httpapi.AuditQuery{}).Records)
		require.Equal(t, m.ID, whole().Signers[0].Peer)
	})
}

// Who fails to log in is on record by a name that the farm knows, and by none else: it
// may be a password.
func TestFailedLoginsAreOnRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		m := f.Peers[0]
		for _, name := range []string{"admin", "correct horse battery"} {
			doing := &authz.Doing{Deed: authz.Deed{Action: authz.ActionLogin}}
			_, err := m.Queue().Login(authz.WithDoing(t.Context(), doing), httpapi.Credentials{Username: name, Password: "not the one"})
			require.ErrorIs(t, err, authz.ErrPassword)
			m.Queue().Refused(doing.Deed, "unauthorised")
			time.Sleep(time.Second)
		}
		page, err := m.Queue().Audit(t.Context(), admin, httpapi.AuditQuery{Action: authz.ActionLogin})
		require.NoError(t, err)
		require.Len(t, page.Records, 2)
		require.Equal(t, "an unknown user", page.Records[0].Object)
		require.Equal(t, "admin", page.Records[1].Object)
	})
}

// The same submission under the same key is one job, also after the leader's restart.
func TestKeysOfSubmissions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		m := f.Peers[0]
		spec, _, err := m.Local().Prepare(t.Context(), farmtest.Operator, httpapi.Submission{Project: f.Upload(m, 0, 1000), Frames: "1-3", Chunk: 1})
		require.NoError(t, err)
		spec.Owner, spec.Submitter = farmtest.Operator.User, m.ID
		once := &lease.Once{User: spec.Owner, Key: "k1", Request: "r1"}
		submit := func(once *lease.Once) (httpapi.Submitted, error) {
			return m.Queue().Submit(t.Context(), farmtest.Operator, lease.Submit{Spec: spec, Once: once})
		}
		first, err := submit(once)
		require.NoError(t, err)
		require.False(t, first.Replayed)
		m.Stop()
		m.Start()
		f.Within(10*time.Second, "it leads again", m.Leads)
		again, err := submit(once)
		require.NoError(t, err)
		require.True(t, again.Replayed)
		again.Replayed = false
		require.Equal(t, first, again)
		_, err = submit(&lease.Once{User: spec.Owner, Key: "k1", Request: "r2"})
		require.ErrorIs(t, err, lease.ErrKeyReused)
		f.Await(first.Job, lease.JobDone, time.Minute)
		time.Sleep(time.Minute)
		later, err := submit(nil)
		require.NoError(t, err)
		require.NotEqual(t, first.Job, later.Job, "without a key each is its own")

		page := func(q httpapi.JobQuery) (ids []lease.JobID, next string) {
			t.Helper()
			list, err := m.Queue().Jobs(t.Context(), farmtest.Operator, q)
			require.NoError(t, err)
			for _, j := range list.Jobs {
				ids = append(ids, j.ID)
			}
			return ids, list.Next
		}
		ids, next := page(httpapi.JobQuery{Limit: 1})
		require.Equal(t, []lease.JobID{later.Job}, ids)
		ids, next = page(httpapi.JobQuery{Limit: 1, After: next})
		require.Equal(t, []lease.JobID{first.Job}, ids)
		require.Empty(t, next)
		ids, _ = page(httpapi.JobQuery{Since: time.Now().Add(-30 * time.Second)})
		require.Equal(t, []lease.JobID{later.Job}, ids)
		ids, _ = page(httpapi.JobQuery{State: lease.JobDone, Name: "SHOT"})
		require.Equal(t, []lease.JobID{first.Job}, ids)
		ids, _ = page(httpapi.JobQuery{Owner: "somebody"})
		require.Empty(t, ids)
	})
}
