package caveats

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"pgregory.net/rapid"
)

func TestVocabularyExamples(t *testing.T) {
	if got := len(Vocabulary()); got != int(kindExt) {
		t.Fatalf("%d conditions are documented of %d", got, kindExt)
	}
	for _, u := range Vocabulary() {
		name, _, _ := strings.Cut(u.Example, " ")
		kind, _ := read([]byte(u.Example))
		if usages[kind] != u || !strings.HasPrefix(u.Syntax, u.Condition) || u.Meaning == "" {
			t.Errorf("%s: its example %q is of another condition", u.Condition, name)
		}
		if u.Condition != "max-calls" {
			if err := ValidateDischarge(u.Example); err != nil {
				t.Error(err)
			}
		}
		err := Validate(u.Example)
		if onlyDischarge := u.Condition == "bound" || u.Condition == "declare"; (err != nil) != onlyDischarge {
			t.Errorf("%s: %v", u.Example, err)
		}
		if strings.Contains(Describe(u.Example), "every verifier refuses") {
			t.Errorf("%s: %s", u.Example, Describe(u.Example))
		}
	}
}

func TestValidateHints(t *testing.T) {
	for condition, hint := range map[string]string{
		"":                                       "empty",
		"time-bfore 2026-01-02T15:04:05Z":        "did you mean time-before?",
		"resources x":                            "did you mean resource?",
		"frobnicate x":                           "there are: time-before",
		"time-before tomorrow":                   "such as: time-before 2026-01-02T15:04:05Z",
		"action  read":                           "exactly one space",
		"action read ":                           "exactly one space",
		" action read":                           "exactly one space",
		"action read\n":                          "control character",
		"action \xff":                            "not valid UTF-8",
		`action re"ad`:                           "double quotes",
		`resource files\q3`:                      "double quotes",
		"resource /files/q3":                     "begins with a slash",
		"resource files/q3/":                     "for everything below, write /**",
		"resource files//q3":                     "empty segment",
		"resource files/**/q3":                   "** elsewhere",
		"resource files/q*":                      "only part of a segment",
		"resource ok files/../q3":                `"files/../q3" has a segment that nothing matches`,
		"client-ip 10.0.0.0/8 10.0.0.1/8":        `"10.0.0.1/8" is not an address or a CIDR without bits set`,
		"holder jkt:abc":                         `"jkt:abc" is not a key's thumbprint`,
		"argument amount is null":                "argument NAME is|in|prefix",
		"branch helper":                          "branch NONCE [LABEL]",
		"bound 000102030405060708090a0b0c0d0e0f": "discharges only",
		"declare a b":                            "discharges only",
		"ext:Region eu":                          "an extension's name",
		"action " + strings.Repeat("a", MaxCondition): "bytes are more than",
		"\x1b[31m":                "control character",
		"max-calls 1000000000001": "max-calls N",
	} {
		err := Validate(condition)
		if !errors.Is(err, ErrCondition) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %v; want a hint of %q", condition, err, hint)
			continue
		}
		if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) || len(err.Error()) > 700 {
			t.Errorf("%q: %q is not safe to print", condition, err)
		}
	}
	if err := ValidateDischarge("max-calls 5"); !errors.Is(err, ErrCondition) {
		t.Errorf("max-calls in a discharge: %v", err)
	}
}

// requests are as different as can be.
var requests = []*capability.Request{
	{},
	{Now: time.Unix(0, 0)},
	{
		Now: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC), Service: "billing", Action: "read", Resource: []string{"files", "q3"},
		Arguments: capability.Fields{{Name: "amount", Value: capability.NumberValue("100")}, {Name: "name", Value: capability.StringValue("x")}},
		Client:    netip.MustParseAddr("10.1.2.3"),
		Context:   capability.Fields{{Name: "environment", Value: capability.StringValue("staging")}, {Name: "ok", Value: capability.BoolValue(true)}},
	},
	{Now: time.Unix(math.MaxInt32, 0), Action: "write", Resource: []string{"..", ""}, Client: netip.MustParseAddr("::1")},
}

