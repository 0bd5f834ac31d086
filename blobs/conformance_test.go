package blobs_test

import (
	"testing"

	"vizpeer/blobs"
	"vizpeer/blobs/blobtest"
)

func TestStores(t *testing.T) {
	for name, with := range map[string]func(blobs.Config) blobs.Config{
		"direct":      func(cfg blobs.Config) blobs.Config { return cfg },
		"buffered":    blobs.Buffered,
		"no holes":    func(cfg blobs.Config) blobs.Config { return blobs.NoHoles(blobs.SmallFiles(cfg)) },
		"small files": blobs.SmallFiles,
	} {
		if testing.Short() && name != "no holes" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			blobtest.Run(t, func(dir string, cfg blobs.Config) (*blobs.Store, error) { return blobs.Open(dir, with(cfg)) })
		})
	}
}
