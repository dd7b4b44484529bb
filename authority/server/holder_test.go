package server_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// A credential that names a key works for whoever proves it, through every kind
// of call, and for nobody else.
func TestHolderBoundCredential(t *testing.T) {
	r := start(t, server.Limits{})
	k, err := pop.GenerateKey(pop.ES256)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := caveats.Holder(k.HolderKey())
	if err != nil {
		t.Fatal(err)
	}
	bound := r.Mint(t, api.AdminAudience, "operator", holder).Token

	// With the key, by the typed client: a change, a read, a stream.
	file := filepath.Join(t.TempDir(), "operator.key")
	if err := pop.WriteKeyFile(file, k); err != nil {
		t.Fatal(err)
	}
	cfg := r.Config(bound)
	cfg.KeyFile = file
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "s", Owner: "o", Purpose: "p"}); err != nil {
		t.Fatalf("issue: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatalf("status: %v", err)
	}
	feed, err := c.Feed(t.Context(), client.FeedRequest{Audiences: []string{"corp"}})
	if err != nil {
		t.Fatalf("feed: %v", err)
	}
	if _, err := feed.Next(); err != nil {
		t.Fatalf("feed: %v", err)
	}
	feed.Close()

	// Without: the thief has the token, a proof that he saw, a key of his own.
	url := "https://" + r.Addr + "/v1/status"
	prove := func(s pop.Signer, call pop.Call) string {
		t.Helper()
		proof, err := s.Prove(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	good := pop.Call{Method: "GET", URI: url, Token: bound}
	seen := prove(k, good)
	if a := r.do("GET", "/v1/status", "", "", "Authorization", "DPoP "+bound, "DPoP", seen); a.status != 200 {
		t.Fatalf("by hand: %d %s", a.status, a.body)
	}
	thief, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	for _, theft := range []struct {
		name, scheme, method, path, proof string
		code                              api.Code
	}{
		{"as a bearer token", "Bearer", "GET", "/v1/status", "", capability.CodeHolderProof},
		{"as a bearer token beside a proof", "Bearer", "GET", "/v1/status", prove(k, good), capability.CodeHolderProof},
		{"without a proof", "DPoP", "GET", "/v1/status", "", capability.CodeHolderProof},
		{"with the proof that was seen", "DPoP", "GET", "/v1/status", seen, capability.CodeReplayed},
		{"at another endpoint", "DPoP", "GET", "/v1/tokens", prove(k, good), capability.CodeHolderProof},
		{"with a key of one's own", "DPoP", "GET", "/v1/status", prove(thief, good), capability.CodeHolderProof},
		{"with a proof for another token", "DPoP", "GET", "/v1/status", prove(k, pop.Call{Method: "GET", URI: url, Token: r.RootToken}), capability.CodeHolderProof},
		{"with garbage", "DPoP", "GET", "/v1/status", strings.Repeat("x.", 99), capability.CodeHolderProof},
	} {
		t.Run(theft.name, func(t *testing.T) {
			headers := []string{"Authorization", theft.scheme + " " + bound}
			if theft.proof != "" {
				headers = append(headers, "DPoP", theft.proof)
			}
			a := r.do(theft.method, theft.path, "", "", headers...)
			r.refused(a, 401, theft.code)
			challenges := strings.Join(a.header.Values("WWW-Authenticate"), "\n")
			if !strings.Contains(challenges, `DPoP `) || !strings.Contains(challenges, `algs="`+pop.Algorithms+`"`) || !strings.Contains(challenges, "Bearer ") {
				t.Errorf("challenges %q", challenges)
			}
			if faulty := theft.scheme == "DPoP" && theft.proof != ""; faulty != strings.Contains(challenges, `error="invalid_dpop_proof"`) {
				t.Errorf("challenges %q", challenges)
			}
		})
	}

	// A session of the key, and a token that refuses sessions.
	session := pop.NewSession(k, 0, nil)
	if a := r.do("GET", "/v1/status", "", "", "Authorization", "DPoP "+bound, "DPoP", prove(session, good)); a.status != 200 {
		t.Errorf("by a session key: %d %s", a.status, a.body)
	}
	token, err := capability.Parse(bound)
	if err != nil {
		t.Fatal(err)
	}
	direct, err := token.Attenuate("context pop is direct")
	if err != nil {
		t.Fatal(err)
	}
	good.Token = direct.Text()
	r.refused(r.do("GET", "/v1/status", "", "", "Authorization", "DPoP "+good.Token, "DPoP", prove(session, good)), 403, capability.CodeContextDenied)
	if a := r.do("GET", "/v1/status", "", "", "Authorization", "DPoP "+good.Token, "DPoP", prove(k, good)); a.status != 200 {
		t.Errorf("directly: %d %s", a.status, a.body)
	}
}

// The client says what is wrong with a key file before it calls anybody.
func TestClientKeyFile(t *testing.T) {
	cfg := client.Config{Addrs: []string{"127.0.0.1:1"}, CAFingerprint: strings.Repeat("00", 32), KeyFile: filepath.Join(t.TempDir(), "none")}
	if _, err := client.New(cfg); !errors.Is(err, client.ErrConfig) {
		t.Errorf("a key file that is not there: %v", err)
	}
	env := map[string]string{client.EnvAddr: "127.0.0.1:1", client.EnvFingerprint: cfg.CAFingerprint, client.EnvKeyFile: "k"}
	got, err := client.ConfigFromEnv(func(name string) string { return env[name] })
	if err != nil || got.KeyFile != "k" {
		t.Errorf("%q, %v", got.KeyFile, err)
	}
}
