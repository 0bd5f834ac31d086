//go:build !windows

package probe

import "vizpeer/lease"

func (p prober) windowsCards() []lease.GPU { return nil }
