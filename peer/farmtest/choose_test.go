package farmtest_test

import (
	"iter"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

// pictured is a project whose collector saw a scene with these facts.
func pictured(facts string) iter.Seq2[httpapi.ProjectFile, error] {
	return func(yield func(httpapi.ProjectFile, error) bool) {
		for _, f := range [][2]string{
			{"vizpeer.json", `{"version": 1, "blend": "files/s.blend", "origin": "linux", "complete": true, "scene": {"name": "Scene", "frame_start": 7, "frame_end": 7,
				"frame_current": 7, "engine": "CYCLES", "format": "PNG"` + facts + `}}`},
			{"files/s.blend", "BLENDER-v304" + strings.Repeat("\x00", 1000)},
		} {
			if !yield(httpapi.ProjectFile{Path: f[0], Size: int64(len(f[1])), Body: strings.NewReader(f[1])}, nil) {
				return
			}
		}
	}
}

// The machine that takes a submission divides its frames by what the manifest says of
// the scene, and by nothing else.
func TestFramesAreDividedByWhatTheManifestSays(t *testing.T) {
	const known = `, "picture": {"width": 1920, "height": 1080, "percent": 100, "samples": 1024`
	samples := lease.Split{By: lease.BySamples, Units: 1024}
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		m := f.Peers[0]
		for name, c := range map[string]struct {
			facts   string
			ask     httpapi.Submission
			want    lease.Split
			whole   string
			warning string
			problem string
		}{
			"a still":           {facts: known + "}", want: samples},
			"a still, none":     {facts: known + "}", ask: httpapi.Submission{Split: lease.WishNone}},
			"two frames":        {facts: known + "}", ask: httpapi.Submission{Frames: "7-8"}},
			"two frames, split": {facts: known + "}", ask: httpapi.Submission{Frames: "7-8", Split: lease.WishSamples}, want: samples},
			"a grid":            {facts: known + "}", ask: httpapi.Submission{Tiles: "3x2"}, want: lease.Split{By: lease.ByTiles, Units: 6, Columns: 3, Rows: 2}},
			"no grid":           {facts: known + "}", ask: httpapi.Submission{Tiles: "3"}, problem: `"3" is no grid of tiles`},
			"fewer samples":     {facts: known + "}", ask: httpapi.Submission{Settings: lease.Settings{Samples: 5}}, whole: "it has 5 samples"},
			"another scene":     {facts: known + "}", ask: httpapi.Submission{Settings: lease.Settings{Scene: "Other"}}, whole: "nobody has looked into the scene"},
			"another Blender":   {facts: known + "}", ask: httpapi.Submission{Needs: lease.Requirements{Blender: "4.2"}, Split: lease.WishSamples}, problem: "give --samples 256, or use --split tiles"},
			"adaptive":          {facts: known + `, "adaptive": true}`, ask: httpapi.Submission{Split: lease.WishSamples}, want: samples, warning: "adaptive sampling is switched off"},
			"a region":          {facts: known + `, "border": true}`, ask: httpapi.Submission{Split: lease.WishTiles}, problem: "clear the render region in the scene"},
			"an older manifest": {whole: "nobody has looked into the scene"},
			"no Cycles":         {facts: `, "picture": null`, whole: "nobody has looked into the scene"},
			"older, but wished": {ask: httpapi.Submission{Split: lease.WishTiles, Tiles: "2x2"}, problem: "nobody has looked into the scene"},
		} {
			up, err := m.Local().ImportProject(t.Context(), farmtest.Operator, pictured(c.facts))
			require.NoError(t, err, name)
			c.ask.Project = up.Project
			spec, found, err := m.Local().Prepare(t.Context(), farmtest.Operator, c.ask)
			if c.problem != "" {
				require.ErrorIs(t, err, httpapi.ErrInvalid, name)
				require.ErrorContains(t, err, c.problem, name)
				continue
			}
			require.NoError(t, err, name)
			require.Equal(t, c.want, spec.Split, name)
			require.Contains(t, found.Whole, c.whole, name)
			require.Equal(t, c.whole == "", found.Whole == "", name)
			require.Contains(t, strings.Join(found.Warnings, "\n"), c.warning, name)
		}

		up, err := m.Local().ImportProject(t.Context(), farmtest.Operator, pictured(known+"}"))
		require.NoError(t, err)
		id := f.Submit(m, "7", func(s *httpapi.Submission) { s.Project = up.Project })
		require.Equal(t, samples, f.Job(id).Split)
		list, err := m.Queue().Jobs(t.Context(), farmtest.Operator, httpapi.JobQuery{})
		require.NoError(t, err)
		require.Equal(t, samples, list.Jobs[0].Split)
	})
}
