package capability_test

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

func TestTokenID(t *testing.T) {
	at := time.Date(2026, 11, 24, 8, 0, 0, 123e6, time.UTC)
	id := capability.NewTokenID(at.UnixMilli(), [10]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if !id.Time().Equal(at) || id.Millis() != at.UnixMilli() {
		t.Errorf("made at %v, says %v", at, id.Time())
	}
	// RFC 9562: version 7, variant 10.
	if s := id.String(); s[14] != '7' || s[19] != 'b' {
		t.Errorf("%s is no UUIDv7", s)
	}
}

// Every id has one spelling.
func TestIDSpelling(t *testing.T) {
	id, branch, device := testIdentifier().ID, capability.BranchID{0xab, 1}, capability.DeviceID{0xcd, 2}
	for _, c := range []struct {
		text string
		into encoding.TextUnmarshaler
		want fmt.Stringer
	}{
		{id.String(), new(capability.TokenID), id},
		{branch.String(), new(capability.BranchID), branch},
		{device.String(), new(capability.DeviceID), device},
	} {
		if err := c.into.UnmarshalText([]byte(c.text)); err != nil || c.into.(fmt.Stringer).String() != c.text {
			t.Errorf("%T does not read %q: %v", c.want, c.text, err)
		}
		for _, bad := range []string{"", strings.ToUpper(c.text), c.text + "0", c.text[1:], " " + c.text[1:], strings.ReplaceAll(c.text, "0", "g"),
			"{" + c.text + "}", strings.ReplaceAll(c.text, "-", "")} {
			if bad == c.text {
				continue
			}
			if err := c.into.UnmarshalText([]byte(bad)); !errors.Is(err, capability.ErrBadID) {
				t.Errorf("%T reads %q: %v", c.want, bad, err)
			}
		}
	}
}

func TestHolderKeySpelling(t *testing.T) {
	for _, m := range []capability.HolderMethod{capability.HolderDPoP, capability.HolderMTLS} {
		k := capability.HolderKey{Method: m, Thumbprint: [32]byte{0xfb, 0xff, 3}}
		back, err := capability.ParseHolderKey(k.String())
		if err != nil || back != k {
			t.Errorf("%s reads as %v: %v", k, back, err)
		}
		s := k.String()
		for _, bad := range []string{"", s[4:], "JKT:" + s[4:], s + "A", s[:len(s)-1], s + "=", s[:len(s)-1] + "B", s[:20] + "\n" + s[21:], s[:20] + "+" + s[21:]} {
			if _, err := capability.ParseHolderKey(bad); !errors.Is(err, capability.ErrBadID) {
				t.Errorf("%q is read: %v", bad, err)
			}
		}
	}
}

func TestCodes(t *testing.T) {
	r := &capability.Refusal{Code: capability.CodeActionDenied, Caveat: "action \x1b[31mread\n", Detail: "write"}
	if s := r.Error(); strings.ContainsAny(s, "\x1b\n") || !strings.Contains(s, "action_denied") || !strings.Contains(s, "write") {
		t.Errorf("an explanation that reaches the terminal: %q", s)
	}
	wrapped := fmt.Errorf("verifying: %w", r)
	if !errors.Is(wrapped, capability.CodeActionDenied) || errors.Is(wrapped, capability.CodeRevoked) {
		t.Error("a refusal is not its own code, or is another")
	}
	for _, c := range []struct {
		err  error
		want capability.Code
	}{
		{nil, ""}, {wrapped, capability.CodeActionDenied}, {capability.CodeExpired, capability.CodeExpired},
		{fmt.Errorf("x: %w", capability.CodeExpired), capability.CodeExpired}, {errors.New("no route"), capability.CodeUnavailable},
	} {
		if got := capability.CodeOf(c.err); got != c.want {
			t.Errorf("CodeOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestFields(t *testing.T) {
	f := capability.Fields{{Name: "a", Value: capability.StringValue("1")}, {Name: "b"}, {Name: "twice"}, {Name: "twice"}}
	if v, ok := f.Get([]byte("a")); !ok || v.Text() != "1" || v.Kind() != capability.KindString {
		t.Errorf("a is %v, %v", v, ok)
	}
	for _, name := range []string{"A", "c", "twice", ""} {
		if _, ok := f.Get([]byte(name)); ok {
			t.Errorf("%q is there", name)
		}
	}
}

// A number is what encoding/json takes for one.
func TestNumberValue(t *testing.T) {
	for _, s := range []string{"0", "-0", "1", "-1", "10", "1.5", "0.0", "1e5", "1E+5", "1e-5", "-1.25e10", "01", "-", "", "+1", ".5", "1.", "1e", "1e+",
		"0x1", "1_0", " 1", "1 ", "NaN", "Infinity", "--1", "1.2.3", "1e1e1", "00", "-01", "١"} {
		var n json.Number
		want := s != "" && json.Unmarshal([]byte(s), &n) == nil && strings.TrimSpace(s) == s
		if got := capability.NumberValue(s).Kind() == capability.KindNumber; got != want {
			t.Errorf("NumberValue(%q) is a number: %v, want %v", s, got, want)
		}
	}
}

func TestIdentifierBounds(t *testing.T) {
	for name, change := range map[string]func(*capability.Identifier){
		"no audience":      func(i *capability.Identifier) { i.Audience = "" },
		"a long audience":  func(i *capability.Identifier) { i.Audience = strings.Repeat("a", capability.MaxAudience+1) },
		"a blank":          func(i *capability.Identifier) { i.Subject = "a b" },
		"no subject":       func(i *capability.Identifier) { i.Subject = "" },
		"a long subject":   func(i *capability.Identifier) { i.Subject = strings.Repeat("a", capability.MaxSubject+1) },
		"before the epoch": func(i *capability.Identifier) { i.NotAfter = time.UnixMilli(0) },
		"in 10,000 years":  func(i *capability.Identifier) { i.NotAfter = time.UnixMilli(1 << 48) },
	} {
		id := testIdentifier()
		change(&id)
		if _, err := capability.Mint(testKey(), id); !errors.Is(err, capability.ErrBadIdentifier) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysPrintRedacted(t *testing.T) {
	root, disch := testKey(), discharger(t, 1)
	for _, v := range []any{root, *root, disch, *disch} {
		for _, f := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			if s := fmt.Sprintf(f, v); !strings.HasSuffix(s, "redacted)") {
				t.Errorf("%s of %T prints %q", f, v, s)
			}
		}
		if b, err := json.Marshal(v); err != nil || !strings.Contains(string(b), "redacted") {
			t.Errorf("%T in JSON is %s (%v)", v, b, err)
		}
	}
	if !root.Equal(testKey()) || root.Equal(capability.NewRootKey([32]byte{})) || !disch.Equal(discharger(t, 1)) || disch.Equal(discharger(t, 2)) {
		t.Error("keys compare wrongly")
	}
	seed := disch.Seed()
	again, err := capability.NewDischargerKey(seed)
	if err != nil || again.Public() != disch.Public() {
		t.Errorf("a key from its seed is another: %v", err)
	}
}
