package capability_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"context"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
	"github.com/writ-dev/writ/caveats"
)

// A vector is one token set, one request, and what every implementation must
// say of them. testdata/vectors/README.md describes the fields for those who
// write one in another language.
type vector struct {
	Name     string        `json:"name"`
	Key      string        `json:"key"` // hexadecimal, of every epoch and generation but those in NoKey
	NoKey    []vectorEpoch `json:"no_key,omitempty"`
	Token    string        `json:"token"`
	Beside   []string      `json:"beside,omitempty"`
	Request  vectorRequest `json:"request"`
	Revoked  vectorRevoked `json:"revoked,omitzero"`
	Expect   string        `json:"expect"` // "ok", or the refusal's code
	Branches []string      `json:"branches,omitempty"`
	Declared []vectorField `json:"declared,omitempty"`
}

type vectorEpoch struct {
	Epoch      uint32 `json:"epoch"`
	Generation uint32 `json:"generation"`
}

type vectorRequest struct {
	Now       time.Time      `json:"now"`
	Service   string         `json:"service,omitempty"`
	Action    string         `json:"action,omitempty"`
	Resource  []string       `json:"resource,omitempty"`
	Arguments []vectorField  `json:"arguments,omitempty"`
	Client    string         `json:"client,omitempty"`
	Context   []vectorField  `json:"context,omitempty"`
	Proves    []string       `json:"proves,omitempty"` // holder keys that the caller proves
	Message   *vectorMessage `json:"message,omitempty"`
}

type vectorField struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"` // string, number, bool
	Value string `json:"value"`
}

type vectorMessage struct {
	Method      string `json:"method"`
	Authority   string `json:"authority"`
	Target      string `json:"target"`
	ContentType string `json:"content_type,omitempty"`
	BodySHA256  string `json:"body_sha256"`
	Nonce       string `json:"nonce,omitempty"`
}

type vectorRevoked struct {
	Tokens    []string       `json:"tokens,omitempty"`
	Branches  []vectorBranch `json:"branches,omitempty"`
	Subjects  []vectorCutoff `json:"subjects,omitempty"`
	Audiences []vectorCutoff `json:"audiences,omitempty"`
	Epochs    []uint32       `json:"epochs,omitempty"`
	Holders   []string       `json:"holders,omitempty"`
	Devices   []string       `json:"devices,omitempty"`
}

type vectorBranch struct {
	Token  string `json:"token"`
	Branch string `json:"branch"`
}

type vectorCutoff struct {
	Name   string `json:"name"`
	Millis int64  `json:"issued_until_ms"`
}

func (r *vectorRequest) request(t *testing.T) *capability.Request {
	t.Helper()
	req := &capability.Request{
		Now: r.Now, Service: r.Service, Action: r.Action, Resource: r.Resource,
		Arguments: fields(t, r.Arguments), Context: fields(t, r.Context),
	}
	if r.Client != "" {
		req.Client = must[netip.Addr](t)(netip.ParseAddr(r.Client))
	}
	if len(r.Proves) > 0 {
		req.Holder = proves(r.Proves)
	}
	if m := r.Message; m != nil {
		req.Message = &capability.Message{
			Method: m.Method, Authority: m.Authority, Target: m.Target, ContentType: m.ContentType,
			BodyDigest: [32]byte(must[[]byte](t)(hex.DecodeString(m.BodySHA256))), Nonce: m.Nonce,
		}
	}
	return req
}

func fields(t *testing.T, fs []vectorField) (out capability.Fields) {
	t.Helper()
	for _, f := range fs {
		v := capability.StringValue(f.Value)
		switch f.Kind {
		case "number":
			v = capability.NumberValue(f.Value)
		case "bool":
			v = capability.BoolValue(f.Value == "true")
		case "string":
		default:
			t.Fatalf("a field of kind %q", f.Kind)
		}
		out = append(out, capability.Field{Name: f.Name, Value: v})
	}
	return out
}

// proves is a caller who proves these holder keys.
type proves []string

func (p proves) Prove(_ context.Context, k capability.HolderKey) error {
	if slices.Contains(p, k.String()) {
		return nil
	}
	return capability.CodeHolderProof
}

