package pop_test

import (
	"testing"

	"github.com/writ-dev/writ/caveats/pop"
)

// The rules by which htu and a call are compared: RFC 9449 section 4.3 with the
// normalization of RFC 3986 sections 6.2.2 and 6.2.3, but for dot segments,
// which are refused.
func TestURIs(t *testing.T) {
	ed, _ := handmade(t)
	k := asKey(t, ed)
	for _, c := range []struct {
		htu, scheme, authority, path string
		same                         bool
	}{
		{"https://a.example/x", "https", "a.example", "/x", true},
		{"https://a.example/x?y=z", "https", "a.example", "/x", true},
		{"https://a.example/x#y", "https", "a.example", "/x", true},
		{"https://a.example/x?y#z?", "https", "a.example", "/x", true},
		{"HTTPS://A.Example/x", "https", "a.example", "/x", true},
		{"https://a.example/X", "https", "a.example", "/x", false},
		{"https://a.example:443/x", "https", "a.example", "/x", true},
		{"https://a.example/x", "https", "a.example:443", "/x", true},
		{"https://a.example:/x", "https", "a.example", "/x", true},
		{"http://a.example:80/x", "http", "a.example", "/x", true},
		{"https://a.example:80/x", "https", "a.example", "/x", false},
		{"http://a.example:443/x", "http", "a.example", "/x", false},
		{"https://a.example:8443/x", "https", "a.example:8443", "/x", true},
		{"https://a.example:8443/x", "https", "a.example", "/x", false},
		{"https://a.example:0443/x", "https", "a.example", "/x", false},
		{"http://a.example/x", "https", "a.example", "/x", false},
		{"https://b.example/x", "https", "a.example", "/x", false},
		{"https://a.example./x", "https", "a.example", "/x", false},
		{"https://[::1]:8443/x", "https", "[::1]:8443", "/x", true},
		{"https://[2001:DB8::1]/x", "https", "[2001:db8::1]", "/x", true},
		{"https://[2001:db8:0::1]/x", "https", "[2001:db8::1]", "/x", false},

		{"https://a.example", "https", "a.example", "/", true},
		{"https://a.example/", "https", "a.example", "", true},
		{"https://a.example?x", "https", "a.example", "/", true},
		{"https://a.example/x/", "https", "a.example", "/x", false},
		{"https://a.example//x", "https", "a.example", "/x", false},
		{"https://a.example/%7ex", "https", "a.example", "/~x", true},
		{"https://a.example/~x", "https", "a.example", "/%7Ex", true},
		{"https://a.example/%e2%82%ac", "https", "a.example", "/%E2%82%AC", true},
		{"https://a.example/%20", "https", "a.example", "/%20", true},
		{"https://a.example/a%2Fb", "https", "a.example", "/a/b", false},
		{"https://a.example/a%2fb", "https", "a.example", "/a%2Fb", true},
		{"https://a.example/%2525", "https", "a.example", "/%25", false},
		{"https://a.example/%41", "https", "a.example", "/A", true},
		{"https://a.example/%zz", "https", "a.example", "/%ZZ", false},
		{"https://a.example/%4", "https", "a.example", "/%4", true}, // the guard refuses such a target itself
		{"https://a.example/x%", "https", "a.example", "/x", false},
		{"https://a.example/x;v=1", "https", "a.example", "/x;v=1", true},
		{"https://a.example/a+b", "https", "a.example", "/a%2Bb", false},

		{"https://a.example/./x", "https", "a.example", "/./x", false},
		{"https://a.example/y/../x", "https", "a.example", "/x", false},
		{"https://a.example/%2e%2E/x", "https", "a.example", "/%2e%2E/x", false},
		{"https://a.example/x", "https", "a.example", "/y/../x", false},
		{"https://a.example/...", "https", "a.example", "/...", true},
		{"https://a.example/.well-known/x", "https", "a.example", "/.well-known/x", true},
		{"https://u:p@a.example/x", "https", "a.example", "/x", false},
		{"https://a.example%2e/x", "https", "a.example.", "/x", false},
		{"https:a.example/x", "https", "a.example", "/x", false},
		{"/x", "https", "a.example", "/x", false},
		{"", "https", "a.example", "/x", false},
		{"https:///x", "https", "", "/x", false},
		{"https://a.example\\x", "https", "a.example\\x", "", false},
		{"https://a.example/é", "https", "a.example", "/é", false},
		{"https://a.example/ x", "https", "a.example", "/ x", false},
	} {
		v, _ := verifier(t, pop.Config{UnsafeTrustHost: true})
		proof := jws(t, signer(ed), `{"typ":"dpop+jwt","alg":"EdDSA","jwk":`+k.JWK()+`}`, claims(t, `{"htu":`+quote(t, c.htu)+`}`))
		e := evidence(proof)
		e.Scheme, e.Authority, e.Path = c.scheme, c.authority, c.path
		if err := ask(v, e, k.HolderKey()); (err == nil) != c.same {
			t.Errorf("htu %q for %s://%s%s: %v", c.htu, c.scheme, c.authority, c.path, err)
		}
	}
}

// Whatever the caller's Host says, the configured origins count.
func TestOrigins(t *testing.T) {
	k := key(t, pop.Ed25519)
	v, _ := verifier(t, pop.Config{Origins: []string{"https://files.corp.example", "http://10.0.0.7:8080"}})
	for uri, ok := range map[string]bool{
		"https://files.corp.example/files/q3":     true,
		"https://FILES.corp.example:443/files/q3": true,
		"http://10.0.0.7:8080/files/q3":           true,
		"http://files.corp.example/files/q3":      false,
		"https://10.0.0.7:8080/files/q3":          false,
		"https://evil.example/files/q3":           false,
	} {
		made := call()
		made.URI = uri
		e := evidence(prove(t, k, made))
		e.Scheme, e.Authority = "https", "evil.example"
		if err := ask(v, e, k.HolderKey()); (err == nil) != ok {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// What no proof can be for, none is made for.
func TestProveRefuses(t *testing.T) {
	k := key(t, pop.Ed25519)
	for _, c := range []pop.Call{
		{Method: "", URI: testOrigin}, {Method: "GET", URI: "/files"}, {Method: "GET", URI: "https://u@a.example/"},
		{Method: "GET", URI: "https://a.example/../x"}, {Method: "GET", URI: "https://a.example/" + string(make([]byte, 9000))},
	} {
		if p, err := k.Prove(t.Context(), c); err == nil {
			t.Errorf("%v: %s", c, p)
		}
	}
}