// unreadableFor reports whether the words cannot be read, for a request. It
// repeats what Check does.
func unreadableFor(condition []byte, req *capability.Request) bool {
	kind, w := read(condition)
	switch kind {
	case kindTimeBefore, kindTimeAfter, kindAction, kindResource, kindArgument, kindContext, kindService, kindClientIP:
		return judge(kind, &w, req) == unreadable
	}
	return kind == kindUnknown || !readable(kind, &w)
}

func checkReadability(t interface{ Fatalf(string, ...any) }, condition string) {
	err := ValidateDischarge(condition)
	if strings.HasPrefix(condition, "max-calls ") {
		err = Validate(condition)
	}
	for i, req := range requests {
		if unreadableFor([]byte(condition), req) != (err != nil) {
			t.Fatalf("request %d cannot read %q: %v; Validate says %v", i, condition, err == nil, err)
		}
	}
	if (err != nil) != strings.HasSuffix(Describe(condition), "every verifier refuses") {
		t.Fatalf("Describe(%q) = %q; Validate says %v", condition, Describe(condition), err)
	}
	for _, s := range []string{Describe(condition), fmt.Sprint(err)} {
		for _, r := range s {
			if r < ' ' || r >= 0x7f && r <= 0xa0 || r == '\u202e' || r == '\u2028' || r == '\ufeff' {
				t.Fatalf("%q is shown as %q", condition, s)
			}
		}
	}
}

