package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == nodeRole {
		if err := nodeMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "fanout node:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestSimulation runs a small one: every verifier is told every revocation, one in
// the middle of the storm too, and all come back from it; what a feed takes is of the
// order that docs/operations.md reckons with.
func TestSimulation(t *testing.T) {
	const feeds, most = 150, 160 << 10 // bytes of a feed's memory
	s := &simulation{
		sizes: []int{feeds}, voters: 1, replicas: 3, bound: 4 * time.Second, watch: time.Second, rate: 10,
		verifiers: 100_000, dir: t.TempDir(), log: t.Output(),
	}
	m, err := s.measure(t.Context(), feeds, false, true)
	if err != nil {
		t.Fatal(err)
	}
	if each := m.heap + m.stack; each < 8<<10 || each > most {
		t.Errorf("a feed takes %.0f bytes of a node's heap and stack", each)
	}
	// Six pings and pongs of some 140 bytes in a bound.
	if m.idleBytes < 50 || m.idleBytes > 1000 {
		t.Errorf("an idle verifier takes %.0f bytes a second", m.idleBytes)
	}
	if m.toldBytes < 100 || m.toldBytes > 2000 {
		t.Errorf("a revocation takes %.0f bytes for a verifier", m.toldBytes)
	}
	if len(m.told) == 0 || m.perPing <= 0 || m.reads <= 0 || m.storm.feeds < feeds/6 || m.storm.guards != wholeOnes {
		t.Errorf("not everything was measured: %+v, %+v", m, m.storm)
	}
	var out strings.Builder
	if err := (&report{sizes: []*measured{m}, plain: m}).print(&out, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 150 |", "Without TLS, 150 feeds", "was killed", "| 100000 verifiers, reckoned |", "| bound 5s | 20000 | 10 |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, &out)
		}
	}
}

// TestReckoning: twice the feeds at a node are half the nodes, and at each of them
// twice the memory and the processor; a longer bound saves pings and nothing else.
func TestReckoning(t *testing.T) {
	m := &measured{
		feeds: 1000, bound: 2 * time.Second, resident: 1 << 16, idleBytes: 300, toldBytes: 300,
		perPing: 100 * time.Microsecond, perTold: 20 * time.Microsecond, perOpen: 1900 * time.Microsecond,
	}
	var out strings.Builder
	if err := (&report{sizes: []*measured{m}}).print(&out, &simulation{rate: 10, verifiers: 100_000}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		// 5,000 verifiers: 15,000 pings a second, and 50,000 to be told.
		"| bound 2s | 10000 | 20 | 0.6 GiB | 1.50 cores | 2.50 cores (too many) |",
		"| bound 2s | 20000 | 10 | 1.2 GiB | 3.00 cores (too many) | 5.00 cores (too many) |", "| 50 ms | 4.2 s |",
		"| bound 5s | 10000 | 20 | 0.6 GiB | 0.60 cores | 1.60 cores |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-feeds", "x"}, {"-feeds", "1"}, {"-voters", "0"}, {"-rate", "0"}, {"-watch", "0s"}, {"-none"}} {
		if err := run(t.Context(), args, t.Output(), t.Output()); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}
