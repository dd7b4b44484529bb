package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// newRaftLogger hands what hashicorp/raft logs to slog.
func newRaftLogger(l *slog.Logger) hclog.Logger {
	il := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off, Output: io.Discard})
	il.RegisterSink(&slogSink{logger: l})
	return il
}

type slogSink struct {
	logger *slog.Logger
	said   sayings
}

// Accept implements hclog.SinkAdapter.
func (s *slogSink) Accept(name string, level hclog.Level, msg string, args ...any) {
	lvl := slogLevel(level)
	if msg == "skipping application of old log" {
		lvl = slog.LevelDebug // a warning at every start, and no more than a fact
	}
	ctx := context.Background()
	if !s.logger.Enabled(ctx, lvl) {
		return
	}
	if about, often := saidOften(msg, args); often {
		held, now := s.said.now(about)
		if !now {
			return
		}
		if held > 0 {
			args = append(args[:len(args):len(args)], heldKey, held)
		}
	}
	attrs := make([]any, len(args))
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if format, ok := f[0].(string); ok {
				a = fmt.Sprintf(format, f[1:]...)
			}
		}
		attrs[i] = a
	}
	s.logger.Log(ctx, lvl, strings.TrimSpace(name+": "+msg), attrs...)
}

// saidOften reports whether a message is one of those that Raft has at every
// attempt, several times a second for as long as a node is away, and what it is
// about.
func saidOften(msg string, args []any) (about string, often bool) {
	switch msg {
	case "failed to heartbeat to", "failed to appendEntries to", "failed to make requestVote RPC", "failed to start pipeline replication to",
		"entering candidate state", "pre-vote campaign failed, waiting for election timeout", "Election timeout reached, restarting election":
	default:
		return "", false
	}
	about = msg
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "target":
			about += fmt.Sprintf(" %v", args[i+1])
		case "error":
			if err, ok := args[i+1].(error); ok && errors.Is(err, ErrRefused) {
				about += " refused" // who was away a moment ago may refuse now
			}
		}
	}
	return about, true
}

const (
	// sayEvery is how often the same is said of the same.
	sayEvery = time.Minute
	// maxSayings is how many things are told apart: strangers name some of them.
	maxSayings = 256
	// heldKey says in a line how many like it there were since the last one.
	heldKey = "held_back"
)

// sayings keeps a log from saying the same again and again.
type sayings struct {
	mu   sync.Mutex
	said map[string]saying // guarded by mu
}

type saying struct {
	at   time.Time
	held int
}

// now reports whether to say something now, and how often it has not been said
// since it was the last time.
func (s *sayings) now(about string) (held int, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	last, known := s.said[about]
	if !known && len(s.said) >= maxSayings {
		maps.DeleteFunc(s.said, func(_ string, o saying) bool { return now.Sub(o.at) >= sayEvery })
		if len(s.said) >= maxSayings {
			about = "" // they share one
			last, known = s.said[about]
		}
	}
	if known && now.Sub(last.at) < sayEvery {
		last.held++
		s.said[about] = last
		return 0, false
	}
	if s.said == nil {
		s.said = make(map[string]saying)
	}
	s.said[about] = saying{at: now}
	return last.held, true
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	case hclog.Info:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}
