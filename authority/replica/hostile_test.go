package replica_test

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"gopkg.in/macaroon.v2"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
)

// textOf is the text form of what this library would not make, and another does.
func textOf(set []byte) string {
	return capability.TextPrefix + base64.RawURLEncoding.EncodeToString(set)
}

// TestHostileInput: what is wrong with a token is refused with its code by a
// guarded service that holds keys and, where it can tell, by the authority,
// both over TLS; and the service goes on serving.
func TestHostileInput(t *testing.T) {
	key, err := capability.GenerateDischargerKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := authoritytest.Start(t, authoritytest.Options{Authority: func(c *authority.Config) {
		c.Dischargers = []authority.Discharger{{Name: "approvals", Location: "https://approvals.corp.example", PublicKey: key.Public()}}
	}})
	root := n.Root()
	defer root.Close()
	parsed := func(text string) *capability.Token {
		t.Helper()
		tok, err := capability.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	issue := func(audience string) *capability.Token {
		t.Helper()
		issued, err := root.Issue(t.Context(), api.IssueRequest{
			Audience: audience, Subject: "agent-42", Owner: "o", Purpose: "p", Caveats: []string{"action read"},
			ThirdParty: []api.ThirdPartyRequest{{Discharger: "approvals", Condition: "approved ops"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return parsed(issued.Token)
	}
	discharge := func(of *capability.Token) *capability.Token {
		t.Helper()
		opened, err := key.OpenCaveat(of.Missing()[0].CaveatID)
		if err != nil {
			t.Fatal(err)
		}
		d, err := opened.Discharge()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	whole := func(root *capability.Token, discharges ...*capability.Token) *capability.Token {
		t.Helper()
		set, err := root.WithDischarges(discharges...)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	narrowed := func(of *capability.Token, conditions ...string) *capability.Token {
		t.Helper()
		narrow, err := of.Attenuate(conditions...)
		if err != nil {
			t.Fatal(err)
		}
		return narrow
	}
	tok := issue("corp")
	good := whole(tok, discharge(tok))
	foreign := issue("elsewhere")
	second := issue("corp")

	var long macaroon.Macaroon
	if err := long.UnmarshalBinary(parsed(n.Mint(t, "corp", "agent-42").Token).Bytes()); err != nil {
		t.Fatal(err)
	}
	for range 65 {
		if err := long.AddFirstPartyCaveat([]byte("action read")); err != nil {
			t.Fatal(err)
		}
	}
	tooMany, err := long.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	crowd := tok.Bytes()
	for range 17 {
		crowd = append(crowd, discharge(tok).Bytes()...)
	}
	forged := good.Bytes()
	forged[len(tok.Bytes())-1] ^= 1

	keyless := n.Service(t, api.ServiceRequest{Name: "asks", Audiences: []string{"corp"}, Keyless: true})
	service := n.Replica(t, "files", "corp")
	g, err := guard.New(verifier(t, service), guard.Service("files"), guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	g.HandleFunc("POST /files/{name}", guard.Route{Action: "read", Resource: "files/{name}", JSON: true},
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	h, err := g.Build()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(h)
	defer s.Close()
	call := func(credential, body string) (status int, code string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/files/q3", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if credential != "" {
			req.Header.Set("Authorization", "Bearer "+credential)
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var p struct{ Code string }
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		_ = json.Unmarshal(b, &p) // net/http's own refusals have no code
		return resp.StatusCode, p.Code
	}

	garbage := strings.Repeat("x", 1<<20)
	strangers := append(tok.Bytes(), discharge(second).Bytes()...)
	cut := good.Bytes()[:len(good.Bytes())-9]
	for _, c := range []struct {
		name   string
		set    []byte
		text   string // what the service gets; "": the set
		status int
		code   capability.Code
		asked  capability.Code // the authority's, if another
	}{
		{"the good one", nil, good.Text(), 204, "", ""},
		{"no credential", nil, "", 401, "", ""},
		{"a mebibyte of garbage", []byte(garbage), garbage, 401, capability.CodeMalformed, api.CodeBodyTooLarge},
		{"half of one that begins like a token", []byte(garbage[:1<<19]), "", 401, capability.CodeTooLarge, api.CodeBodyTooLarge},
		{"a little garbage", []byte("garbage"), "", 401, capability.CodeMalformed, ""},
		{"truncated", tok.Bytes()[:60], "", 401, capability.CodeMalformed, ""},
		{"truncated in the discharge", cut, "", 401, capability.CodeMalformed, ""},
		{"65 caveats", tooMany, "", 401, capability.CodeTooLarge, ""},
		{"17 discharges", crowd, "", 401, capability.CodeTooLarge, ""},
		{"no discharge", tok.Bytes(), "", 401, capability.CodeDischargeRequired, ""},
		{"a discharge of another token", strangers, "", 401, capability.CodeDischargeRequired, ""},
		{"one of another token besides", whole(tok, discharge(tok), discharge(second)).Bytes(), "", 401, capability.CodeDischargeInvalid, ""},
		{"one bit flipped", forged, "", 401, capability.CodeBadSignature, ""},
		{"another audience", whole(foreign, discharge(foreign)).Bytes(), "", 401, capability.CodeUnknownKey, capability.CodeResourceDenied},
		// The authority says yes to these: it clears no caveats.
		{"a condition that nobody knows", nil, whole(narrowed(tok, "colour blue"), discharge(tok)).Text(), 403, capability.CodeUnknownCaveat, ""},
		{"another service's own condition", nil, whole(narrowed(tok, "ext:tea hot"), discharge(tok)).Text(), 403, capability.CodeUnknownCaveat, ""},
	} {
		if c.text == "" && c.set != nil {
			c.text = textOf(c.set)
		}
		if status, code := call(c.text, "{}"); status != c.status || code != string(c.code) {
			t.Errorf("%s: the service says %d %q, want %d %q", c.name, status, code, c.status, c.code)
		}
		if c.set == nil {
			continue
		}
		if c.asked == "" {
			c.asked = c.code
		}
		_, err := keyless.Verify(t.Context(), c.set)
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Problem.Code != c.asked {
			t.Errorf("%s: the authority says %v, want %s", c.name, err, c.asked)
		}
	}
	if status, code := call(good.Text(), `{"x":"`+strings.Repeat("x", 2<<20)+`"}`); status != 413 {
		t.Errorf("a body over the limit: %d %q", status, code)
	}
	if status, code := call(good.Text(), "{}"); status != 204 {
		t.Errorf("the good one, at the end: %d %q", status, code)
	}
}
