package caveats

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/writ-dev/writ/capability"
	"pgregory.net/rapid"
)

func TestParseArguments(t *testing.T) {
	for _, c := range []struct {
		why, in   string
		canonical string // "" if refused
	}{
		{"empty object", `{}`, `{}`},
		{"blanks", " {\t\"a\" :\r\n1 , \"b\":[ 1 , 2 ] } ", `{"a":1,"b":[1,2]}`},
		{"sorted", `{"b":1,"a":2,"B2":3}`, `{"B2":3,"a":2,"b":1}`},
		{"sorted within", `{"x":{"b":1,"a":[{"d":1,"c":2}]}}`, `{"x":{"a":[{"c":2,"d":1}],"b":1}}`},
		{"types", `{"s":"x","n":-1.5e2,"t":true,"f":false,"z":null,"o":{},"a":[]}`, `{"a":[],"f":false,"n":-1.5e2,"o":{},"s":"x","t":true,"z":null}`},
		{"escapes become characters", `{"\u0061":"\u00e9\/\b\f\n\r\t\"\\"}`, `{"a":"é/\u0008\u000c\u000a\u000d\u0009\"\\"}`},
		{"surrogate pair", `{"a":"\ud83d\ude00"}`, `{"a":"😀"}`},
		{"line separators", "{\"a\":\"\u2028\u2029\u202a\"}", "{\"a\":\"\\u2028\\u2029\u202a\"}"},
		{"html is left alone", `{"a":"<>&"}`, `{"a":"<>&"}`},
		{"DEL", "{\"a\":\"\x7f\"}", "{\"a\":\"\x7f\"}"},
		{"replacement character itself", "{\"a\":\"\ufffd\"}", "{\"a\":\"\ufffd\"}"},
		{"empty name", `{"":1}`, `{"":1}`},
		{"same name in different objects", `{"a":{"a":1},"b":{"a":1}}`, `{"a":{"a":1},"b":{"a":1}}`},
		{"NFC and NFD are two names", "{\"caf\u00e9\":1,\"cafe\u0301\":2}", "{\"cafe\u0301\":2,\"caf\u00e9\":1}"},
		{"numbers as they were", `{"a":1.0,"b":1e2,"c":-0,"d":0.10}`, `{"a":1.0,"b":1e2,"c":-0,"d":0.10}`},
		{"largest safe integer", `{"a":9007199254740991,"b":-9007199254740991}`, `{"a":9007199254740991,"b":-9007199254740991}`},
		{"15 digits", `{"a":0.123456789012345,"b":123456789.012345e-7}`, `{"a":0.123456789012345,"b":123456789.012345e-7}`},

		{"nothing", ``, ""}, {"blank", ` `, ""}, {"array", `[]`, ""}, {"string", `"a"`, ""}, {"number", `1`, ""}, {"null", `null`, ""},
		{"byte order mark", "\ufeff{}", ""}, {"second document", `{}{}`, ""}, {"text behind", `{} x`, ""}, {"NUL behind", "{}\x00", ""},
		{"NUL before", "\x00{}", ""}, {"form feed", "{\f}", ""}, {"no-break space", "{\u00a0}", ""},
		{"comment", `{/*x*/"a":1}`, ""}, {"trailing comma", `{"a":1,}`, ""}, {"leading comma", `{,"a":1}`, ""}, {"lone comma", `{,}`, ""},
		{"two commas", `{"a":1,,"b":2}`, ""}, {"no comma", `{"a":1"b":2}`, ""}, {"trailing comma in array", `{"a":[1,]}`, ""}, {"lone comma in array", `{"a":[,]}`, ""},
		{"no colon", `{"a" 1}`, ""}, {"no value", `{"a":}`, ""}, {"no name", `{1:1}`, ""}, {"bare name", `{a:1}`, ""}, {"single quotes", `{'a':1}`, ""},
		{"open object", `{"a":1`, ""}, {"open array", `{"a":[1`, ""}, {"open string", `{"a":"x`, ""}, {"open name", `{"a`, ""}, {"open escape", `{"a":"\`, ""},
		{"mismatched", `{"a":[1}`, ""}, {"mismatched otherwise", `{"a":{1]}`, ""},
		{"twice", `{"a":1,"a":1}`, ""}, {"twice, apart", `{"a":1,"b":2,"a":3}`, ""}, {"case", `{"amount":1,"Amount":1000}`, ""},
		{"case by escape", `{"amount":1,"\u0041mount":2}`, ""}, {"same by escape", `{"a":1,"\u0061":2}`, ""},
		{"long s", "{\"s\":1,\"\u017f\":2}", ""}, {"Kelvin", "{\"k\":1,\"\u212a\":2}", ""}, {"case beyond ASCII", `{"é":1,"É":2}`, ""},
		{"three cases", "{\"\u01c4\":1,\"\u01c5\":2}", ""}, {"final sigma", "{\"\u03c3\":1,\"\u03c2\":2}", ""},
		{"twice within", `{"x":{"a":1,"a":2}}`, ""}, {"case within an array", `{"x":[{"a":1,"A":2}]}`, ""},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", ""}, {"invalid UTF-8 in a name", "{\"\xff\":1}", ""}, {"overlong", "{\"a\":\"\xc0\xaf\"}", ""}, {"encoded surrogate", "{\"a\":\"\xed\xa0\x80\"}", ""},
		{"lone high surrogate", `{"a":"\ud83d"}`, ""}, {"lone low surrogate", `{"a":"\ude00"}`, ""}, {"surrogates reversed", `{"a":"\ude00\ud83d"}`, ""},
		{"high twice", `{"a":"\ud83d\ud83d"}`, ""}, {"high and a letter", `{"a":"\ud83d\u0041"}`, ""}, {"lone surrogate in a name", `{"\ud83d":1}`, ""},
		{"bad escape", `{"a":"\x41"}`, ""}, {"short escape", `{"a":"\u41"}`, ""}, {"signed escape", `{"a":"\u+041"}`, ""}, {"line feed in a string", "{\"a\":\"x\ny\"}", ""}, {"NUL in a string", "{\"a\":\"\x00\"}", ""},
		{"capital true", `{"a":True}`, ""}, {"truex", `{"a":truex}`, ""}, {"NaN", `{"a":NaN}`, ""}, {"Infinity", `{"a":-Infinity}`, ""},
		{"plus", `{"a":+1}`, ""}, {"leading zero", `{"a":01}`, ""}, {"no digits after the point", `{"a":1.}`, ""}, {"no digits before it", `{"a":.5}`, ""}, {"hexadecimal", `{"a":0x10}`, ""},
		{"two numbers", `{"a":1-2}`, ""}, {"minus", `{"a":-}`, ""}, {"no exponent", `{"a":1e}`, ""},
		{"beyond 2^53", `{"a":9007199254740992}`, ""}, {"too precise", `{"a":99.99999999999999999999}`, ""}, {"16 digits", `{"a":0.1234567890123456}`, ""},
		{"too large", `{"a":1e301}`, ""}, {"too small", `{"a":1e-302}`, ""}, {"beyond reason", `{"a":1e999999999}`, ""},
	} {
		args, canonical, err := ParseArguments([]byte(c.in), Limits{})
		if string(canonical) != c.canonical || (err == nil) != (c.canonical != "") {
			t.Errorf("%s: %s became %s, %v; want %s", c.why, c.in, canonical, err, c.canonical)
		}
		if err != nil && (!errors.Is(err, ErrArguments) || args != nil) {
			t.Errorf("%s: %v %v", c.why, args, err)
		}
		if err == nil {
			checkCanonical(t, []byte(c.in), canonical, Limits{})
		}
	}
}

// checkCanonical holds what was read to encoding/json.
func checkCanonical(t interface{ Fatalf(string, ...any) }, in, canonical []byte, l Limits) {
	var a, b any
	for _, x := range []struct {
		data []byte
		to   *any
	}{{in, &a}, {canonical, &b}} {
		d := json.NewDecoder(bytes.NewReader(x.data))
		d.UseNumber()
		if err := d.Decode(x.to); err != nil {
			t.Fatalf("encoding/json refuses %q: %v", x.data, err)
		}
	}
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%q became %q, which says something else", in, canonical)
	}
	args, again, err := ParseArguments(canonical, l)
	if err != nil || !bytes.Equal(again, canonical) {
		t.Fatalf("%q is not canonical: %q, %v", canonical, again, err)
	}
	object := a.(map[string]any)
	if len(object) != len(args) || !sort.SliceIsSorted(args, func(i, j int) bool { return args[i].Name < args[j].Name }) {
		t.Fatalf("%q: %d arguments, %v", in, len(object), args)
	}
	for name, v := range object {
		got, ok := args.Get([]byte(name))
		want := capability.Value{}
		switch v := v.(type) {
		case string:
			want = capability.StringValue(v)
		case json.Number:
			want = capability.NumberValue(v.String())
		case bool:
			want = capability.BoolValue(v)
		}
		if !ok || got != want {
			t.Fatalf("%q: argument %q is %v, want %v", in, name, got, want)
		}
	}
}

func TestArgumentLimits(t *testing.T) {
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + "}" }
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"k%d":0`, i)
		}
		return "{" + strings.TrimPrefix(b.String(), ",") + "}"
	}
	list := func(n int) string { return `{"a":[0` + strings.Repeat(",0", n-2) + `]}` }
	text := func(n int) string { return `{"a":"` + strings.Repeat("x", n-8) + `"}` }
	for name, c := range map[string]struct {
		in     string
		limits Limits
		ok     bool
	}{
		"depth":              {deep(32), Limits{}, true},
		"depth + 1":          {deep(33), Limits{}, false},
		"objects + 1":        {strings.Repeat(`{"a":`, 33) + "1" + strings.Repeat("}", 33), Limits{}, false},
		"depth given":        {deep(3), Limits{MaxDepth: 2}, false},
		"members":            {many(1024), Limits{}, true},
		"members + 1":        {many(1025), Limits{}, false},
		"elements":           {list(1024), Limits{}, true},
		"elements + 1":       {list(1025), Limits{}, false},
		"members given":      {many(3), Limits{MaxMembers: 2}, false},
		"size":               {text(64 << 10), Limits{}, true},
		"size + 1":           {text(64<<10 + 1), Limits{}, false},
		"a megabyte of [":    {strings.Repeat("[", 1<<20), Limits{MaxSize: 2 << 20}, false},
		"a megabyte of {\"a": {strings.Repeat(`{"a":`, 1<<18), Limits{MaxSize: 2 << 20}, false},
		"exact":              {`{"a":99.99999999999999999999,"b":18446744073709551615,"c":1e400}`, Limits{ExactNumbers: true}, true},
		"exact, not endless": {`{"a":1e100001}`, Limits{ExactNumbers: true}, false},
	} {
		_, _, err := ParseArguments([]byte(c.in), c.limits)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrArguments) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The error never shows what was sent.
	if _, _, err := ParseArguments([]byte(`{"password":"hunter2","password":"hunter3"}`), Limits{}); err == nil || strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), "password") {
		t.Errorf("%v", err)
	}
}

