// Command benchtable turns the output of go test -bench into the README's
// table: what each thing costs, and how that compares with what was promised.
// It prints what was measured, and fails only if a measurement is missing.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchtable:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	attested := len(args) == 2 && args[0] == "-attest"
	if len(args) != 1 && !attested {
		return errors.New("usage: benchtable [-attest] FILE")
	}
	f, err := os.Open(args[len(args)-1])
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := read(f)
	if err != nil {
		return err
	}
	if attested {
		return m.printPromises(w, attestPromises)
	}
	return m.print(w)
}

// measurements are the samples of each benchmark, by package, name and unit:
// "capability Verify/writ ns/op". A name ends in "@N" for N processors.
type measurements map[string][]float64

var (
	packageLine = regexp.MustCompile(`^pkg: github\.com/writ-dev/writ/(\S+)$`)
	processors  = regexp.MustCompile(`-(\d+)$`)
)

func read(r io.Reader) (measurements, error) {
	m, pkg := measurements{}, ""
	s := bufio.NewScanner(r)
	for s.Scan() {
		if p := packageLine.FindStringSubmatch(s.Text()); p != nil {
			pkg = p[1]
			continue
		}
		fields := strings.Fields(s.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := processors.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "@$1")
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", s.Text(), err)
			}
			key := pkg + " " + name + " " + fields[i+1]
			m[key] = append(m[key], v)
		}
	}
	return m, s.Err()
}

// of is the median of a measurement.
func (m measurements) of(key, unit string) (float64, error) {
	samples := slices.Sorted(slices.Values(m[key+" "+unit]))
	if len(samples) == 0 {
		return 0, fmt.Errorf("no measurement %q in %s", key, unit)
	}
	mid := len(samples) / 2
	if len(samples)%2 == 1 {
		return samples[mid], nil
	}
	return (samples[mid-1] + samples[mid]) / 2, nil
}

// costs are the rows of the first table.
var costs = []struct{ what, key string }{
	{"the bare HMAC chain", "capability Verify/bare"},
	{"**Writ**: decode, verify, clear 5 caveats, look up 1,000,000 revocations", "capability Verify/writ"},
	{"**Writ**, from the text form", "capability Verify/writ-text"},
	{"**Writ**, the same token again (prefix cache)", "capability Cached/same"},
	{"**Writ**, one caveat added since (prefix cache)", "capability Cached/more"},
	{"macaroon.v2, the same checks", "capability Verify/macaroon.v2"},
	{"JWT HS256, parse and verify only", "capability Verify/jwt-hs256"},
	{"JWT EdDSA, parse and verify only", "capability Verify/jwt-eddsa"},
}

// promise is a row of the second table: a combination of measurements and the
// most that it is to be.
type promise struct {
	what string
	most float64 // 0: nothing was promised
	unit string  // printed behind; "" is a ratio
	got  func(m measurements) (float64, error)
}

// ratio is one measurement over another.
func ratio(a, b string) func(measurements) (float64, error) { return ratioIn("ns/op", a, b) }

func ratioIn(unit, a, b string) func(measurements) (float64, error) {
	return func(m measurements) (float64, error) {
		x, err := m.of(a, unit)
		y, err2 := m.of(b, unit)
		return x / y, errors.Join(err, err2)
	}
}

// difference is what one measurement is more than another, divided by scale.
func difference(scale float64, a, b string) func(measurements) (float64, error) {
	return func(m measurements) (float64, error) {
		x, err := m.of(a, "ns/op")
		y, err2 := m.of(b, "ns/op")
		return (x - y) / scale, errors.Join(err, err2)
	}
}

// single is one measurement, divided by scale.
func single(scale float64, key string) func(measurements) (float64, error) {
	return func(m measurements) (float64, error) {
		x, err := m.of(key, "ns/op")
		return x / scale, err
	}
}

// scaling is how much less a gains from a second processor than b does.
func scaling(a, b string) func(measurements) (float64, error) {
	return func(m measurements) (float64, error) {
		gainA, err := ratio(a, a+"@2")(m)
		gainB, err2 := ratio(b, b+"@2")(m)
		return gainB / gainA, errors.Join(err, err2)
	}
}

