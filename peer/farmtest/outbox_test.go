package farmtest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

// desk is a farm of a founder, a worker and a workstation, whose person is an operator.
func desk(t *testing.T) (f *farmtest.Farm, founder, desk *farmtest.Member) {
	f = farmtest.New(t, 1)
	founder = f.Peers[0]
	desk = f.Newcomer("desk")
	ticket, err := founder.Queue().Invite(t.Context(), farmtest.Admin, httpapi.Invitation{Role: authz.Operator})
	require.NoError(t, err)
	_, err = desk.Join(ticket.Ticket)
	require.NoError(t, err)
	desk.Start()
	f.Online(3)
	f.Within(10*time.Second, "the desk knows its person", func() bool {
		_, err := desk.Local().Authenticate(t.Context(), desk.Token())
		return err == nil
	})
	return f, founder, desk
}

func notShort(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: simulated hours take their time under the race detector")
	}
}

// post posts a job of two frames at a machine in the name of whose token it is.
func post(t *testing.T, f *farmtest.Farm, m *farmtest.Member, token string, header ...string) (out httpapi.Submitted, status int) {
	who, err := m.Local().Authenticate(t.Context(), token)
	require.NoError(t, err)
	project, err := m.Local().ImportProject(t.Context(), who, farmtest.Project(0, 1000))
	require.NoError(t, err)
	status = m.Call(token, "POST", "/v1/jobs", httpapi.Submission{Project: project.Project, Frames: "1-2", Chunk: 1}, &out, header...)
	return out, status
}

// waiting lists the jobs that wait at a machine.
func waiting(m *farmtest.Member, token string) (out []httpapi.JobSummary) {
	var list httpapi.JobList
	m.Call(token, "GET", "/v1/outbox", nil, &list)
	return list.Jobs
}

// all lists the farm's jobs.
func all(t *testing.T, m *farmtest.Member) []httpapi.JobSummary {
	list, err := m.Queue().Jobs(t.Context(), farmtest.Admin, httpapi.JobQuery{})
	require.NoError(t, err)
	return list.Jobs
}

// job is one of the farm's, which has no such job where ok is false.
func jobOf(t *testing.T, m *farmtest.Member, id lease.JobID) (j httpapi.JobSummary, ok bool) {
	for _, j := range all(t, m) {
		if j.ID == id {
			return j, true
		}
	}
	return j, false
}

// becomes waits until the farm has a job, in that state.
func becomes(t *testing.T, f *farmtest.Farm, m *farmtest.Member, id lease.JobID, state lease.JobState) httpapi.Job {
	f.Within(5*time.Minute, "the job is "+string(state), func() bool {
		j, ok := jobOf(t, m, id)
		return ok && j.State == state
	})
	j, err := m.Queue().Job(t.Context(), farmtest.Admin, id, "")
	require.NoError(t, err)
	return j
}

// alone crashes the leader, and waits until a machine knows that nobody leads.
func alone(t *testing.T, f *farmtest.Farm, leader, m *farmtest.Member) {
	leader.Crash()
	f.Within(time.Minute, m.Name+" knows that nobody leads", func() bool { return m.Local().Status(t.Context()).Leader == "" })
}

// led waits until a machine leads and all are with it.
func led(f *farmtest.Farm, m *farmtest.Member, online int) {
	f.Within(10*time.Second, m.Name+" leads again", m.Leads)
	f.Online(online)
}

