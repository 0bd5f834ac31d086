package peer

import "time"

// cpuTime: not told here.
func cpuTime() time.Duration { return 0 }
