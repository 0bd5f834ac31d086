package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// board shows a job's progress to a person.
type board interface {
	// show is called with each change; ev is nil where everything was read anew.
	show(f *follower, ev *httpapi.Event)
	// warn tells what the person must know although the job goes on.
	warn(text string)
	// close leaves the last picture standing.
	close()
}

// board picks the display: bars on a terminal; elsewhere lines if they are
// wanted, or nothing.
func (c *cli) board(lines bool) board {
	switch {
	case c.live():
		return newBars(c.errOut)
	case lines && !c.quiet:
		return &lineBoard{noBoard{c}}
	}
	return noBoard{c}
}

type noBoard struct{ cli *cli }

func (noBoard) show(*follower, *httpapi.Event) {}
func (noBoard) close()                         {}
func (b noBoard) warn(text string)             { b.cli.warn("%s", text) }

// lineBoard prints a line for each frame and each mishap.
type lineBoard struct{ noBoard }

func (b *lineBoard) show(f *follower, ev *httpapi.Event) {
	if ev == nil {
		return
	}
	switch ev.Type {
	case lease.FrameResult:
		if ev.Frame == nil {
			return
		}
		if *ev.Frame == lease.MovieFrame || f.job.Split.On() {
			fmt.Fprintln(b.cli.errOut, plain(eventText(*ev, f.job.Split.By)))
			return
		}
		fmt.Fprintf(b.cli.errOut, "%3d of %s  frame %-4d %-10s %5.1f s  %s\n",
			f.rendered, count(len(f.frames), "frame"), *ev.Frame, plain(f.worker(ev.Peer, ev.PeerName).name), ev.Seconds, timesText(f))
	case lease.PieceRendered:
		fmt.Fprintln(b.cli.errOut, plain(pieceText(*ev, f)))
	case lease.TaskRequeued:
		if ev.Task != nil {
			fmt.Fprintln(b.cli.errOut, plain(eventText(*ev, f.job.Split.By)))
		}
	}
}

// timesText is how long the job has been going and what is left of it.
func timesText(f *follower) string {
	now := f.now()
	spent, ok := f.elapsed(now)
	if !ok || f.job.State.Ended() {
		return ""
	}
	text := spent.Round(time.Second).String() + " so far"
	if d, ok := f.left(now); ok {
		text += ", about " + d.Round(time.Second).String() + " left"
	}
	return text
}

// bars draws a bar for the job and a line for each machine.
type bars struct {
	progress *mpb.Progress
	total    *mpb.Bar
	workers  map[authz.PeerID]*mpb.Bar

	mu    sync.Mutex // guards what the display's own goroutine reads
	head  string
	tail  string
	lines map[authz.PeerID]string
}

func newBars(w io.Writer) *bars {
	return &bars{
		progress: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40)),
		workers:  make(map[authz.PeerID]*mpb.Bar),
		lines:    make(map[authz.PeerID]string),
	}
}

func (b *bars) text(of func() string) decor.Decorator {
	return decor.Any(func(decor.Statistics) string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return of()
	})
}

func (b *bars) show(f *follower, _ *httpapi.Event) {
	tail := tailText(f)
	b.mu.Lock()
	b.head, b.tail = plain(f.job.Name)+" ", tail
	for _, id := range f.order {
		b.lines[id] = f.peers[id].line()
	}
	b.mu.Unlock()

	if b.total == nil {
		// A total of 0 keeps the bar from completing by itself, and so from being
		// drawn no more while frames are still being written.
		b.total = b.progress.AddBar(0,
			mpb.PrependDecorators(b.text(func() string { return b.head })),
			mpb.AppendDecorators(b.text(func() string { return b.tail })))
	}
	if f.job.UnitsTotal > 0 {
		b.total.SetTotal(int64(f.job.UnitsTotal), false)
		b.total.SetCurrent(int64(f.units()))
	} else {
		b.total.SetTotal(int64(len(f.frames)), false)
		b.total.SetCurrent(int64(f.rendered))
	}
	for _, id := range f.order {
		if b.workers[id] == nil {
			b.workers[id] = b.progress.New(1, mpb.NopStyle(),
				mpb.PrependDecorators(b.text(func() string { return "  " + b.lines[id] })))
		}
	}
}