// A job that is posted while nobody leads waits where it was posted, is shown there, and
// becomes one job of the farm when somebody leads, under the same ID and on record in its
// person's name; also where the machine was killed meanwhile.
func TestJobWaitsForALeader(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed %t", killed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, founder, m := desk(t)
				founder.Crash()
				token := m.Token()
				out, status := post(t, f, m, token, "Idempotency-Key", "k1")
				require.Equal(t, 202, status)
				require.True(t, out.Waiting)
				require.Equal(t, 2, out.Tasks)
				require.Contains(t, out.Reason, "it waits on this machine, which submits it by itself")
				again, status := post(t, f, m, token, "Idempotency-Key", "k1")
				require.Equal(t, 202, status)
				require.Equal(t, out.Job, again.Job, "the same request is the same job")
				if killed {
					m.Crash()
					f.Peers[1].Crash()
					time.Sleep(25 * time.Hour) // longer than an upload is kept
					m.Start()
					f.Peers[1].Start()
				}
				require.Len(t, waiting(m, token), 1)
				var job httpapi.Job
				require.Equal(t, 200, m.Call(token, "GET", "/v1/jobs/"+string(out.Job), nil, &job))
				require.True(t, job.Waiting)
				require.Equal(t, lease.JobQueued, job.State)
				require.Len(t, job.Frames, 2)
				require.Equal(t, 1, m.Local().Status(t.Context()).Waiting)
				founder.Start()
				led(f, founder, 3)
				f.Within(time.Minute, "it is submitted", func() bool { return len(waiting(m, token)) == 0 })
				done := becomes(t, f, founder, out.Job, lease.JobDone)
				require.Equal(t, m.ID, done.Submitter)
				require.Len(t, all(t, founder), 1)
				require.Empty(t, farmtest.Files(t, filepath.Join(m.DataDir(), "outbox")))

				page, err := founder.Queue().Audit(t.Context(), farmtest.Admin, httpapi.AuditQuery{Action: "submit-job"})
				require.NoError(t, err)
				require.Len(t, page.Records, 1)
				r := page.Records[0]
				require.Equal(t, done.Owner, r.User)
				require.NotEmpty(t, r.Key)
				require.Equal(t, m.ID, r.Machine)
				require.Equal(t, string(out.Job), r.Object)
				require.Equal(t, authz.OutcomeOK, r.Outcome)

				late, status := post(t, f, m, token, "Idempotency-Key", "k1")
				require.Equal(t, 201, status)
				require.True(t, killed || late.Job == out.Job, "the farm knows the key as well, for a day")
			})
		})
	}
}

// What is delivered twice, whenever the first answer was lost, is one job: also after the
// farm has forgotten its idempotency keys.
func TestDeliveredTwice(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f, founder, m := desk(t)
		founder.Crash()
		out, status := post(t, f, m, m.Token())
		require.Equal(t, 202, status)
		file := filepath.Join(m.DataDir(), "outbox", string(out.Job)+".json")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		founder.Start()
		led(f, founder, 3)
		becomes(t, f, founder, out.Job, lease.JobDone)
		for _, m := range f.Peers {
			m.Crash()
		}
		time.Sleep(26 * time.Hour)
		require.NoError(t, os.WriteFile(file, text, 0o600)) // as a power cut may bring it back
		for _, m := range f.Peers {
			m.Start()
		}
		led(f, founder, 3)
		f.Within(time.Minute, "it is off the list again", func() bool { return len(waiting(m, m.Token())) == 0 })
		require.Len(t, all(t, founder), 1)
	})
}

// A job that waits can be cancelled: at once where nobody has it, and where somebody may,
// for good as soon as that one can be told.
func TestWaitingJobIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, founder, m := desk(t)
		token := m.Token()
		alone(t, f, founder, m)
		out, _ := post(t, f, m, token)
		var job httpapi.JobSummary
		require.Equal(t, 200, m.Call(token, "POST", "/v1/jobs/"+string(out.Job)+"/cancel", nil, &job))
		require.Equal(t, lease.JobCancelled, job.State)
		require.Equal(t, 409, m.Call(token, "POST", "/v1/jobs/"+string(out.Job)+"/cancel", nil, nil), "it has ended")
		founder.Start()
		led(f, founder, 3)
		time.Sleep(2 * time.Minute)
		require.Empty(t, all(t, founder))
		require.Len(t, waiting(m, token), 1, "it is still shown")
		require.Equal(t, 0, m.Local().Status(t.Context()).Waiting)

		// Nobody knows whether the leader has the next one.
		f.Sever(m, founder)
		out, status := post(t, f, m, token)
		require.Equal(t, 202, status)
		require.Equal(t, 200, m.Call(token, "POST", "/v1/jobs/"+string(out.Job)+"/cancel", nil, &job))
		require.Equal(t, lease.JobCancelled, job.State)
		require.Contains(t, job.Reason, "a coordinator may have taken it, and is told as soon as one can be reached")
		f.Heal()
		becomes(t, f, founder, out.Job, lease.JobCancelled)
		f.Within(time.Minute, "it is off the list", func() bool { return m.Local().Status(t.Context()).Waiting == 0 })
	})
}