// A number that is accepted for a handler with float64 compares there as the
// decimal does, with every limit that a caveat could have in the same range.
func TestFaithfulNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (decimal, float64, bool) {
			s := rapid.OneOf(genDecimal(), rapid.StringMatching(`-?[1-9][0-9]{12,17}`), rapid.StringMatching(`0\.[0-9]{12,17}`),
				rapid.StringMatching(`[1-9]\.[0-9]{13}[0-9]{0,2}e-?[12]?[0-9]{1,2}`)).Draw(t, name)
			args, _, err := ParseArguments([]byte(`{"a":`+s+`}`), Limits{})
			if err != nil {
				return decimal{}, 0, false
			}
			d, _ := parseDecimal(args[0].Value.Text())
			var f struct{ A float64 }
			if err := json.Unmarshal([]byte(`{"a":`+s+`}`), &f); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
			return d, f.A, true
		}
		a, x, ok1 := draw("a")
		b, y, ok2 := draw("b")
		if !ok1 || !ok2 {
			return
		}
		want := 0
		if x < y {
			want = -1
		} else if x > y {
			want = 1
		}
		if got := a.compare(b); got != want {
			t.Fatalf("%+v against %+v: exactly %d, as float64 %d", a, b, got, want)
		}
	})
}

func FuzzParseArguments(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"b":[1,{"c":null}],"a":"\ud83d\ude00"}`, `{"a":1,"A":2}`, `{"a":{"x":1e2,"y":-0.0}} `, "{\"\u2028\":\"\\u0000\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, l := range []Limits{{}, {ExactNumbers: true}} {
			_, canonical, err := ParseArguments(in, l)
			if err != nil {
				continue
			}
			if !utf8.Valid(canonical) || !json.Valid(in) {
				t.Fatalf("%q was read", in)
			}
			checkCanonical(t, in, canonical, l)
		}
	})
}

func BenchmarkParseArguments(b *testing.B) {
	in := []byte(`{"path":"reports/q3.txt","mode":"append","amount":99.5,"tags":["a","b"],"options":{"dry":false}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ParseArguments(in, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
