package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// report is everything that was measured.
type report struct {
	plain *measured // nil: not
	sizes []*measured
}

// at is a quantile.
func at(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// millis renders a duration in milliseconds.
func millis(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// micros renders one in microseconds.
func micros(d time.Duration) string {
	return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
}

func kib(bytes float64) string { return fmt.Sprintf("%.1f KiB", bytes/1024) }

// row is a line of a table.
func row(b *strings.Builder, what string, cells []string) {
	fmt.Fprintf(b, "| %s | %s |\n", what, strings.Join(cells, " | "))
}

// print writes the tables as docs/operations.md has them.
func (r *report) print(w io.Writer, s *simulation) error {
	var b strings.Builder
	r.printMeasured(&b, s)
	r.printReckoned(&b, s)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *report) printMeasured(b *strings.Builder, s *simulation) {
	of := func(f func(*measured) string) (cells []string) {
		for _, m := range r.sizes {
			cells = append(cells, f(m))
		}
		return cells
	}
	row(b, fmt.Sprintf("feeds at %d read replicas", s.replicas), of(func(m *measured) string { return fmt.Sprint(m.feeds) }))
	b.WriteString("|---" + strings.Repeat("|---", len(r.sizes)) + "|\n")
	row(b, "bound", of(func(m *measured) string { return m.bound.String() }))
	row(b, "memory of a feed: heap and stack", of(func(m *measured) string { return kib(m.heap) + ", " + kib(m.stack) }))
	row(b, "… resident", of(func(m *measured) string { return kib(m.resident) }))
	row(b, "a verifier, idle: bytes a second", of(func(m *measured) string { return fmt.Sprintf("%.0f", m.idleBytes) }))
	row(b, "… a revocation: bytes, by both feeds", of(func(m *measured) string { return fmt.Sprintf("%.0f", m.toldBytes) }))
	row(b, "processor of a replica to open a feed", of(func(m *measured) string { return micros(m.perOpen) }))
	row(b, "… for a ping", of(func(m *measured) string { return micros(m.perPing) }))
	row(b, "… for telling a verifier", of(func(m *measured) string { return micros(m.perTold) }))
	row(b, "processor of all voters, idle", of(func(m *measured) string { return fmt.Sprintf("%.1f %%", 100*m.voters) }))
	row(b, "acknowledged to half of the verifiers told", of(func(m *measured) string { return millis(at(m.half, 0.5)) }))
	row(b, "… to the last, median", of(func(m *measured) string { return millis(at(m.told, 0.5)) }))
	row(b, "… to the last, at the worst", of(func(m *measured) string { return millis(at(m.told, 1)) }))
	if p := r.plain; p != nil {
		fmt.Fprintf(b, "\nWithout TLS, %d feeds: %s of heap and %s of stack for a feed; %s of processor for a ping, %s for telling a verifier.\n",
			p.feeds, kib(p.heap), kib(p.stack), micros(p.perPing), micros(p.perTold))
	}
	last := r.sizes[len(r.sizes)-1]
	if t := last.storm; t != nil {
		fmt.Fprintf(b, "\nA replica with %d feeds was killed: all were live elsewhere after %.1f s; verifiers that were stale meanwhile: %d; "+
			"the oldest was %.1f s old, of a bound of %s; of %d whole replicas beside them %d were stale; "+
			"a revocation meanwhile reached the last verifier after %s.\n",
			t.feeds, t.back.Seconds(), t.stale, t.oldest.Seconds(), last.bound, t.guards, t.refused, millis(t.told))
	}
}

// The load that is reckoned with.
const (
	// halfBusy is how much of a replica's processors its feeds may take: another
	// replica's are to come to it when that one dies.
	halfBusy = 0.5
	// cores is what a replica has.
	cores = 4
	// onWire is what TCP and IP take of a line that is sent alone, and its
	// acknowledgement.
	onWire = 2 * 52
)

// printReckoned reckons with what the largest size took: the figures of a feed, which
// the table above shows to be the same at each size, times as many.
func (r *report) printReckoned(b *strings.Builder, s *simulation) {
	m := r.sizes[len(r.sizes)-1]
	each := []int{2048, 10_000, 20_000}
	bounds := []time.Duration{2 * time.Second, 5 * time.Second}
	feeds := 2 * s.verifiers
	fmt.Fprintf(b, "\n| %d verifiers, reckoned | feeds a replica | read replicas | its memory for feeds | its processor, idle | … with %d revocations a second | its bytes a second, idle | … with revocations | the last of its verifiers told after | another dies: processor to open its share |\n", s.verifiers, s.rate)
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|\n")
	for _, bound := range bounds {
		for _, n := range each {
			verifiers := float64(n) / 2
			pings := verifiers * pingsOf / bound.Seconds()
			idle := pings * m.perPing.Seconds()
			told := verifiers * m.perTold.Seconds() // of one core
			idleBytes := verifiers * (m.idleBytes*m.bound.Seconds()/bound.Seconds() + 2*onWire*pingsOf/bound.Seconds())
			busyBytes := idleBytes + verifiers*float64(s.rate)*(m.toldBytes+2*onWire)
			busy := idle + float64(s.rate)*told
			replicas := (feeds + n - 1) / n
			share := float64(n) / float64(max(1, replicas-1))
			fmt.Fprintf(b, "| bound %s | %d | %d | %.1f GiB | %.2f cores%s | %.2f cores%s | %.1f MB | %.1f MB | %s | %.1f s |\n",
				bound, n, replicas, float64(n)*m.resident/(1<<30), idle, tooMuch(idle), busy, tooMuch(busy),
				idleBytes/1e6, busyBytes/1e6, millis(time.Duration(told/cores*float64(time.Second))), share*m.perOpen.Seconds())
		}
	}
}

// tooMuch marks what a replica of so many cores could not do and take another's load.
func tooMuch(used float64) string {
	if used > halfBusy*cores {
		return " (too many)"
	}
	return ""
}
