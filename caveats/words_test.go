package caveats

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// readAll returns the words of s after the first, as the parser reads them.
func readAll(s string) (name string, args []string, ok bool) {
	n, w := split([]byte(s))
	if kindOf(n) == kindUnknown {
		return "", nil, false
	}
	for {
		x, more := w.next()
		if !more {
			return string(n), args, w.done()
		}
		args = append(args, string(x.value()))
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // words joined by |; "" if unreadable
	}{
		{"action", "action"},
		{"action read", "action|read"},
		{"action read list", "action|read|list"},
		{`action "read all"`, "action|read all"},
		{`action ""`, "action|"},
		{`action "a\"b\\c"`, `action|a"b\c`},
		{"action é", "action|é"},
		{"action 日本 ☕", "action|日本|☕"},
		{`action "read"`, "action|read"},
		{"", ""},
		{" ", ""},
		{" action", ""},
		{"action ", ""},
		{"action  read", ""},
		{"action read ", ""},
		{"action\tread", ""},
		{"action\nread", ""},
		{"action read\x00", ""},
		{"action read\x7f", ""},
		{"action \u0085", ""},       // C1 control
		{"action \x80", ""},         // not UTF-8
		{"action \xc0\xaf", ""},     // overlong slash
		{"action \xed\xa0\x80", ""}, // surrogate
		{"action \xf4\x90\x80\x80", ""},
		{`"action" read`, ""},
		{`action re"ad`, ""},
		{`action re\ad`, ""},
		{`action "read`, ""},
		{`action "read\"`, ""},
		{`action "re\nad"`, ""},
		{`action "read"x`, ""},
		{`action "read" `, ""},
		{`action "read"  x`, ""},
		{`action "read""x"`, ""},
		{"action \"a\nb\"", ""},
		{"action " + strings.Repeat("a", MaxCondition-len("action ")), "action|" + strings.Repeat("a", MaxCondition-len("action "))},
		{"action " + strings.Repeat("a", MaxCondition-len("action ")+1), ""},
	} {
		name, args, ok := readAll(c.in)
		got := ""
		if ok {
			got = strings.Join(append([]string{name}, args...), "|")
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestQuoteRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.RuneFrom([]rune(`ab "\/*é`)))).Draw(t, "s")
		q, err := Quote(s)
		clean := utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f })
		if (err == nil) != clean {
			t.Fatalf("Quote(%q): %v, clean %v", s, err, clean)
		}
		if err != nil {
			return
		}
		name, w := split([]byte("ext:x " + q))
		x, ok := w.one()
		if string(name) != "ext:x" || !ok || string(x.value()) != s {
			t.Fatalf("%q reads %q, want %q", q, x.value(), s)
		}
		// Comparing in place agrees with comparing what it reads.
		other := rapid.SampledFrom([]string{s, s + "a", strings.TrimSuffix(s, "a"), s + `"`, "", "a"}).Draw(t, "other")
		if x.is(other) != (s == other) || x.prefixes(other) != strings.HasPrefix(other, s) {
			t.Fatalf("%q against %q: is %v, prefixes %v", s, other, x.is(other), x.prefixes(other))
		}
	})
}

func FuzzWords(f *testing.F) {
	for _, u := range Vocabulary() {
		f.Add(u.Example)
	}
	f.Add(`ext:x "a\"b" c`)
	f.Fuzz(func(t *testing.T, s string) {
		name, args, ok := readAll(s)
		if !ok {
			return
		}
		// What reads has exactly one canonical spelling, which reads the same.
		again, err := join(name, args...)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		name2, args2, ok := readAll(again)
		if len(again) <= MaxCondition && (!ok || name2 != name || strings.Join(args2, "\x00") != strings.Join(args, "\x00")) {
			t.Fatalf("%q became %q, which reads %q %q", s, again, name2, args2)
		}
	})
}

// Every byte at every place of a word, so that none slips past the eight-byte steps.
func TestEveryByteEverywhere(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			for _, quoted := range []bool{false, true} {
				b := []byte("action aaaaaaaaaaaaaaaaaaaaaa b")
				if quoted {
					b = []byte(`action "aaaaaaaaaaaaaaaaaaaa" b`)
				}
				b[len(`action "`)+at] = byte(c)
				_, args, ok := readAll(string(b))
				want := c >= ' ' && c < 0x7f && c != '\\' && c != '"'
				if ok != want || ok && len(args) != 2 && (quoted || c != ' ') {
					t.Fatalf("%q: %v %q", b, ok, args)
				}
			}
		}
	}
}
