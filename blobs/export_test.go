package blobs

// Buffered is cfg without direct I/O, as on systems that have none.
func Buffered(cfg Config) Config { cfg.packs.Buffered = true; return cfg }

// NoHoles is cfg without holes in files, as on systems that have none.
func NoHoles(cfg Config) Config { cfg.packs.NoHoles = true; return cfg }

// SmallFiles is cfg with pack files of a few MiB.
func SmallFiles(cfg Config) Config { cfg.packs.FileSize = 3 << 20; return cfg }
