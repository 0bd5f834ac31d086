package lease

import "slices"

// FailKind tells failures of attempts apart, so that the farm can react to each in
// its own way.
type FailKind string

// The kinds of failure.
const (
	FailCrash   FailKind = "crash"   // Blender died by a signal that it did not handle
	FailError   FailKind = "error"   // Blender or its driver said no
	FailTimeout FailKind = "timeout" // the attempt ran past its time
	FailMemory  FailKind = "memory"  // the machine, or its GPU, ran out of memory
	FailImage   FailKind = "image"   // an image is missing, empty or cut short
	FailMachine FailKind = "machine" // this machine cannot render it; the task is not to blame
)

// FailKinds lists every kind.
func FailKinds() []FailKind {
	return []FailKind{FailCrash, FailError, FailTimeout, FailMemory, FailImage, FailMachine}
}

// known is k, or FailError for a kind that this version does not know. Such a
// failure is not refused: a worker of a newer version would get no answer that it
// could act on, its lease would expire, and the task would be tried for ever without
// a failure being counted.
func (k FailKind) known() FailKind {
	if k != "" && !slices.Contains(FailKinds(), k) {
		return FailError
	}
	return k
}

// Forgive lets every machine try a job again, whatever went wrong with it there: the
// leader asks for it where nobody else is left.
type Forgive struct {
	Job JobID `json:"job"`
}

func (a *applying) forgive(c Forgive) error {
	j, err := a.opened(c.Job)
	if err != nil {
		return err
	}
	j.Faults, j.Above = nil, Memory{}
	return nil
}
