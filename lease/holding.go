package lease

import "fmt"

// Holding is how much of a project a machine holds: it is what ads say, so that
// work goes where the data is.
type Holding struct {
	Project string `json:"p"` // see [ShortCID]
	Eighths int    `json:"e"` // 1 to [Whole], rounded down
}

// Whole is the eighths of a project that is there in full.
const Whole = 8

// MaxHoldings is how many projects a machine tells of, the latest used: an ad
// must stay small.
const MaxHoldings = 64

// shortCID is how many characters of a CID's text stand for it in ads: enough
// that two projects are never mistaken for each other by accident. A machine that
// lies is only asked in vain.
const shortCID = 20

// ShortCID is the form in which ads name a project.
func ShortCID(cid string) string { return cid[max(0, len(cid)-shortCID):] }

// Holdings lists what a machine holds.
type Holdings []Holding

// ByProject is the same for looking up: eighths by [ShortCID].
func (hs Holdings) ByProject() map[string]int {
	m := make(map[string]int, len(hs))
	for _, h := range hs {
		m[h.Project] = h.Eighths
	}
	return m
}

// Validate reports what no honest machine says.
func (hs Holdings) Validate() error {
	if len(hs) > MaxHoldings {
		return fmt.Errorf("%d projects are more than the %d that an ad may name", len(hs), MaxHoldings)
	}
	for _, h := range hs {
		if h.Project == "" || len(h.Project) > shortCID || h.Eighths < 1 || h.Eighths > Whole {
			return fmt.Errorf("%d eighths of the project %.32q are not possible", h.Eighths, h.Project)
		}
	}
	return nil
}
