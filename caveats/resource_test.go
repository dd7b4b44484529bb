package caveats

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// resourceTable is what resource caveats mean. A resource is written as its
// segments, joined by "|" so that a segment may hold a slash.
var resourceTable = []struct {
	patterns string
	resource string
	want     verdict
	why      string
}{
	{"files/q3", "files|q3", held, "exact"},
	{"files/q3", "files", denied, "shorter"},
	{"files/q3", "files|q3|x", denied, "longer"},
	{"files/q3", "files|q4", denied, "another name"},
	{"files/q3", "files|q", denied, "a prefix of a segment"},
	{"files/q3", "files|q33", denied, "a segment with the prefix"},
	{"files", "files", held, "one segment"},
	{"files", "", denied, "no segments"},
	{"a b files/q3", "files|q3", held, "the last of several"},
	{"files/q3 a b", "files|q3", held, "the first of several"},
	{"a b", "files|q3", denied, "none of several"},

	{"files/*", "files|q3", held, "star is one segment"},
	{"files/*", "files", denied, "star is not none"},
	{"files/*", "files|q3|meta", denied, "star is not two"},
	{"files/*/meta", "files|q3|meta", held, "star in the middle"},
	{"files/*/meta", "files|meta", denied, "star in the middle is not none"},
	{"files/*/meta", "files|a|b|meta", denied, "star in the middle is not two"},
	{"*", "files", held, "star alone"},
	{"*", "files|q3", denied, "star alone is one segment"},
	{"*/*", "files|q3", held, "two stars apart"},
	{"files/*", "files|*", held, "a star in a resource is a character"},
	{"files/q*", "files|q3", unreadable, "a star within a segment"},
	{"files/*.txt", "files|a.txt", unreadable, "a star within a segment"},
	{"files/***", "files|a", unreadable, "three stars"},

	{"files/reports/**", "files|reports|q3", held, "below"},
	{"files/reports/**", "files|reports|2026|q3", held, "far below"},
	{"files/reports/**", "files|reports", denied, "not the folder itself"},
	{"files/reports/**", "files|reports2|q3", denied, "not its namesake"},
	{"files/reports/**", "files|secrets|q3", denied, "not its sibling"},
	{"files/reports files/reports/**", "files|reports", held, "the folder by name"},
	{"files/*/**", "files|a|b", held, "star and all below"},
	{"files/*/**", "files|a", denied, "star and all below, not itself"},
	{"**", "files", held, "anything"},
	{"**", "files|reports|q3", held, "anything, deep"},
	{"**", "", denied, "anything is something"},
	{"**/q3", "files|q3", unreadable, "** that is not last"},
	{"files/**/q3", "files|q3", unreadable, "** that is not last"},
	{"files/**/", "files|q3", unreadable, "** and an empty segment"},

	{"files/**", "files|..|secrets", denied, "dot-dot under **"},
	{"files/**", "files|.", denied, "dot under **"},
	{"files/*", "files|..", denied, "dot-dot under *"},
	{"files/*", "files|.", denied, "dot under *"},
	{"**", "..", denied, "dot-dot under ** alone"},
	{"**", "files|q3|..|..|etc", denied, "dot-dot far below"},
	{"files/*", "files|...", held, "three dots are a name"},
	{"files/*", "files|.git", held, "a dot file is a name"},
	{"files/*", "files|a..b", held, "dots within a name"},
	{"files/..", "files|..", unreadable, "dot-dot in a pattern"},
	{"files/./q3", "files|q3", unreadable, "dot in a pattern"},
	{"..", "..", unreadable, "dot-dot as a pattern"},

	{"files/*", "files|a/b", denied, "a decoded slash within a segment"},
	{"files/**", "files|a/../../etc", denied, "a path within a segment"},
	{"files/a/b", "files|a/b", denied, "a slash never joins segments"},
	{"files/*", "files|a%2fb", denied, "encoded slash left by a router"},
	{"files/*", "files|a%2Fb", denied, "encoded slash, upper case"},
	{"files/*", "files|a%252fb", denied, "encoded twice"},
	{"files/**", "files|%2e%2e|secrets", denied, "encoded dots left by a router"},
	{"files/**", "files|%2E%2E", denied, "encoded dots, upper case"},
	{"files/**", "files|.%2e", denied, "encoded half"},
	{"files/*", "files|100%", denied, "any percent sign"},
	{"files/a%2fb", "files|a%2fb", unreadable, "percent in a pattern"},
	{"files/*", `files|a\b`, denied, "backslash"},
	{"files/**", `files|..\..\etc`, denied, "backslashes as separators"},
	{`"files/a\\b"`, `files|a\b`, unreadable, "backslash in a pattern"},
	{"files/*", "files|a\x00b", denied, "NUL"},
	{"files/**", "files|q3\x00", denied, "NUL at the end"},
	{"files/*", "files|a\nb", denied, "line feed"},
	{"files/*", "files|a\x7f", denied, "delete"},
	{"files/*", "files|a\u0085b", denied, "C1 control"},

	{"files/*", "files|", denied, "an empty segment: trailing slash"},
	{"files/**", "files|", denied, "an empty segment under **"},
	{"files/**", "files||q3", denied, "a doubled slash"},
	{"files/**", "|files|q3", denied, "a leading slash"},
	{"**", "|", denied, "only empty segments"},
	{"/files/q3", "files|q3", unreadable, "leading slash in a pattern"},
	{"files/q3/", "files|q3", unreadable, "trailing slash in a pattern"},
	{"files//q3", "files|q3", unreadable, "doubled slash in a pattern"},
	{`""`, "", unreadable, "empty pattern"},
	{"/", "", unreadable, "slash as a pattern"},
	{"/**", "files", unreadable, "leading slash before **"},

	{"files/Q3", "files|q3", denied, "case"},
	{"Files/**", "files|q3", denied, "case above **"},
	{"files/caf\u00e9", "files|caf\u00e9", held, "NFC"},
	{"files/caf\u00e9", "files|cafe\u0301", denied, "NFD is another name"},
	{"files/cafe\u0301", "files|caf\u00e9", denied, "NFC is another name"},
	{"files/ss", "files|\u00df", denied, "no case folding"},
	{"files/k", "files|\u212a", denied, "no compatibility"},
	{"files/日本", "files|日本", held, "other scripts"},
	{"files/*", "files|日本", held, "other scripts under *"},
	{"files/*", "files|a\uff0fb", denied, "full-width slash"},
	{"files/*", "files|a\uff3cb", denied, "full-width backslash"},
	{"files/**", "files|\uff0e\uff0e", denied, "full-width dots"},
	{"files/**", "files|.\u2024", denied, "one-dot leader"},
	{"files/**", "files|\u2025", denied, "two-dot leader"},
	{"files/*", "files|\uff052f", denied, "full-width percent"},
	{"files/*", "files|\u2105", denied, "c/o in one character"},
	{"files/a\uff0fb", "files|a\uff0fb", unreadable, "full-width slash in a pattern"},
	{"files/*", "files|a\xc0\xafb", denied, "overlong slash"},
	{"files/*", "files|\xc0\xae\xc0\xae", denied, "overlong dots"},
	{"files/*", "files|\xff", denied, "not UTF-8"},
	{"files/*", "files|\xed\xa0\x80", denied, "surrogate"},
	{"files/*", "files|caf\xe9", denied, "Latin-1"},
	{"files/a\xc0\xafb", "files|a\xc0\xafb", unreadable, "overlong slash in a pattern"},

	{`"files/my report"`, "files|my report", held, "a quoted pattern"},
	{`"files/say \"hi\""`, `files|say "hi"`, held, "an escaped quote"},
	{`"files/*/\"a\""`, `files|x|"a"`, held, "an escaped quote behind a star"},
	{`"files/**"`, "files|q3", held, "quotes do not change a star"},
	{"files/q3 /bad", "files|q3", unreadable, "one bad pattern spoils all"},
	{"files/q3  files/q4", "files|q3", unreadable, "two blanks"},
	{"files/q3 ", "files|q3", unreadable, "a trailing blank"},
	{"", "files|q3", unreadable, "no pattern"},
}