func (r *vectorRevoked) set(t *testing.T) *revocation.Set {
	t.Helper()
	s := revocation.New()
	for _, id := range r.Tokens {
		s.RevokeToken(must[capability.TokenID](t)(capability.ParseTokenID(id)), never)
	}
	for _, b := range r.Branches {
		s.RevokeBranch(must[capability.TokenID](t)(capability.ParseTokenID(b.Token)),
			must[capability.BranchID](t)(capability.ParseBranchID(b.Branch)), never)
	}
	for _, c := range r.Subjects {
		s.RevokeSubject(c.Name, c.Millis, never)
	}
	for _, c := range r.Audiences {
		s.RevokeAudience(c.Name, c.Millis, never)
	}
	for _, e := range r.Epochs {
		s.RevokeEpoch(e, never)
	}
	for _, k := range r.Holders {
		s.RevokeHolder(must[capability.HolderKey](t)(capability.ParseHolderKey(k)), never)
	}
	for _, d := range r.Devices {
		s.RevokeDevice(must[capability.DeviceID](t)(capability.ParseDeviceID(d)), never)
	}
	return s
}

// ringWithout has one key for all epochs but some.
type ringWithout struct {
	key  *capability.RootKey
	none []vectorEpoch
}

func (r ringWithout) Key(_ []byte, epoch, generation uint32) *capability.RootKey {
	if slices.Contains(r.none, vectorEpoch{epoch, generation}) {
		return nil
	}
	return r.key
}

func (v *vector) run(t *testing.T) {
	t.Helper()
	checker := must[*caveats.Checker](t)(caveats.Standard(caveats.Honor("minimal")))
	budgets := must[*caveats.LocalBudgets](t)(caveats.NewLocalBudgets(16, func() time.Time { return v.Request.Now }))
	key := capability.NewRootKey([32]byte(must[[]byte](t)(hex.DecodeString(v.Key))))
	verifier := must[*capability.Verifier](t)(capability.NewVerifier(ringWithout{key, v.NoKey}, []string{"corp"}, checker,
		capability.WithRevocations(revocation.Static{Set: v.Revoked.set(t)}, 0), capability.WithBudgets(budgets)))
	g := new(capability.Grant)
	err := verifier.VerifyText(t.Context(), g, v.Token, v.Request.request(t), v.Beside...)
	got := "ok"
	if err != nil {
		got = string(capability.CodeOf(err))
	}
	if got != v.Expect {
		t.Fatalf("%s (%v), want %s", got, err, v.Expect)
	}
	var branches []string
	for _, b := range g.AppendBranches(nil) {
		branches = append(branches, b.String())
	}
	if len(v.Branches) > 0 && !slices.Equal(branches, v.Branches) {
		t.Errorf("branches %v, want %v", branches, v.Branches)
	}
	for _, d := range v.Declared {
		if value, ok := g.Declared(d.Name); !ok || value != d.Value {
			t.Errorf("declared %s is %q, want %q", d.Name, value, d.Value)
		}
	}
}

const vectorsDir = "../testdata/vectors"

// TestVectors runs every golden vector, and holds that the files are what the
// generator makes. With -update it rewrites them.
func TestVectors(t *testing.T) {
	for file, made := range makeVectors(t) {
		path := filepath.Join(vectorsDir, file+".json")
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(made); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s is not what the generator makes (%v): go test ./capability -run TestVectors -update", path, err)
		}
	}
	files := must[[]string](t)(filepath.Glob(filepath.Join(vectorsDir, "*.json")))
	codes, total := map[string]int{}, 0
	for _, file := range files {
		if filepath.Base(file) == sealedFile {
			continue
		}
		var vectors []vector
		dec := json.NewDecoder(bytes.NewReader(must[[]byte](t)(os.ReadFile(file))))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&vectors); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if len(vectors) == 0 {
			t.Errorf("%s is empty", file)
		}
		for _, v := range vectors {
			codes[v.Expect]++
			total++
			t.Run(filepath.Base(file)+"/"+v.Name, v.run)
		}
	}
	if total < 100 || codes["ok"] < 20 {
		t.Errorf("%d vectors, %d of them good: the corpus is not there", total, codes["ok"])
	}
	for _, code := range []capability.Code{
		capability.CodeMalformed, capability.CodeTooLarge, capability.CodeUnknownKey, capability.CodeBadSignature,
		capability.CodeRevoked, capability.CodeExpired, capability.CodeNotYetValid, capability.CodeActionDenied,
		capability.CodeResourceDenied, capability.CodeArgumentDenied, capability.CodeServiceDenied, capability.CodeClientDenied,
		capability.CodeContextDenied, capability.CodeRequestMismatch, capability.CodeHolderProof, capability.CodeBudgetExhausted,
		capability.CodeDischargeRequired, capability.CodeDischargeInvalid, capability.CodeUnknownCaveat, capability.CodeObligation,
	} {
		if codes[string(code)] == 0 {
			t.Errorf("no vector is refused with %s", code)
		}
	}
}
