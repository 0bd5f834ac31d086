package lease

import (
	"cmp"
	"fmt"
)

// Limits bound what one person may submit. 0, or less, is the default of each:
// [MaxTasks], [MaxOpenJobs] and [MaxOpenTasks]. The leader puts its own into the
// commands that open a job, so that Apply needs to know nobody's settings.
type Limits struct {
	Tasks     int `json:"tasks,omitempty"`      // in one job
	OpenJobs  int `json:"open_jobs,omitempty"`  // that have not ended
	OpenTasks int `json:"open_tasks,omitempty"` // in jobs that have not ended, as they are cut by then
}

// OrDefault is l with its defaults filled in.
func (l Limits) OrDefault() Limits {
	return Limits{
		Tasks: cmp.Or(max(l.Tasks, 0), MaxTasks), OpenJobs: cmp.Or(max(l.OpenJobs, 0), MaxOpenJobs),
		OpenTasks: cmp.Or(max(l.OpenTasks, 0), MaxOpenTasks),
	}
}

// mayOpen refuses a person one more open job, of so many tasks, than is allowed.
func (s *State) mayOpen(owner string, tasks int, l Limits) error {
	l = l.OrDefault()
	jobs := 0
	for _, j := range s.open {
		if j.Spec.Owner == owner {
			jobs++
			tasks += len(j.Tasks)
		}
	}
	switch {
	case jobs >= l.OpenJobs:
		return fmt.Errorf("%w: %s has %d jobs that have not ended, the most allowed; wait for one or cancel one", ErrLimit, owner, jobs)
	case tasks > l.OpenTasks:
		return fmt.Errorf("%w: %s would have %d tasks in jobs that have not ended, more than the %d allowed; wait for a job or cancel one, or use larger chunks", ErrLimit, owner, tasks, l.OpenTasks)
	}
	return nil
}

// MostTasks is how many tasks the job may have in all.
func (j *Job) MostTasks() int { return Limits{Tasks: j.Most}.OrDefault().Tasks }