func segmentsOf(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "|")
}

func TestResourceTable(t *testing.T) {
	for _, c := range resourceTable {
		condition := "resource " + c.patterns
		if c.patterns == "" {
			condition = "resource"
		}
		_, w := split([]byte(condition))
		if got := checkResource(&w, segmentsOf(c.resource)); got != c.want {
			t.Errorf("%s: %q against %q: %v, want %v", c.why, c.patterns, c.resource, got, c.want)
		}
		// The same for an action that only differs in the request proves nothing
		// about the pattern: unreadable must not depend on the resource.
		_, w = split([]byte(condition))
		if got := checkResource(&w, nil); (got == unreadable) != (c.want == unreadable) {
			t.Errorf("%s: %q without a resource: %v", c.why, c.patterns, got)
		}
	}
}

// The oracle is what a regular expression makes of the pattern, on segments
// that are known to be good.
func TestResourceAgainstRegexp(t *testing.T) {
	segment := rapid.SampledFrom([]string{"a", "b", "ab", "A", "é", "a b", "..", "", "."})
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab", "A", "é", "*"}), 0, 4).Draw(t, "pattern")
		if len(pattern) == 0 || rapid.Bool().Draw(t, "below") {
			pattern = append(pattern, "**")
		}
		resource := rapid.SliceOfN(segment, 0, 5).Draw(t, "resource")

		re, good := "^", true
		for _, p := range pattern {
			switch p {
			case "*":
				re += "/[^/]+"
			case "**":
				re += "(/[^/]+)+"
			default:
				re += "/" + regexp.QuoteMeta(p)
			}
		}
		for _, s := range resource {
			good = good && s != "" && s != "." && s != ".."
		}
		want := good && regexp.MustCompile(re+"$").MatchString("/"+strings.Join(resource, "/"))

		condition, err := Resource(strings.Join(pattern, "/"))
		if err != nil {
			t.Fatal(err)
		}
		_, w := split([]byte(condition))
		if got := checkResource(&w, resource); got != verdictOf(want) {
			t.Fatalf("%s against %q: %v, want %v", condition, resource, got, want)
		}
	})
}

