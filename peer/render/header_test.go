package render

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func zipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zstdded(t testing.TB, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return w.EncodeAll(b, nil)
}

func TestHeader(t *testing.T) {
	pad := bytes.Repeat([]byte("x"), 100_000)
	plain := func(s string) []byte { return append([]byte(s), pad...) }
	for name, c := range map[string]struct {
		file []byte
		want lease.Version
	}{
		"3.4":           {plain("BLENDER-v304RENDH"), lease.Version{Major: 3, Minor: 4}},
		"2.93 32 bit":   {plain("BLENDER_v293RENDH"), lease.Version{Major: 2, Minor: 93}},
		"2.4 big":       {plain("BLENDER-V240REND"), lease.Version{Major: 2, Minor: 40}},
		"4.2 gzip":      {zipped(t, plain("BLENDER-v402")), lease.Version{Major: 4, Minor: 2}},
		"4.5 zstd":      {zstdded(t, plain("BLENDER-v405")), lease.Version{Major: 4, Minor: 5}},
		"5.0":           {plain("BLENDER17-01v0500"), lease.Version{Major: 5}},
		"5.1 zstd":      {zstdded(t, plain("BLENDER17-01v0501")), lease.Version{Major: 5, Minor: 1}},
		"only a header": {[]byte("BLENDER-v304"), lease.Version{Major: 3, Minor: 4}},
	} {
		got, err := Header(bytes.NewReader(c.file))
		require.NoError(t, err, name)
		require.Equal(t, c.want, got, name)
	}
	for name, file := range map[string][]byte{
		"empty":         {},
		"short":         []byte("BLE"),
		"text":          []byte("hello, world, this is text"),
		"cut":           []byte("BLENDER-v3"),
		"letters":       []byte("BLENDER-vabcREND"),
		"5 cut":         []byte("BLENDER17-01v05"),
		"zip of text":   zipped(t, plain("hello")),
		"gzip magic":    []byte("\x1f\x8b\x00"),
		"zstd magic":    []byte("\x28\xb5\x2f\xfd"),
		"cut gzip":      zipped(t, plain("BLENDER-v402"))[:12],
		"another magic": []byte("BLENDED-v304REND"),
	} {
		_, err := Header(bytes.NewReader(file))
		require.ErrorIs(t, err, ErrNotBlend, name)
	}
	broken := errors.New("disk on fire")
	_, err := Header(iotest.ErrReader(broken))
	require.ErrorIs(t, err, broken)
	_, err = Header(io.MultiReader(bytes.NewReader([]byte("BLENDER-")), bytes.NewReader([]byte("v304RENDH"))))
	require.NoError(t, err)
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("BLENDER-v304RENDH"))
	f.Add([]byte("BLENDER17-01v0500"))
	f.Add(zipped(f, []byte("BLENDER-v402")))
	f.Add(zstdded(f, []byte("BLENDER-v405")))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Header(bytes.NewReader(b))
		if err != nil && !errors.Is(err, ErrNotBlend) {
			t.Fatalf("%v", err)
		}
		if err == nil && (v.Major < 0 || v.Minor > 99) {
			t.Fatalf("impossible version %v", v)
		}
	})
}