// With its person's session over, or after a restart, a job waits for its person; it goes
// with no other credential.
func TestWaitingJobNeedsItsPerson(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f, founder, m := desk(t)
		key := func(user string) string {
			k, err := founder.Queue().CreateKey(t.Context(), farmtest.Admin, httpapi.NewKey{Username: user, Role: authz.Operator})
			require.NoError(t, err)
			f.Within(10*time.Second, "the desk knows the key", func() bool {
				_, err := m.Local().Authenticate(t.Context(), k.Key)
				return err == nil
			})
			return k.Key
		}
		ann, second, bob := key("ann"), key("ann"), key("bob")
		alone(t, f, founder, m)
		out, status := post(t, f, m, ann)
		require.Equal(t, 202, status)
		m.Crash()
		m.Start()
		founder.Start()
		led(f, founder, 3)
		for _, other := range []string{m.Token(), second, bob, founder.Token()} {
			m.Call(other, "GET", "/v1/farm", nil, nil)
		}
		time.Sleep(2 * time.Minute)
		require.Empty(t, all(t, founder))
		require.Empty(t, waiting(m, bob))
		jobs := waiting(m, second)
		require.Len(t, jobs, 1)
		require.Contains(t, jobs[0].Reason, "for the API key with which ann posted it: any command here with that key submits it")
		require.Equal(t, 200, m.Call(ann, "GET", "/v1/farm", nil, nil))
		require.Equal(t, "ann", becomes(t, f, founder, out.Job, lease.JobDone).Owner)
	})
}

// A session is over before there is a leader: the job waits for the person's next one.
func TestWaitingJobOutlivesItsSession(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f, founder, m := desk(t)
		ctx, queue := t.Context(), founder.Queue()
		ann, err := queue.AddUser(ctx, farmtest.Admin, httpapi.NewUser{Username: "ann", Role: authz.Operator})
		require.NoError(t, err)
		login := func(password string) string {
			var s httpapi.Session
			require.Equal(t, 200, m.Call("", "POST", "/v1/auth/login", httpapi.Credentials{Username: "ann", Password: password}, &s))
			f.Within(10*time.Second, "the desk knows the session", func() bool {
				_, err := m.Local().Authenticate(ctx, s.Token)
				return err == nil
			})
			return s.Token
		}
		var s httpapi.Session
		const password = "a long password of ann's"
		require.Equal(t, 200, m.Call(login(ann.Password), "POST", "/v1/auth/password", httpapi.PasswordChange{Old: ann.Password, New: password}, &s))
		first := login(password)
		alone(t, f, founder, m)
		out, status := post(t, f, m, first)
		require.Equal(t, 202, status)
		f.Peers[1].Crash()
		time.Sleep(61 * time.Minute)
		founder.Start()
		f.Peers[1].Start()
		led(f, founder, 3)
		time.Sleep(time.Minute)
		require.Empty(t, all(t, founder))
		require.Equal(t, 401, m.Call(first, "GET", "/v1/outbox", nil, nil))
		next := login(password)
		var job httpapi.Job
		m.Call(next, "GET", "/v1/jobs/"+string(out.Job), nil, &job)
		require.Equal(t, "ann", becomes(t, f, founder, out.Job, lease.JobDone).Owner)
	})
}

// A job that may not be submitted any more is refused by the leader, and shown with the
// reason.
func TestWaitingJobIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, founder, m := desk(t)
		k, err := founder.Queue().CreateKey(t.Context(), farmtest.Admin, httpapi.NewKey{Username: "ann", Role: authz.Operator})
		require.NoError(t, err)
		f.Within(10*time.Second, "the desk knows the key", func() bool {
			_, err := m.Local().Authenticate(t.Context(), k.Key)
			return err == nil
		})
		f.Sever(m, founder, f.Peers[1])
		f.Within(time.Minute, "it knows that nobody leads", func() bool { return m.Local().Status(t.Context()).Leader == "" })
		out, status := post(t, f, m, k.Key)
		require.Equal(t, 202, status)
		_, err = founder.Queue().RevokeKey(t.Context(), farmtest.Admin, k.ID)
		require.NoError(t, err)
		f.Heal()
		f.Within(2*time.Minute, "it is refused", func() bool { return m.Local().Status(t.Context()).Waiting == 0 })
		jobs := m.Local().Waiting(farmtest.Admin)
		require.Len(t, jobs, 1)
		require.Equal(t, out.Job, jobs[0].ID)
		require.Equal(t, lease.JobFailed, jobs[0].State)
		require.Contains(t, jobs[0].Reason, "it was refused: the token is not valid")
		require.Empty(t, all(t, founder))
		page, err := founder.Queue().Audit(t.Context(), farmtest.Admin, httpapi.AuditQuery{Action: "submit-job", Outcome: "refused"})
		require.NoError(t, err)
		require.Len(t, page.Records, 1, "and is on record")
		require.Equal(t, m.ID, page.Records[0].Machine)
	})
}