// Nothing that a normalizing reader would take for a separator, an escape or a
// dot segment is a segment. Unicode's own tables say what that is.
func TestSegmentsSurviveNormalization(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		for _, s := range []string{string(r), "." + string(r), string(r) + "."} {
			n := norm.NFKC.String(s)
			bad := strings.ContainsAny(n, `/\%`) || n == "." || n == ".." || unicode.IsControl(r)
			if bad && validSegment(s) {
				t.Errorf("%U: %q becomes %q", r, s, n)
			}
		}
		if s := "a" + string(r) + "a"; !validSegment(s) && !unicode.IsControl(r) && !strings.ContainsAny(norm.NFKC.String(s), `/\%`) {
			t.Errorf("%U is refused within a name without a reason", r)
		}
	}
}

func TestSplitResource(t *testing.T) {
	for path, want := range map[string]string{
		"files":           "files",
		"files/q3":        "files|q3",
		"files/my report": "files|my report",
		"files/*":         "files|*",
		"":                "",
		"/":               "",
		"/files":          "",
		"files/":          "",
		"files//q3":       "",
		"files/../q3":     "",
		"files/./q3":      "",
		"files/a%20b":     "",
		`files\q3`:        "",
		"files/q3\x00":    "",
		"files/\xff":      "",
		"files/a\uff0fb":  "",
		strings.Repeat("a/", MaxSegments-1) + "a": strings.Repeat("a|", MaxSegments-1) + "a",
		strings.Repeat("a/", MaxSegments) + "a":   "",
		strings.Repeat("a", MaxResource):          strings.Repeat("a", MaxResource),
		strings.Repeat("a", MaxResource+1):        "",
	} {
		got, err := SplitResource(path)
		if strings.Join(got, "|") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v, want %q", path, got, err, want)
		}
	}
}

