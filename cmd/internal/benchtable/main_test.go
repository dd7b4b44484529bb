package main

import (
	"fmt"
	"strings"
	"testing"
)

// output is what go test -bench prints, with every measurement that the tables
// need: each is its place among the names, in ns, thrice.
func output() string {
	var b strings.Builder
	for pkg, names := range map[string][]string{
		"capability": {
			"Verify/bare", "Verify/writ", "Verify/writ-text", "Verify/macaroon.v2", "Verify/jwt-hs256", "Verify/jwt-eddsa",
			"Cached/bare", "Cached/same", "Cached/bare-more", "Cached/more", "Discharge/writ", "Discharge/macaroon.v2",
			"Caveats/8", "Caveats/64", "Refusal/good", "Refusal/forged", "Refusal/oversized",
			"Parallel/writ", "Parallel/writ-2", "Parallel/bare", "Parallel/bare-2",
		},
		"capability/revocation": {"LookupMiss/set", "LookupMiss/map"},
		"authority/replica":     {"Spend/goroutines=1-2", "Spend/goroutines=2-2"},
		"caveats":               {"RequestHash"},
		"capability/guard":      {"Handler/bare", "Handler/guarded"},
	} {
		fmt.Fprintf(&b, "goos: linux\npkg: github.com/writ-dev/writ/%s\n", pkg)
		for i, name := range names {
			for _, noise := range []int{-5, 100, 0} { // the median is what counts
				fmt.Fprintf(&b, "Benchmark%s \t 1000\t %d ns/op\t %d ns/caveat\t 0 B/op\t 7 allocs/op\n", name, 1000*(i+1)+noise, 10*(i+1))
			}
		}
		b.WriteString("PASS\n")
	}
	return b.String()
}

func TestTables(t *testing.T) {
	m, err := read(strings.NewReader(output()))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := m.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| the bare HMAC chain | 1.00 µs | 7 |",
		"| verify ÷ bare chain | 1.35 × | 2.00 × |",
		"| a caveat at 64 ÷ a caveat at 8 | 1.15 × | 1.08 × |",
		"| gain of a second core, bare chain ÷ Writ | 1.15 × | 1.01 × |", // (20/21) / (18/19)
		"| spend from a leased budget | 150 ns | 1000 ns |",
		"| what the guard adds to a net/http handler | 5 µs | 1 µs |",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
}

func TestAttestTable(t *testing.T) {
	m, err := read(strings.NewReader(`pkg: github.com/writ-dev/writ/capability/guard
BenchmarkProofs/DPoPEdDSA 	 6400	 55000 ns/op	 44000 signature-ns	 1.250 ×signature
pkg: github.com/writ-dev/writ/authority/wallet
BenchmarkAttest/discharge-2 	 400	 2000000 ns/op	 500.0 discharges/s
`))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := m.printPromises(&out, attestPromises); err == nil {
		t.Error("a table with holes is no error")
	}
	for _, want := range []string{
		"| a guarded call with DPoP, Ed25519 ÷ its signature check | 1.30 × | 1.25 × |",
		"| discharges of 16 enrolled devices, two cores, log and disk included |  | 500 /s |",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
}

func TestMissingMeasurementsAreErrors(t *testing.T) {
	m, err := read(strings.NewReader(strings.ReplaceAll(output(), "BenchmarkCached/same", "BenchmarkCached/other")))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := m.print(&out); err == nil || !strings.Contains(err.Error(), "Cached/same") {
		t.Errorf("got %v", err)
	}
	if _, err := read(strings.NewReader("BenchmarkX 1 nonsense ns/op 3 B/op")); err == nil {
		t.Error("nonsense was read")
	}
}