// Whether a condition can be read never depends on the request, and Validate,
// Describe and Check agree on it.
func TestReadabilityIsOfTheConditionAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := rapid.SampledFrom(Vocabulary()).Draw(t, "usage")
		b := []byte(u.Example)
		for range rapid.IntRange(0, 3).Draw(t, "edits") {
			at := rapid.IntRange(0, len(b)).Draw(t, "at")
			insert := rapid.SampledFrom([]string{"", " ", `"`, `\`, "/", "*", "**", ".", "..", "0", "1", "a", "Z", "-", "\n", "\x80", "é", "read", "x is", " 5", "e9"}).Draw(t, "insert")
			cut := min(len(b), at+rapid.IntRange(0, 2).Draw(t, "cut"))
			b = append(append(append([]byte{}, b[:at]...), insert...), b[cut:]...)
		}
		checkReadability(t, string(b))
	})
}

func FuzzValidate(f *testing.F) {
	for _, u := range Vocabulary() {
		f.Add(u.Example)
	}
	for _, s := range []string{`argument note in a "b c" 5 true`, `resource "a b/*" **`, `action "\u202e"`, "action \u202e", "ext:x \u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkReadability(t, s) })
}

func TestDescribe(t *testing.T) {
	for condition, want := range map[string]string{
		"time-before 2026-01-02T15:04:05+01:00":  "only before 2026-01-02 14:04:05 UTC",
		"time-before 2026-01-02T15:04:05.50Z":    "only before 2026-01-02 15:04:05.5 UTC",
		"time-after 2026-01-02T15:04:05Z":        "only from 2026-01-02 15:04:05 UTC on",
		"action read":                            `only the action "read"`,
		"action read list write":                 `only the actions "read", "list" or "write"`,
		"resource files/q3":                      `only on "files/q3"`,
		"resource files/q3 files/reports/**":     `only on "files/q3" or everything below "files/reports"`,
		"resource files/*/meta":                  `only on "files/*/meta" (* is any one segment)`,
		"resource files/*/**":                    `only on everything below "files/*" (* is any one segment)`,
		"resource *":                             `only on "*" (* is any one segment)`,
		"resource **":                            "only on any resource",
		"argument amount <= 100.00":              `only if the argument "amount" is at most 100.00`,
		"argument amount >= 1":                   `only if the argument "amount" is at least 1`,
		"argument amount < 1":                    `only if the argument "amount" is less than 1`,
		"argument amount > 1":                    `only if the argument "amount" is more than 1`,
		"argument amount = 1e2":                  `only if the argument "amount" equals 1e2`,
		"argument amount is 5":                   `only if the argument "amount" is 5`,
		`argument amount is "5"`:                 `only if the argument "amount" is "5"`,
		"argument live is false":                 `only if the argument "live" is false`,
		"argument to in alice bob":               `only if the argument "to" is "alice" or "bob"`,
		`argument path prefix "reports 2026/"`:   `only if the argument "path" begins with "reports 2026/"`,
		"argument path prefix 5":                 `only if the argument "path" begins with "5"`,
		"context environment is staging":         `only where the service says that "environment" is "staging"`,
		"service billing":                        `only at the service "billing"`,
		"client-ip 10.0.0.0/8 2001:db8::1":       "only from 10.0.0.0/8 or 2001:db8::1",
		"max-calls 3":                            "at most 3 calls with this token and all that are derived from it here",
		"max-calls 1":                            "at most 1 call with this token and all that are derived from it here",
		"max-calls 0":                            "no calls at all with this token and all that are derived from it here",
		"max-rate 10/1m":                         "at most 10 calls each minute at any one verifier",
		"max-rate 1/90s":                         "at most 1 call each 90 seconds at any one verifier",
		"max-rate 5/24h":                         "at most 5 calls each 24 hours at any one verifier",
		"max-rate 5/120s":                        "at most 5 calls each 2 minutes at any one verifier",
		usages[kindHolder].Example:               "only with proof of the key jkt:0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
		usages[kindRequest].Example:              "only for the one request with the hash 47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU",
		"branch 000102030405060708090a0b":        "always true: a branch of its own",
		"branch 000102030405060708090a0b helper": `always true: a branch of its own, labeled "helper"`,
		"bound 000102030405060708090a0b0c0d0e0f": "in a discharge: only with a token that passes through branch 000102030405060708090a0b0c0d0e0f",
		"declare policy prod-7":                  `in a discharge: declares that "policy" is "prod-7"`,
		usages[kindDevice].Example:               "only while the device 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f is not revoked",
		"log full":                               "only at a service that logs the call, at level full at least",
		"ext:region":                             "only where the service's own condition region holds",
		"ext:region eu north":                    `only where the service's own condition region holds for "eu" "north"`,
		"action \u202egnp":                       `only the action "\u202egnp"`,
		"action café":                            `only the action "café"`,
		`action a "b c"`:                         `only the actions "a" or "b c"`,
		`argument note is "say \"hi\""`:          `only if the argument "note" is "say \"hi\""`,
		"frobnicate":                             `"frobnicate" cannot be read: every verifier refuses`,
		"action \x1b[31mred":                     `"action \x1b[31mred" cannot be read: every verifier refuses`,
		"resource files/q*":                      `"resource files/q*" cannot be read: every verifier refuses`,
	} {
		if got := Describe(condition); got != want {
			t.Errorf("%q:\n got %s\nwant %s", condition, got, want)
		}
	}
}

func TestBuilders(t *testing.T) {
	text := func(s string, err error) string {
		if err != nil {
			return "error: " + err.Error()
		}
		return s
	}
	when := time.Date(2026, 1, 2, 15, 4, 5, 500_000_000, time.FixedZone("", 3600))
	num, str := capability.NumberValue, capability.StringValue
	for got, want := range map[string]string{
		TimeBefore(when): "time-before 2026-01-02T14:04:05.5Z",
		TimeAfter(when):  "time-after 2026-01-02T14:04:05.5Z",
		TimeBefore(time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)):                                "time-before 9999-12-31T23:59:59.999999999Z",
		TimeAfter(time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)):                                    "time-after 0000-01-01T00:00:00Z",
		text(Action("read", "read all")):                                                        `action read "read all"`,
		text(Resource("files/q3", "files/my report/**")):                                        `resource files/q3 "files/my report/**"`,
		text(Service("billing")):                                                                "service billing",
		text(ClientIP("10.0.0.0/8")):                                                            "client-ip 10.0.0.0/8",
		text(Argument("amount", "<=", num("100.00"))):                                           "argument amount <= 100.00",
		text(Argument("id", "is", str("100"))):                                                  `argument id is "100"`,
		text(Argument("id", "in", str("a"), str("true"), num("5"), capability.BoolValue(true))): `argument id in a "true" 5 true`,
		text(Argument("id", "prefix", str("10"))):                                               "argument id prefix 10",
		text(Context("my key", "is", str("a b"))):                                               `context "my key" is "a b"`,
		text(MaxCalls(3)):                                                                       "max-calls 3",
		text(MaxRate(10, time.Minute)):                                                          "max-rate 10/1m",
		text(MaxRate(10, 90*time.Second)):                                                       "max-rate 10/90s",
		text(MaxRate(10, 24*time.Hour)):                                                         "max-rate 10/24h",
		text(Holder(capability.HolderKey{Method: capability.HolderMTLS})):                       "holder x5t:" + strings.Repeat("A", 43),
		Request([32]byte{}):                                                                     "request " + strings.Repeat("A", 43),
		Device(capability.DeviceID{1}):                                                          "device 01" + strings.Repeat("00", 31),
		text(Declare("policy", "a b")):                                                          `declare policy "a b"`,
		text(Log("metadata")):                                                                   "log metadata",
		text(Ext("region", "eu", "")):                                                           `ext:region eu ""`,
		text(Branch(zeros{}, "helper")):                                                         "branch " + strings.Repeat("00", 12) + " helper",
		text(Complete(zeros{}, "branch")):                                                       "branch " + strings.Repeat("00", 12),
		text(Complete(zeros{}, "branch helper")):                                                "branch " + strings.Repeat("00", 12) + " helper",
		text(Complete(zeros{}, "branch 000102030405060708090a0b helper")):                       "branch 000102030405060708090a0b helper",
		text(Complete(zeros{}, "action read")):                                                  "action read",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if err := ValidateDischarge(want); err != nil && !strings.HasPrefix(want, "max-calls") {
			t.Error(err)
		}
	}
	for name, err := range map[string]error{
		"no action":        second(Action()),
		"control":          second(Action("a\nb")),
		"not UTF-8":        second(Service("\xff")),
		"leading slash":    second(Resource("/files")),
		"zone":             second(ClientIP("fe80::1%eth0")),
		"no value":         second(Argument("a", "is")),
		"two values":       second(Argument("a", "is", str("a"), str("b"))),
		"text compared":    second(Argument("a", "<", str("5"))),
		"number as prefix": second(Argument("a", "prefix", num("5"))),
		"null":             second(Argument("a", "is", capability.Value{})),
		"unknown op":       second(Argument("a", "like", str("b"))),
		"op with words":    second(Argument("a", "is b", str("c"))),
		"no keys":          second(Holder()),
		"calls":            second(MaxCalls(MaxCount + 1)),
		"rate 0":           second(MaxRate(0, time.Second)),
		"no time":          second(MaxRate(1, 0)),
		"negative":         second(MaxRate(1, -time.Second)),
		"half seconds":     second(MaxRate(1, 1500*time.Millisecond)),
		"two days":         second(MaxRate(1, 48*time.Hour)),
		"label":            second(Branch(zeros{}, "a b")),
		"level":            second(Log("everything")),
		"extension":        second(Ext("Region")),
		"declare name":     second(Declare("", "x")),
		"completed":        second(Complete(zeros{}, "frobnicate")),
		"completed label":  second(Complete(zeros{}, "branch a b")),
	} {
		if !errors.Is(err, ErrCondition) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Branch(bytes.NewReader(nil), ""); err == nil {
		t.Error("a branch without randomness")
	}
	if c, _ := Branch(bytes.NewReader([]byte("abcdefghijkl")), ""); c != "branch "+hex.EncodeToString([]byte("abcdefghijkl")) {
		t.Error(c)
	}
}

func second(_ string, err error) error { return err }

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
