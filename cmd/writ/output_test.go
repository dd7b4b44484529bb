package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/writ-dev/writ/capability"
)

// Whatever a string holds, what is printed of it is printable, and a string
// that was printable is printed as it is.
func TestSafePrintsOnlyPrintable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		if rapid.Bool().Draw(t, "runes") {
			s = rapid.String().Draw(t, "string")
		}
		out := safe(s)
		for _, r := range out {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q came out as %q", s, out)
			}
		}
		if again := safe(out); again != out {
			t.Fatalf("%q came out as %q, and that as %q", s, out, again)
		}
	})
	for in, want := range map[string]string{
		"plain text":         "plain text",
		"Zürich 東京":          "Zürich 東京",
		"\x1b[31mred":        `\x1b[31mred`,
		"a\nb":               `a\nb`,
		"\u202egnp.exe":      `\u202egnp.exe`,
		"\u009b31m":          `\u009b31m`,
		"bad \xff utf-8":     `bad \xff utf-8`,
		"tab\there":          `tab\there`,
		"\u200bzero":         `\u200bzero`,
		"\U000e0001tag":      `\U000e0001tag`,
		"replacement \uFFFD": `replacement \ufffd`,
	} {
		if got := safe(in); got != want {
			t.Errorf("safe(%q) = %q, want %q", in, got, want)
		}
	}
}

// JSON comes out in ASCII and means the same.
func TestJSONIsASCII(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := map[string]string{"a": rapid.String().Draw(t, "string")}
		var buf bytes.Buffer
		if err := writeJSON(&buf, in); err != nil {
			t.Fatal(err)
		}
		for _, c := range buf.Bytes() {
			if c != '\n' && (c < ' ' || c > '~') {
				t.Fatalf("byte %#x in %q", c, buf.String())
			}
		}
		var out map[string]string
		if err := json.Unmarshal(buf.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		if want := strings.ToValidUTF8(in["a"], "\ufffd"); out["a"] != want {
			t.Fatalf("%q came back as %q", want, out["a"])
		}
	})
}

func TestTypedValues(t *testing.T) {
	for in, want := range map[string]capability.Value{
		"12": capability.NumberValue("12"), "-1.50": capability.NumberValue("-1.50"), "1e3": capability.NumberValue("1e3"),
		"true": capability.BoolValue(true), "false": capability.BoolValue(false),
		`"12"`: capability.StringValue("12"), "012": capability.StringValue("012"), "eu": capability.StringValue("eu"),
		"": capability.StringValue(""), `"open`: capability.StringValue(`"open`), "0x10": capability.StringValue("0x10"),
	} {
		if got := typed(in); got != want {
			t.Errorf("typed(%q) = %v %q", in, got.Kind(), got.Text())
		}
	}
}

func TestTokenArgumentsAreRefused(t *testing.T) {
	token := capability.TextPrefix + strings.Repeat("A", 60)
	for _, args := range [][]string{{"inspect", token}, {"verify", "--token-file=" + token}, {"mint", "--purpose", "x " + token}} {
		if err := refuseTokenArguments(args); err == nil {
			t.Errorf("%v was not refused", args)
		}
	}
	for _, args := range [][]string{{"inspect", "--token-file", "writ_backup/t"}, {"dev"}} {
		if err := refuseTokenArguments(args); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"/tmp/writ-dev-1/root.token": "/tmp/writ-dev-1/root.token", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$(x)": "'$(x)'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", in, got, want)
		}
	}
}
