package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// line is one measurement beside what was promised.
type line struct {
	what, target, figure string
	missed               bool
	exact                bool // a miss fails the run
}

// table is all of them, in the order in which they were measured.
type table struct{ lines []line }

// report adds a figure for which nothing was promised.
func (t *table) report(what, figure string, args ...any) {
	t.lines = append(t.lines, line{what: what, target: "reported", figure: fmt.Sprintf(figure, args...)})
}

// judge adds a figure that was to be at most, or at least, something.
func (t *table) judge(what, target string, ok bool, figure string, args ...any) {
	t.lines = append(t.lines, line{what: what, target: target, figure: fmt.Sprintf(figure, args...), missed: !ok})
}

// demand is judge for what must hold exactly.
func (t *table) demand(what, target string, ok bool, figure string, args ...any) {
	t.judge(what, target, ok, figure, args...)
	t.lines[len(t.lines)-1].exact = true
}

func (l *line) result() string {
	switch {
	case l.target == "reported":
		return ""
	case l.missed:
		return "**missed**"
	}
	return "kept"
}

// print writes the table as the README has it.
func (t *table) print(w io.Writer) error {
	var b strings.Builder
	b.WriteString("\n| cluster of three nodes, one machine | promised | measured | |\n|---|---|---|---|\n")
	for _, l := range t.lines {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.what, l.target, l.figure, l.result())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// verdict is an error if something that must be exact was not.
func (t *table) verdict() error {
	var errs []error
	for _, l := range t.lines {
		if l.exact && l.missed {
			errs = append(errs, fmt.Errorf("%s: %s, not %s", l.what, l.figure, l.target))
		}
	}
	return errors.Join(errs...)
}

// samples are durations of one kind.
type samples []time.Duration

// at is a quantile, 0.5 the median; the samples get sorted.
func (s samples) at(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// millis renders a duration in milliseconds, with three digits that matter.
func micros(d time.Duration) string {
	return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
}

func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// mebibytes renders a size.
func mebibytes(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
