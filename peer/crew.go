package peer

import "sync"

// crew is a group of goroutines that can be joined once, while others may still
// want to add to it: what comes after is not started.
type crew struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Go runs f in a goroutine of its own, unless the crew is dismissed.
func (c *crew) Go(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(f)
	}
}

// Dismiss waits for everybody and takes nobody any more.
func (c *crew) Dismiss() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}