var promises = []promise{
	{"verify ÷ bare chain", 1.35, "", ratio("capability Verify/writ", "capability Verify/bare")},
	{"verify from text ÷ bare chain", 1.6, "", ratio("capability Verify/writ-text", "capability Verify/bare")},
	{"verify ÷ macaroon.v2", 0.5, "", ratio("capability Verify/writ", "capability Verify/macaroon.v2")},
	{"the same token again ÷ bare chain", 0.4, "", ratio("capability Cached/same", "capability Cached/bare")},
	{"one caveat more ÷ bare chain", 0.4, "", ratio("capability Cached/more", "capability Cached/bare-more")},
	{"with one bound discharge ÷ macaroon.v2", 0.6, "", ratio("capability Discharge/writ", "capability Discharge/macaroon.v2")},
	{"a caveat at 64 ÷ a caveat at 8", 1.15, "", ratioIn("ns/caveat", "capability Caveats/64", "capability Caveats/8")},
	{"a forged token ÷ a good one", 1.1, "", ratio("capability Refusal/forged", "capability Refusal/good")},
	{"an oversized token ÷ a good one", 0.1, "", ratio("capability Refusal/oversized", "capability Refusal/good")},
	{"gain of a second core, bare chain ÷ Writ", 1.15, "", scaling("capability Parallel/writ", "capability Parallel/bare")},
	{"revocation look-up that misses, at 1,000,000 ÷ Go map", 0.4, "", ratio("capability/revocation LookupMiss/set", "capability/revocation LookupMiss/map")},
	{"spend from a leased budget", 150, "ns", single(1, "authority/replica Spend/goroutines=1@2")},
	{"two cores on one budget ÷ one", 1, "", ratio("authority/replica Spend/goroutines=2@2", "authority/replica Spend/goroutines=1@2")},
	{"a `request` caveat on an empty body", 1, "µs", single(1000, "caveats RequestHash")},
	{"what the guard adds to a net/http handler", 5, "µs", difference(1000, "capability/guard Handler/guarded", "capability/guard Handler/bare")},
}

// in is one measurement in a unit of its own, divided by scale.
func in(unit string, scale float64, key string) func(measurements) (float64, error) {
	return func(m measurements) (float64, error) {
		x, err := m.of(key, unit)
		return x / scale, err
	}
}

// attestPromises are about proof of possession and attestation.
var attestPromises = []promise{
	{"verify one piece of evidence, CPU", 1.5, "ms", in("cpu-µs/op", 1000, "caveats/attest/verifier Evidence/whole")},
	{"its three signature checks alone, CPU", 0, "ms", in("cpu-µs/op", 1000, "caveats/attest/verifier Evidence/floor")},
	{"challenges to an enrolled device, two cores", 0, "/s", in("challenges/s", 1, "authority/wallet Attest/challenge@2")},
	{"discharges of 16 enrolled devices, two cores, log and disk included", 0, "/s", in("discharges/s", 1, "authority/wallet Attest/discharge@2")},
	{"enrolment against swtpm, over HTTPS", 0, "ms", single(1e6, "authority/wallet Attest/enrolment@2")},
	{"renewal against swtpm, over HTTPS", 0, "ms", single(1e6, "authority/wallet Attest/renewal@2")},
	{"a guarded call with DPoP, Ed25519 ÷ its signature check", 1.3, "", in("×signature", 1, "capability/guard Proofs/DPoPEdDSA")},
	{"a guarded call with DPoP, P-256 ÷ its signature check", 1.3, "", in("×signature", 1, "capability/guard Proofs/DPoPES256")},
	{"a guarded call with DPoP by a session ÷ its signature check", 1.3, "", in("×signature", 1, "capability/guard Proofs/DPoPSession")},
	{"what a `request` caveat adds to a bearer token", 1, "µs", in("ns-over-bearer", 1000, "capability/guard Proofs/RequestCaveat")},
	{"what a `caveats.Binder` adds to one: a `request` and a `time-before` caveat", 0, "µs", in("ns-over-bearer", 1000, "capability/guard Proofs/Binder")},
	{"what a client certificate adds to a bearer token", 0, "µs", in("ns-over-bearer", 1000, "capability/guard Proofs/MutualTLS")},
}

func (m measurements) print(w io.Writer) error {
	return errors.Join(m.printCosts(w), m.printPromises(w, promises))
}

func (m measurements) printCosts(w io.Writer) error {
	var problems []error
	fmt.Fprintf(w, "| five caveats | time | allocations |\n|---|---|---|\n")
	for _, c := range costs {
		ns, err := m.of(c.key, "ns/op")
		allocs, err2 := m.of(c.key, "allocs/op")
		if err := errors.Join(err, err2); err != nil {
			problems = append(problems, err)
			continue
		}
		fmt.Fprintf(w, "| %s | %.2f µs | %.0f |\n", c.what, ns/1000, allocs)
	}
	fmt.Fprintln(w)
	return errors.Join(problems...)
}

func (m measurements) printPromises(w io.Writer, list []promise) error {
	var problems []error
	fmt.Fprintf(w, "| promise | at most | measured |\n|---|---|---|\n")
	for _, p := range list {
		got, err := p.got(m)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		most := ""
		if p.most != 0 {
			most = number(p.most, p.unit)
		}
		fmt.Fprintf(w, "| %s | %s | %s |\n", p.what, most, number(got, p.unit))
	}
	return errors.Join(problems...)
}

func number(v float64, unit string) string {
	if unit == "" {
		return strconv.FormatFloat(v, 'f', 2, 64) + " ×"
	}
	return strconv.FormatFloat(v, 'g', 4, 64) + " " + unit
}