func TestSplitURLPath(t *testing.T) {
	for path, want := range map[string]string{
		"/files/q3":          "files|q3",
		"/files/my%20report": "files|my report",
		"/files/caf%C3%A9":   "files|café",
		"/files/caf%c3%a9":   "files|café",
		"/files/a+b":         "files|a+b",
		"/files/a;v=1":       "files|a;v=1",
		"/files/a:b@c":       "files|a:b@c",
		"/files/%22q%22":     `files|"q"`,
		"files/q3":           "",
		"":                   "",
		"/":                  "",
		"//":                 "",
		"/files/":            "",
		"//files":            "",
		"/files//q3":         "",
		"/files/../q3":       "",
		"/files/..":          "",
		"/files/%2e%2e/q3":   "",
		"/files/%2E":         "",
		"/files/a%2fb":       "", // a slash, decoded, separates nothing and is in no segment
		"/files/a%2Fb":       "",
		"/files/a%252fb":     "", // decoded twice downstream, it would
		"/files/a%5cb":       "",
		"/files/100%25":      "",
		"/files/%66":         "", // f: no client encodes it
		"/files/%7e":         "",
		"/files/q3%00":       "",
		"/files/a%0ab":       "",
		"/files/%ff":         "",
		"/files/%c0%af":      "",
		"/files/%EF%BC%8F":   "",
		"/files/a%2":         "",
		"/files/a%":          "",
		"/files/a%zz":        "",
		"/files/a%u002f":     "",
		"/files/a b":         "",
		"/files/café":        "", // raw bytes are not a URL's
		"/files/q3?x=1":      "",
		"/files/q3#x":        "",
		`/files\q3`:          "",
		"https://host/files": "",
	} {
		got, err := SplitURLPath(path)
		if strings.Join(got, "|") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v, want %q", path, got, err, want)
		}
	}
}

// What is accepted is what net/url and the router of net/http make of it.
func FuzzSplitURLPath(f *testing.F) {
	for _, s := range []string{"/files/q3", "/files/my%20report", "/files/%2e%2e", "/a%2fb", "//a", "/a/../b", "/caf%C3%A9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := SplitURLPath(s)
		if err != nil {
			return
		}
		u, err := url.ParseRequestURI(s)
		if err != nil {
			t.Fatalf("%q: net/url refuses: %v", s, err)
		}
		if u.Path != "/"+strings.Join(got, "/") || u.RawQuery != "" {
			t.Fatalf("%q: %q, net/url has %q", s, got, u.Path)
		}
		var routed []string
		mux := http.NewServeMux()
		mux.HandleFunc("/{path...}", func(_ http.ResponseWriter, r *http.Request) { routed = strings.Split(r.PathValue("path"), "/") })
		mux.ServeHTTP(nil, &http.Request{Method: "GET", URL: u, Host: "h", RequestURI: s})
		if !slices.Equal(routed, got) {
			t.Fatalf("%q: %q, the router has %q", s, got, routed)
		}
		again, err := SplitResource(strings.Join(got, "/"))
		if err != nil || !slices.Equal(again, got) {
			t.Fatalf("%q: %q, as a resource %q %v", s, got, again, err)
		}
	})
}

func FuzzResource(f *testing.F) {
	for _, c := range resourceTable {
		f.Add(c.patterns, strings.ReplaceAll(c.resource, "|", "\x1f"))
	}
	f.Fuzz(func(t *testing.T, patterns, resource string) {
		segments := strings.Split(resource, "\x1f")
		condition := []byte("resource " + patterns)
		_, w := split(condition)
		got := checkResource(&w, segments)
		if got == held {
			for _, s := range segments {
				if s == "" || s == "." || s == ".." || strings.ContainsAny(s, `/\%`) || !utf8.ValidString(s) {
					t.Fatalf("%q matched %q", patterns, segments)
				}
			}
		}
		_, w = split(condition)
		if (checkResource(&w, nil) == unreadable) != (got == unreadable) {
			t.Fatalf("whether %q can be read depends on the resource", patterns)
		}
	})
}
