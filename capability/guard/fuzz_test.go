package guard

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// FuzzAuthorization: whatever the headers hold, what comes out is one text with
// the prefix of tokens, verbatim from the one header, or nothing.
func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"Bearer writ_AAAA", "bearer writ_", "Bearer", "Bearer  writ_AA ", "DPoP writ_AA", "Basic writ_AA", "Bearer writ_A writ_B", "", "Bearer\twrit_A"} {
		f.Add(s, "writ_AA writ_BB")
	}
	f.Fuzz(func(t *testing.T, authorization, discharges string) {
		token, err := ParseBearer(authorization)
		if err == nil && token != "" {
			scheme, rest, ok := strings.Cut(authorization, " ")
			if !ok || !strings.EqualFold(scheme, "bearer") || strings.Trim(rest, " ") != token || !strings.HasPrefix(token, capability.TextPrefix) {
				t.Errorf("%q gave %q", authorization, token)
			}
		}
		texts, err := ParseDischarges([]string{discharges})
		if err == nil && strings.Join(texts, " ") != discharges {
			t.Errorf("%q gave %q", discharges, texts)
		}
		if len(texts) > capability.MaxDischarges {
			t.Errorf("%d discharges", len(texts))
		}
	})
}

// FuzzTarget: for whatever request the server's own parser accepts, a path
// that the router lets through decodes to exactly the segments that it was
// split into, so that a handler cannot read another path from it.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/", "/files/q3", "/a%2Fb", "/a/../b", "//a", "/a/", "/%e2%82%ac", "/a?b=c", "/a;b/c", "http://h/a", "*", "/a%00", `/a\b`, "/%c0%af", "/a#b", "/．．/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n") {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: h\r\n\r\n")))
		if err != nil || checkTarget(r) != nil {
			return
		}
		if r.URL.Path == "/" {
			return
		}
		segments, err := caveats.SplitURLPath(strings.TrimSuffix(r.URL.EscapedPath(), "/"))
		if err != nil {
			t.Fatalf("%q passed, and does not split: %v", target, err)
		}
		if got := "/" + strings.Join(segments, "/"); got != strings.TrimSuffix(r.URL.Path, "/") {
			t.Errorf("%q: judged %q, the handler sees %q", target, got, r.URL.Path)
		}
		if again, err := url.PathUnescape(r.URL.Path); err != nil || again != r.URL.Path {
			t.Errorf("%q: decodes once more, to %q", target, again)
		}
	})
}

// FuzzQuery: what is judged is what url.Values.Get and a reader of the last
// value would both see.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"a=1&b=2", "a=1&a=2", "a=1;b=2", "a", "=", "a=%zz", "a+b=c+d", "A=1&a=2", "&", "a=1&%61=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got := make(map[string]string)
		if queryPairs(query, func(name, value string) error { got[name] = value; return nil }) != nil {
			return
		}
		want, err := url.ParseQuery(query)
		if err != nil {
			t.Fatalf("%q passed: %v", query, err)
		}
		if len(want) != len(got) {
			t.Errorf("%q: %v, net/url reads %v", query, got, want)
		}
		for name, values := range want {
			if len(values) != 1 || got[name] != values[0] {
				t.Errorf("%q: %s is %q, net/url reads %q", query, name, got[name], values)
			}
		}
	})
}

// FuzzForwarded: an address is believed only if a trusted proxy wrote it.
func FuzzForwarded(f *testing.F) {
	f.Add("10.0.0.1:1", "198.51.100.7, 10.0.0.2")
	f.Add("192.0.2.1:1", "198.51.100.7")
	f.Add("10.0.0.1:1", ", ,")
	f.Add("[::1%lo]:1", "::ffff:10.0.0.1")
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, remote, forwarded string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = remote
		r.Header["X-Forwarded-For"] = []string{forwarded}
		got := clientAddr(r, proxies)
		if direct := parseAddr(remote); !within(direct, proxies) && got != direct {
			t.Errorf("%s from no proxy of ours made it %s", remote, got)
		}
		if got.Is4In6() {
			t.Errorf("%s is mapped", got)
		}
	})
}
