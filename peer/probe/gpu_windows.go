package probe

import (
	"strings"

	"github.com/jaypipes/ghw"

	"vizpeer/lease"
)

// windowsCards lists what Windows says of the graphics cards. It gives no sizes of
// memory that could be trusted.
func (p prober) windowsCards() []lease.GPU {
	info, err := ghw.GPU(ghw.WithDisableWarnings())
	if err != nil {
		p.cfg.Logger.Debug("Windows does not list its graphics cards", "err", err)
		return nil
	}
	var list []lease.GPU
	for _, card := range info.GraphicsCards {
		if card.DeviceInfo == nil || card.DeviceInfo.Product == nil {
			continue
		}
		name := card.DeviceInfo.Product.Name
		for word, vendor := range map[string]lease.Vendor{"NVIDIA": lease.NVIDIA, "AMD": lease.AMD, "Radeon": lease.AMD, "Intel": lease.Intel} {
			if strings.Contains(name, word) {
				list = append(list, lease.GPU{Vendor: vendor, Model: name})
				break
			}
		}
	}
	return list
}
