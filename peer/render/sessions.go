package render

import (
	"slices"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/mem"
)

// The defaults of [Config] for Blenders that wait for another attempt.
const (
	// linger is long enough for the next task of the same job, and for an artist's
	// next job, and short for a machine whose owner wants his memory back.
	linger = 10 * time.Second
	// maxFrames bounds what a leak of Blender's own can add up to.
	maxFrames = 250
)

// sessions are the Blenders that wait for another attempt with the same key.
type sessions struct {
	linger    time.Duration
	maxIdle   int
	maxFrames int
	maxMemory int64
	// memory tells how many bytes of memory the machine has, and how many are free for
	// programs.
	memory func() (total, free int64)

	mu   sync.Mutex
	idle []*session // the one used last stands last
	// lean are the keys whose Blender ran out of memory: the next goes without what
	// persists.
	lean   map[sessionKey]bool
	closed bool
	ending sync.WaitGroup
}

func machineMemory() (total, free int64) {
	if m, err := mem.VirtualMemory(); err == nil {
		return int64(m.Total), int64(m.Available)
	}
	return 0, 0
}

// take returns a session that waits for attempts with that key, nil where there is none.
// It is the caller's then.
func (p *sessions) take(k sessionKey) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range slices.Backward(p.idle) {
		if s.key == k && !(s.persists && p.lean[k]) {
			p.remove(i)
			return s
		}
	}
	return nil
}

// remove takes a session off those that wait. p.mu is held.
func (p *sessions) remove(i int) {
	p.idle[i].linger.Stop()
	p.idle = slices.Delete(p.idle, i, i+1)
}

// drop takes a session off those that wait, and tells whether it was one.
func (p *sessions) drop(s *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.idle, s)
	if i >= 0 {
		p.remove(i)
	}
	return i >= 0
}

// keep lets a session wait for the next attempt, or ends it where it has served its
// time. memory is what it takes now.
func (p *sessions) keep(s *session, memory int64) {
	p.mu.Lock()
	if memory > p.maxMemory && s.persists {
		p.spare(s.key)
	}
	var over []*session
	if p.closed || p.linger < 0 || s.frames >= p.maxFrames || memory > p.maxMemory {
		over = []*session{s}
	} else {
		s.linger = time.AfterFunc(p.linger, func() {
			if p.drop(s) {
				s.end()
			}
		})
		p.idle = append(p.idle, s)
		for len(p.idle) > p.maxIdle {
			over = append(over, p.idle[0])
			p.remove(0)
		}
	}
	p.ending.Add(len(over))
	p.mu.Unlock()
	for _, s := range over { // whoever kept it has better to do than to wait
		go func() {
			defer p.ending.Done()
			s.end()
		}()
	}
}

// makeRoom ends sessions that wait, for a new one with the key k that needs so many
// bytes of memory.
func (p *sessions) makeRoom(k sessionKey, need int64) {
	_, onGPU := k.device.GPU()
	onGPU = onGPU || k.device == "" && k.gpu
	for {
		p.mu.Lock()
		// Nobody tells how much of a GPU's memory is free, and it is what is scarce.
		i := slices.IndexFunc(p.idle, func(s *session) bool { return onGPU && s.key.device == k.device })
		if i < 0 && len(p.idle) > 0 {
			if total, free := p.memory(); free < max(need, total/4) {
				i = 0
			}
		}
		if i < 0 {
			p.mu.Unlock()
			return
		}
		s := p.idle[i]
		p.remove(i)
		p.mu.Unlock()
		s.end()
	}
}

// roomy tells whether a new session may keep render data for the next frame, which
// takes more than half as much memory again.
func (p *sessions) roomy(k sessionKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	total, free := p.memory()
	return p.linger >= 0 && !p.lean[k] && free >= total/2 && total > 0
}

// maxLean bounds what is remembered of keys.
const maxLean = 1000

// spare makes the next session with that key one that takes less memory. p.mu is held.
func (p *sessions) spare(k sessionKey) {
	if p.lean == nil || len(p.lean) >= maxLean {
		p.lean = make(map[sessionKey]bool)
	}
	p.lean[k] = true
}

// ranOut says that a session with that key found no memory.
func (p *sessions) ranOut(k sessionKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare(k)
}

// rest ends all sessions that wait, and returns when they are gone.
func (p *sessions) rest() {
	p.mu.Lock()
	idle := slices.Clone(p.idle)
	for _, s := range idle {
		s.linger.Stop()
	}
	p.idle = nil
	p.mu.Unlock()
	for _, s := range idle {
		s.end()
	}
	p.ending.Wait()
}

// close ends all sessions that wait, and keeps none from now on.
func (p *sessions) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.rest()
}
