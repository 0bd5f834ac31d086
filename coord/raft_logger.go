package coord

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes raft's words on to slog, one level lower: an election is
// news to raft's authors and routine in a farm. Raft logs indexes, terms, peer
// IDs and errors, never the content of entries.
type raftLogger struct {
	to   *slog.Logger
	name string
	with []any
}

var _ hclog.Logger = (*raftLogger)(nil)

func levelOf(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	case hclog.Info:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := levelOf(level)
	if level == hclog.Off || !l.to.Enabled(context.Background(), to) {
		return
	}
	plain := make([]any, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case hclog.Format: // a format string and its arguments
			if len(a) > 0 {
				plain[i] = fmt.Sprintf(fmt.Sprint(a[0]), a[1:]...)
			}
		case fmt.Stringer:
			plain[i] = a.String()
		default:
			plain[i] = a
		}
	}
	l.to.Log(context.Background(), to, l.name+": "+msg, plain...)
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) is(level hclog.Level) bool {
	return l.to.Enabled(context.Background(), levelOf(level))
}

func (l *raftLogger) IsTrace() bool { return l.is(hclog.Trace) }
func (l *raftLogger) IsDebug() bool { return l.is(hclog.Debug) }
func (l *raftLogger) IsInfo() bool  { return l.is(hclog.Info) }
func (l *raftLogger) IsWarn() bool  { return l.is(hclog.Warn) }
func (l *raftLogger) IsError() bool { return l.is(hclog.Error) }

func (l *raftLogger) Name() string       { return l.name }
func (l *raftLogger) ImpliedArgs() []any { return l.with }

func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{to: l.to.With(args...), name: l.name, with: append(l.with[:len(l.with):len(l.with)], args...)}
}

func (l *raftLogger) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }

func (l *raftLogger) ResetNamed(name string) hclog.Logger {
	return &raftLogger{to: l.to, name: name, with: l.with}
}

// SetLevel does nothing: slog's handler decides.
func (l *raftLogger) SetLevel(hclog.Level) {}

// GetLevel is the lowest level that is heard.
func (l *raftLogger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Trace, hclog.Info, hclog.Warn, hclog.Error} {
		if l.is(level) {
			return level
		}
	}
	return hclog.Off
}

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(nil), "", 0)
}

func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{l} }

// lineWriter logs each line written to it.
type lineWriter struct{ to *raftLogger }

func (w lineWriter) Write(p []byte) (int, error) {
	w.to.Info(strings.TrimSpace(string(p)))
	return len(p), nil
}
