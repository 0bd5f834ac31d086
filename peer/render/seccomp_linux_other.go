//go:build linux && !amd64 && !arm64

package render

// seccomp is none: bubblewrap runs without on this processor.
var seccomp []byte