// A machine keeps so many jobs, and no more.
func TestOutboxIsBounded(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f, founder, m := desk(t)
		token := m.Token()
		alone(t, f, founder, m)
		who, err := m.Local().Authenticate(t.Context(), token)
		require.NoError(t, err)
		project, err := m.Local().ImportProject(t.Context(), who, farmtest.Project(0, 1000))
		require.NoError(t, err)
		spec, _, err := m.Local().Prepare(t.Context(), who, httpapi.Submission{Project: project.Project, Frames: "1-2"})
		require.NoError(t, err)
		spec.Owner, spec.Submitter = who.User, m.ID
		keep := func() error {
			_, err := m.Local().Keep(t.Context(), httpapi.Posted{Submit: lease.Submit{Job: m.Local().NewJob(), Spec: spec}, By: who, Token: token})
			return err
		}
		for range 100 {
			require.NoError(t, keep())
		}
		err = keep()
		require.ErrorIs(t, err, httpapi.ErrNoLeader)
		require.ErrorContains(t, err, "100 jobs wait on this machine already, the most that it keeps")
		require.Len(t, farmtest.Files(t, filepath.Join(m.DataDir(), "outbox")), 100)
		m.Crash()
		m.Start()
		require.Len(t, waiting(m, token), 100)
		founder.Start()
		led(f, founder, 3)
		f.Within(2*time.Minute, "all are submitted", func() bool { return len(all(t, founder)) == 100 && len(waiting(m, token)) == 0 })
	})
}

// The leader dies at any moment of a submission: before it hears of it, while it commits
// it, before it answers. Every job that was answered for is one job, under its ID.
func TestLeaderDiesWhileAJobIsSubmitted(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.NewOf(t, 3, 0, func(_ int, can *lease.Capability) { can.Slots = 0 })
		f.Vote(3)
		m := f.Newcomer("desk")
		ticket, err := f.Led(0).Queue().Invite(t.Context(), farmtest.Admin, httpapi.Invitation{Role: authz.Operator})
		require.NoError(t, err)
		_, err = m.Join(ticket.Ticket)
		require.NoError(t, err)
		m.Start()
		f.Online(4)
		token := m.Token()
		answered, waited := map[lease.JobID]int{}, 0
		for round := range 10 {
			leader, crashed := f.Led(10*time.Second), make(chan struct{})
			f.Within(10*time.Second, "the desk knows who leads", func() bool { return m.Local().Status(t.Context()).Leader == leader.ID })
			time.AfterFunc(time.Duration(round)*1500*time.Microsecond, func() {
				defer close(crashed)
				leader.Crash()
			})
			out, status := post(t, f, m, token, "Idempotency-Key", fmt.Sprint("k", round))
			require.Contains(t, []int{201, 202}, status)
			answered[out.Job] = status
			if status == 202 {
				waited++
			}
			<-crashed
			f.Led(10 * time.Second)
			leader.Start()
			f.Online(4)
		}
		f.Within(2*time.Minute, "all are submitted", func() bool { return m.Local().Status(t.Context()).Waiting == 0 })
		jobs := all(t, f.Led(0))
		require.Len(t, jobs, 10)
		require.Len(t, answered, 10)
		for _, j := range jobs {
			require.Contains(t, answered, j.ID)
		}
		require.NotZero(t, waited, "the leader died in time")
		t.Logf("%d of 10 waited for the next leader", waited)
	})
}
