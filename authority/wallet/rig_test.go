package wallet_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/pop"
)

const audience = "corp"

// rig is a real authority with a policy, a machine with a TPM that satisfies it,
// and a service that demands proof of possession.
type rig struct {
	*authoritytest.Node
	t       *testing.T
	root    *client.Client
	log     *journal
	machine *machine
	url     string // of the service
}

// machine is a TPM, its keys, and the wallet of whoever runs there.
type machine struct {
	tpm    *attesttest.TPM
	holder *holder.Holder
	wallet *wallet.Wallet
	key    *pop.Key
}

func newMachine(t *testing.T, tpm *attesttest.TPM, c *client.Client) *machine {
	t.Helper()
	h, err := holder.Open(holder.Config{TPM: tpm.Address, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	w, err := wallet.Open(wallet.Config{
		Attester: h, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: c},
		Posture: attest.Posture{Agent: "agent", Version: "1.0"}, File: t.TempDir() + "/wallet",
	})
	if err != nil {
		t.Fatal(err)
	}
	key, err := pop.NewKey(h.Key())
	if err != nil {
		t.Fatal(err)
	}
	return &machine{tpm: tpm, holder: h, wallet: w, key: key}
}

// policyOf accepts the machine as it is now.
func policyOf(t testing.TB, h *holder.Holder, change func(*attest.Policy)) string {
	t.Helper()
	set, err := h.CapturePCRs("golden", []int{0, 7})
	if err != nil {
		t.Fatal(err)
	}
	p := &attest.Policy{
		Format: 1, Name: "prod", EKRoots: []string{"factory"}, EKKinds: attest.Kinds(), PCRs: []int{0, 7}, PCRSets: []attest.PCRSet{set},
		Lifetime: attest.Duration(time.Minute),
	}
	if change != nil {
		change(p)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func newRig(t *testing.T, change func(*attest.Policy)) *rig {
	t.Helper()
	r := &rig{t: t, log: new(journal)}
	r.Node = authoritytest.Start(t, authoritytest.Options{Bound: time.Second, Logger: slog.New(slog.NewTextHandler(r.log, nil))})
	r.root = r.Root()
	t.Cleanup(r.root.Close)
	tpm := attesttest.Start(t)
	r.machine = newMachine(t, tpm, r.Client(""))
	if _, err := r.root.SetRoots(t.Context(), "factory", api.RootsRequest{PEM: string(tpm.Roots)}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.root.SetPolicy(t.Context(), api.PolicyRequest{Document: policyOf(t, r.machine.holder, change)}); err != nil {
		t.Fatal(err)
	}
	r.serve()
	return r
}

// serve guards a service: what the discharge declares is what it answers.
func (r *rig) serve() {
	checker, err := caveats.Standard()
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := r.Replica(r.t, "files", audience).Verifier(checker)
	if err != nil {
		r.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(nil)
	r.url = "http://" + srv.Listener.Addr().String()
	proofs, err := pop.New(pop.Config{Origins: []string{r.url}})
	if err != nil {
		r.t.Fatal(err)
	}
	g, err := guard.New(v, guard.Service("files"), guard.Possession(proofs))
	if err != nil {
		r.t.Fatal(err)
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, func(w http.ResponseWriter, req *http.Request) {
		policy, ok := guard.FromContext(req.Context()).Declared(attest.FactPolicy)
		fmt.Fprintf(w, "%s %v", policy, ok)
	})
	if srv.Config.Handler, err = g.Build(); err != nil {
		r.t.Fatal(err)
	}
	srv.Start()
	r.t.Cleanup(srv.Close)
}

// mint issues a token that demands attestation, for the machine's key.
func (r *rig) mint(change func(*api.IssueRequest)) *capability.Token {
	r.t.Helper()
	req := api.IssueRequest{
		Audience: audience, Subject: "agent-42", Owner: "o@corp.example", Purpose: "test", TTLSeconds: 900,
		Caveats: []string{"action read", "resource files/**"},
		ThirdParty: []api.ThirdPartyRequest{{
			Discharger: "authority", Condition: "attested prod", Holder: r.machine.holder.HolderKey().String(),
		}},
	}
	if change != nil {
		change(&req)
	}
	issued, err := r.root.Issue(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	t, err := capability.Parse(issued.Token)
	if err != nil {
		r.t.Fatal(err)
	}
	return t
}

func (r *rig) discharge(m *machine, t *capability.Token) *capability.Token {
	r.t.Helper()
	whole, _, err := m.wallet.Discharge(r.t.Context(), t)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.log)
	}
	return whole
}

// call presents a token with a proof by key, and returns status, code and body.
func (r *rig) call(t *capability.Token, key pop.Signer) (int, capability.Code, string) {
	r.t.Helper()
	var base http.RoundTripper
	if key != nil {
		base = &pop.Transport{Signer: key}
	}
	return r.answer((&http.Client{Transport: &guard.Transport{Token: t, Base: base}}).Get(r.url + "/files/q3"))
}

// present is call with bytes that no *capability.Token would hold.
func (r *rig) present(set []byte, key pop.Signer) (int, capability.Code) {
	r.t.Helper()
	text := capability.TextPrefix + base64.RawURLEncoding.EncodeToString(set)
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.url+"/files/q3", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+text)
	if key != nil {
		proof, err := key.Prove(r.t.Context(), pop.Call{Method: req.Method, URI: req.URL.String(), Token: text})
		if err != nil {
			r.t.Fatal(err)
		}
		req.Header.Set("Authorization", "DPoP "+text)
		req.Header.Set(pop.Header, proof)
	}
	status, code, _ := r.answer(http.DefaultClient.Do(req))
	return status, code
}

func (r *rig) answer(resp *http.Response, err error) (int, capability.Code, string) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var problem api.Problem
	_ = json.Unmarshal(body, &problem)
	return resp.StatusCode, problem.Code, string(body)
}

func (r *rig) want(t *capability.Token, key pop.Signer, status int, code capability.Code) {
	r.t.Helper()
	if s, c, body := r.call(t, key); s != status || c != code {
		r.t.Errorf("%d %s, want %d %s: %s", s, c, status, code, body)
	}
}

func (r *rig) wantLogged(text string) {
	r.t.Helper()
	if !strings.Contains(r.log.String(), text) {
		r.t.Errorf("the operator is not told %q:\n%s", text, r.log)
	}
}
