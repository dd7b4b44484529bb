package caveats

import (
	"math/big"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
	"pgregory.net/rapid"
)

func TestDecimalCompare(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"1", "1", 0}, {"1", "2", -1}, {"2", "1", 1}, {"10", "9", 1}, {"9", "10", -1},
		{"1e2", "100", 0}, {"1E+2", "100", 0}, {"1e-2", "0.01", 0}, {"100e-2", "1", 0}, {"1.0", "1", 0}, {"1.50", "1.5", 0},
		{"0.1", "0.10000000000000000000000000001", -1},
		{"99.99999999999999999999", "100", -1},
		{"9007199254740993", "9007199254740992", 1},
		{"-1", "1", -1}, {"-1", "-2", 1}, {"-10", "-9", -1}, {"-0", "0", 0}, {"0", "-0.0e5", 0}, {"0", "1", -1}, {"0", "-1", 1},
		{"0.05", "0.5", -1}, {"0.5", "0.05", 1}, {"0.0005", "5e-4", 0}, {"500e-7", "0.00005", 0},
		{"1e100000", "1e99999", 1}, {"-1e100000", "1e-100000", -1},
		{"120", "12", 1}, {"12", "120", -1}, {"1.2", "12e-1", 0}, {"1.23", "1.2", 1}, {"1.2", "1.23", -1},
		{"1e00000000000000000000001", "10", 0},
	} {
		a, ok1 := parseDecimal(c.a)
		b, ok2 := parseDecimal(c.b)
		if !ok1 || !ok2 {
			t.Errorf("%s, %s: not read", c.a, c.b)
			continue
		}
		if got := a.compare(b); got != c.want {
			t.Errorf("%s against %s: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestDecimalRefuses(t *testing.T) {
	for _, s := range []string{"", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1.e5", "0x10", "1_000", "1 ", " 1", "--1",
		"NaN", "Infinity", "1e100001", "1e-100001", "1e99999999999999999999", "0e100001", "1e1.5", "1,5", "１"} {
		if d, ok := parseDecimal(s); ok {
			t.Errorf("%q was read as %+v", s, d)
		}
	}
}

func genDecimal() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		s := rapid.SampledFrom([]string{"", "-"}).Draw(t, "sign")
		s += rapid.OneOf(rapid.Just("0"), rapid.StringMatching(`[1-9][0-9]{0,6}`), rapid.StringMatching(`[1-9]0{0,4}`)).Draw(t, "whole")
		s += rapid.OneOf(rapid.Just(""), rapid.StringMatching(`\.[0-9]{1,6}`), rapid.StringMatching(`\.0{0,5}[0-9]`)).Draw(t, "fraction")
		return s + rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[eE][+-]?[0-9]`), rapid.StringMatching(`[eE][+-]?0?[0-3][0-9]`)).Draw(t, "exponent")
	})
}

func TestDecimalAgainstBig(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := genDecimal().Draw(t, "x")
		y := genDecimal().Draw(t, "y")
		if rapid.Bool().Draw(t, "near") { // the same value in another spelling
			r, _ := new(big.Rat).SetString(x)
			y = r.FloatString(60)
		}
		a, ok1 := parseDecimal(x)
		b, ok2 := parseDecimal(y)
		if !ok1 || !ok2 {
			t.Fatalf("%s, %s: not read", x, y)
		}
		p, _ := new(big.Rat).SetString(x)
		q, _ := new(big.Rat).SetString(y)
		if got, want := a.compare(b), p.Cmp(q); got != want {
			t.Fatalf("%s against %s: %d, want %d", x, y, got, want)
		}
	})
}

func FuzzDecimal(f *testing.F) {
	for _, s := range []string{"0", "-0.0", "1e2", "100", "0.001", "12.50", "1E-7", "9007199254740993"} {
		f.Add(s, "1")
	}
	f.Fuzz(func(t *testing.T, x, y string) {
		a, ok1 := parseDecimal(x)
		b, ok2 := parseDecimal(y)
		// What is read is JSON's number; all of JSON's is read but for the exponent.
		isJSON := capability.NumberValue(x).Kind() == capability.KindNumber
		if ok1 && !isJSON || isJSON && !ok1 && !strings.ContainsAny(x, "eE") {
			t.Fatalf("%q: read %v, JSON %v", x, ok1, isJSON)
		}
		if !ok1 || !ok2 || len(x) > 50 || len(y) > 50 || a.exp > 500 || a.exp < -500 || b.exp > 500 || b.exp < -500 {
			return
		}
		p, okp := new(big.Rat).SetString(x)
		q, okq := new(big.Rat).SetString(y)
		if !okp || !okq || a.compare(b) != p.Cmp(q) || a.compare(b) != -b.compare(a) {
			t.Fatalf("%s against %s: %d", x, y, a.compare(b))
		}
	})
}
