package lease

import (
	"slices"
	"time"
)

// AgeStep is how long a job waits to be served as if it were of the next tier.
const AgeStep = 30 * time.Minute

// maxAge bounds by how many tiers waiting raises a job.
const maxAge = 3

// maxRank is that of Urgent.
const maxRank = 3

// Rank orders jobs, the higher first: that of the job's tier, one more for every
// [AgeStep] since it last had a task granted, by maxAge at most, and never above
// that of Urgent. It rests on the log's time alone, so every leader ranks alike.
func (j *Job) Rank(now time.Time) int {
	age := min(max(int(now.Sub(j.Served)/AgeStep), 0), maxAge)
	return min(j.Tier.Rank()+age, maxRank)
}

// Waiting lists the jobs of which a task may be granted now in the order in which
// they are served: by [Job.Rank], then in log order. more names jobs without a task
// that waits of which one may be granted to a second machine; it may be nil.
func (s *State) Waiting(now time.Time, more func(*Job) bool) []*Job {
	var ranks [maxRank + 1][]*Job
	for _, j := range s.open {
		if j.State != JobPaused && (j.HasQueued() || more != nil && more(j)) && s.Awaits(j) == "" {
			r := j.Rank(now)
			ranks[r] = append(ranks[r], j)
		}
	}
	var jobs []*Job
	for r := maxRank; r >= 0; r-- {
		if !slices.IsSortedFunc(ranks[r], bySeq) { // it is as long as none has aged
			slices.SortFunc(ranks[r], bySeq)
		}
		jobs = append(jobs, ranks[r]...)
	}
	return jobs
}