// tailText is what stands behind the job's bar.
func tailText(f *follower) string {
	tail := " " + progressText(f.job.JobSummary, f.rendered, len(f.frames), f.units())
	if n := f.busy(); n > 0 && f.job.UnitsTotal > 0 {
		tail += ", " + count(n, "machine")
	}
	if now := f.nowText(); now != "" {
		tail += ", " + now
	}
	if times := timesText(f); times != "" {
		tail += ", " + times
	}
	if f.job.Output != "" && f.delivered > 0 {
		tail += fmt.Sprintf(", %d written", f.delivered)
	}
	switch {
	case f.job.OutputError != "":
		tail += ", frames cannot be written"
	case f.job.State == lease.JobDone && f.job.Output != "" && !f.written():
		tail += ", waiting for the rest to be written"
	case !f.job.State.Ended() && strings.HasPrefix(f.job.Reason, "it waits"):
		tail += ", waiting for a machine"
	}
	return tail
}

// warn prints above the bars.
func (b *bars) warn(text string) {
	_, _ = fmt.Fprintf(b.progress, "vizpeer: warning: %s\n", plainLines(text))
}

func (b *bars) close() {
	for _, line := range b.workers {
		line.Abort(false)
	}
	if b.total != nil {
		b.total.Abort(false)
	}
	b.progress.Wait()
}

// line is one machine's line: its name, its frames so far and what it does now.
func (w *workerView) line() string {
	var s strings.Builder
	if w.by != "" {
		return w.partLine()
	}
	fmt.Fprintf(&s, "%-12s %3d frame", plain(w.name), w.frames)
	if w.frames != 1 {
		s.WriteByte('s')
	}
	if w.task < 0 {
		return s.String()
	}
	fmt.Fprintf(&s, "   task %d (%s)", w.task, plain(workText(w.list, nil, "")))
	if p := w.progress; p != nil {
		if p.Phase != "fetching" { // Blender does not run yet, so no frame is its present one
			fmt.Fprintf(&s, "  frame %d", p.Frame)
		}
		switch {
		case p.Samples > 0:
			fmt.Fprintf(&s, "  sample %d/%d", p.Sample, p.Samples)
		case p.Phase != "":
			fmt.Fprintf(&s, "  %s", plain(p.Phase))
		}
	}
	return s.String()
}

// partLine is line of a job that splits its frames: which units of which frame the
// machine renders.
func (w *workerView) partLine() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%-12s", plain(w.name))
	if w.task < 0 {
		return strings.TrimRight(s.String(), " ")
	}
	fmt.Fprintf(&s, " %s", plain(workText(w.list, w.part, w.by)))
	switch p := w.progress; {
	case p == nil:
	case w.part != nil && p.Samples > 0:
		fmt.Fprintf(&s, "  %d %%", 100*min(p.Sample, p.Samples)/p.Samples)
	case p.Phase != "" && !w.merges():
		fmt.Fprintf(&s, "  %s", plain(p.Phase))
	}
	return s.String()
}

// transferBar is the bar of a transfer whose size is known; the returned function
// ends it. Without a terminal the reader is returned as it came.
func (c *cli) transferBar(name string, r io.Reader, size int64) (io.Reader, func()) {
	if !c.live() || size <= 0 {
		return r, func() {}
	}
	p := mpb.New(mpb.WithOutput(c.errOut), mpb.WithWidth(40))
	bar := p.AddBar(size,
		mpb.PrependDecorators(decor.Name(name+" ")),
		mpb.AppendDecorators(decor.CountersKibiByte(" % .1f / % .1f "), decor.AverageETA(decor.ET_STYLE_GO)),
		mpb.BarRemoveOnComplete())
	return bar.ProxyReader(r), func() {
		bar.Abort(true)
		p.Wait()
	}
}

// stepBar is the bar of something that the peer does and tells about; its total
// may come later.
type stepBar struct {
	progress *mpb.Progress // nil without a terminal
	bar      *mpb.Bar
}

// stepBar shows how many bytes are done.
func (c *cli) stepBar(name string) *stepBar {
	return c.barOf(name, decor.CountersKibiByte(" % .1f / % .1f "))
}

// countBar shows how many things are done.
func (c *cli) countBar(name string) *stepBar { return c.barOf(name, decor.CountersNoUnit(" %d / %d ")) }

func (c *cli) barOf(name string, counters decor.Decorator) *stepBar {
	if !c.live() {
		return &stepBar{}
	}
	p := mpb.New(mpb.WithOutput(c.errOut), mpb.WithWidth(40))
	return &stepBar{p, p.AddBar(0,
		mpb.PrependDecorators(decor.Name(name+" ")),
		mpb.AppendDecorators(counters, decor.AverageETA(decor.ET_STYLE_GO)),
		mpb.BarRemoveOnComplete())}
}

func (b *stepBar) show(done, total int64) {
	if b.progress == nil {
		return
	}
	if total > 0 {
		b.bar.SetTotal(total, false)
	}
	b.bar.SetCurrent(done)
}

func (b *stepBar) close() {
	if b.progress != nil {
		b.bar.Abort(true)
		b.progress.Wait()
	}
}
