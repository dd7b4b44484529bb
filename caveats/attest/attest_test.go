package attest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/attest"
)

func transcript() *attest.Transcript {
	name := func(b byte) attest.Name { return append([]byte{0, 0x0b}, bytes.Repeat([]byte{b}, 32)...) }
	return &attest.Transcript{
		Audience: "corp", ChallengeID: bytes.Repeat([]byte{1}, 16), Nonce: bytes.Repeat([]byte{2}, 32),
		CaveatHash: sha256.Sum256([]byte("a caveat id")), EKName: name(3), AKName: name(4), HolderName: name(5),
		Policy: "prod", PolicyVersion: 7, PostureHash: sha256.Sum256([]byte(`{"agent":"agent"}`)),
	}
}

// The values are permanent: other implementations compute them. They were made
// by testdata/transcript.py, which shares no code with this package.
func TestTranscriptGolden(t *testing.T) {
	th := transcript().Hash()
	quote, certify := attest.QuoteData(th), attest.CertifyData(th)
	for name, c := range map[string][2]string{
		"T":          {hex.EncodeToString(th[:]), "9eb3fb193cbc8fd27a2dcfbb972d87e26e514ca6d41b2de2a260d33d4abaf7ea"},
		"quote":      {hex.EncodeToString(quote[:]), "cba67d74d28f1386959243996571ffd449fb09544c747648a448d3ad276e1cc2"},
		"certify":    {hex.EncodeToString(certify[:]), "cb094382c6bc1a168e4aff80cb5f5261eb6c7a9e5f5de3849b6bc27f8f650831"},
		"activation": {hex.EncodeToString(attest.Activation(bytes.Repeat([]byte{6}, 32), th)), "3999fc8d2abe9504b5b1b383740440833607d0416fc0cd0d507afe24387ede01"},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is %s, want %s", name, c[0], c[1])
		}
	}
}

// Every field counts, and none can lend a byte to its neighbour.
func TestTranscriptFields(t *testing.T) {
	seen := map[[32]byte]string{transcript().Hash(): "nothing"}
	add := func(name string, change func(*attest.Transcript)) {
		tr := transcript()
		change(tr)
		if other, ok := seen[tr.Hash()]; ok {
			t.Errorf("%s and %s have one transcript", name, other)
		}
		seen[tr.Hash()] = name
	}
	v := reflect.ValueOf(*transcript())
	for i := range v.NumField() {
		add(v.Type().Field(i).Name, func(tr *attest.Transcript) {
			switch f := reflect.ValueOf(tr).Elem().Field(i); f.Kind() {
			case reflect.String:
				f.SetString(f.String() + "x")
			case reflect.Uint64:
				f.SetUint(f.Uint() + 1)
			case reflect.Array:
				f.Index(31).SetUint(f.Index(31).Uint() ^ 1)
			default:
				f.SetBytes(append(slices.Clone(f.Bytes()), 1))
			}
		})
	}
	add("a byte moved between neighbours", func(tr *attest.Transcript) {
		tr.ChallengeID = append([]byte{'p'}, tr.ChallengeID...)
		tr.Audience = "cor"
	})
	if len(seen) != v.NumField()+2 {
		t.Errorf("%d transcripts of %d fields", len(seen), v.NumField())
	}
}

const document = `{
  "format": 1, "name": "prod", "version": 2,
  "ek_roots": ["swtpm"], "ek_kinds": ["ecc-p384"],
  "ek_allow": ["` + zeros + `"], "ek_deny": ["` + ones + `"],
  "pcrs": [0, 7],
  "pcr_sets": [{"name": "golden", "values": {"0": "` + zeros + `", "7": "` + ones + `"}}],
  "min_firmware": "0000000000002026",
  "agents": [{"name": "agent", "versions": ["1.2.0", "1.10.0"]}],
  "os": [{"name": "debian", "minimum": "12.7"}],
  "processes": ["` + ones + `"],
  "session_keys": true, "lifetime": "5m", "on_failure": "revoke"
}`

var (
	zero = attest.Digest{}
	one  = attest.Digest(bytes.Repeat([]byte{0x11}, 32))
)

const (
	zeros = "0000000000000000000000000000000000000000000000000000000000000000"
	ones  = "1111111111111111111111111111111111111111111111111111111111111111"
)

func TestPolicyDocument(t *testing.T) {
	p, err := attest.ParsePolicy([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	if p.MinFirmware != 0x2026 || time.Duration(p.Lifetime) != 5*time.Minute || p.OnFailure != attest.Revoke || p.PCRSets[0].Values["7"] != one {
		t.Errorf("read as %+v", p)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := attest.ParsePolicy(text)
	if err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("written and read again: %+v, %v", again, err)
	}
}

func TestPolicyDocumentRefused(t *testing.T) {
	for name, c := range map[string][2]string{ // in the document: this for that
		"unknown member":         {`"format": 1`, `"format": 1, "formt": 1`},
		"member twice":           {`"format": 1`, `"format": 1, "format": 1`},
		"another case":           {`"format": 1`, `"format": 1, "Format": 1`},
		"no format":              {`"format": 1, `, ``},
		"another format":         {`"format": 1`, `"format": 2`},
		"no name":                {`"name": "prod"`, `"name": ""`},
		"no kinds":               {`"ek_kinds": ["ecc-p384"],`, ``},
		"an empty list of kinds": {`["ecc-p384"]`, `[]`},
		"name with a slash":      {`"name": "prod"`, `"name": "a/b"`},
		"no roots":               {`["swtpm"]`, `[]`},
		"roots by a path":        {`["swtpm"]`, `["../x"]`},
		"unknown kind":           {`ecc-p384`, `ecc-p521`},
		"digest in upper case":   {ones, strings.Repeat("AA", 32)},
		"digest too short":       {ones, ones[2:]},
		"no PCRs":                {`[0, 7]`, `[]`},
		"PCR 24":                 {`[0, 7]`, `[0, 24]`},
		"PCRs out of order":      {`[0, 7]`, `[7, 0]`},
		"a PCR twice":            {`[0, 7]`, `[0, 0]`},
		"no set":                 {`[{"name": "golden", "values": {"0": "` + zeros + `", "7": "` + ones + `"}}]`, `[]`},
		"a set short of a PCR":   {`"0": "` + zeros + `", "7"`, `"7"`},
		"a set with another PCR": {`{"0": "`, `{"1": "`},
		"a PCR as 07":            {`"7": "`, `"07": "`},
		"firmware as a number":   {`"0000000000002026"`, `8230`},
		"firmware too short":     {`"0000000000002026"`, `"2026"`},
		"minimum of words":       {`"12.7"`, `"bookworm"`},
		"no lifetime":            {`"lifetime": "5m", `, ``},
		"too long a lifetime":    {`"5m"`, `"1h"`},
		"too short a lifetime":   {`"5m"`, `"1s"`},
		"unknown rule":           {`"revoke"`, `"warn"`},
		"a second document":      {"\n}", "\n}{}"},
		"too large":              {`"format": 1`, strings.Repeat(" ", attest.MaxPolicy) + `"format": 1`},
	} {
		text := strings.Replace(document, c[0], c[1], 1)
		if text == document {
			t.Fatalf("%s: nothing was changed", name)
		}
		var refusal *attest.Refusal
		if _, err := attest.ParsePolicy([]byte(text)); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	two := strings.Replace(document, `"pcr_sets": [`, `"pcr_sets": [{"name": "golden", "values": {"0": "`+zeros+`", "7": "`+zeros+`"}},`, 1)
	if _, err := attest.ParsePolicy([]byte(two)); err == nil {
		t.Error("two sets of one name")
	}
}

func TestJudge(t *testing.T) {
	p, err := attest.ParsePolicy([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	good := func() *attest.Posture {
		return &attest.Posture{Agent: "agent", Version: "1.10.0", ProcessHash: &one, OS: "debian", Patch: "12.10"}
	}
	for name, c := range map[string]struct {
		change func(*attest.Posture)
		ok     bool
	}{
		"good":               {func(*attest.Posture) {}, true},
		"exactly":            {func(s *attest.Posture) { s.Patch = "12.7" }, true},
		"with more parts":    {func(s *attest.Posture) { s.Patch = "12.7.0.1" }, true},
		"a later release":    {func(s *attest.Posture) { s.Patch = "13" }, true},
		"another agent":      {func(s *attest.Posture) { s.Agent = "agent2" }, false},
		"unlisted version":   {func(s *attest.Posture) { s.Version = "1.3.0" }, false},
		"no version":         {func(s *attest.Posture) { s.Version = "" }, false},
		"another OS":         {func(s *attest.Posture) { s.OS = "Debian" }, false},
		"an older patch":     {func(s *attest.Posture) { s.Patch = "12.6" }, false},
		"fewer parts":        {func(s *attest.Posture) { s.Patch = "12" }, false},
		"a patch of words":   {func(s *attest.Posture) { s.Patch = "99.bookworm" }, false},
		"a patch with a +":   {func(s *attest.Posture) { s.Patch = "+13" }, false},
		"a huge patch":       {func(s *attest.Posture) { s.Patch = "99999999999999999999" }, false},
		"no patch":           {func(s *attest.Posture) { s.Patch = "" }, false},
		"no process":         {func(s *attest.Posture) { s.ProcessHash = nil }, false},
		"another process":    {func(s *attest.Posture) { s.ProcessHash = &zero }, false},
		"nine parts":         {func(s *attest.Posture) { s.Patch = "13.0.0.0.0.0.0.0.0" }, false},
		"an empty last part": {func(s *attest.Posture) { s.Patch = "13." }, false},
	} {
		s := good()
		c.change(s)
		err := p.JudgePosture(s)
		if (err == nil) != c.ok || !c.ok && attest.ReasonOf(err) != attest.ReasonPosture {
			t.Errorf("%s: %v", name, err)
		}
	}
	if set, err := p.JudgePCRs([][]byte{zero[:], one[:]}); err != nil || set != "golden" {
		t.Errorf("%q, %v", set, err)
	}
	for name, values := range map[string][][]byte{
		"swapped": {one[:], zero[:]}, "one alone": {zero[:]}, "none": nil, "short": {zero[:], one[:31]}, "one more": {zero[:], one[:], one[:]},
	} {
		if _, err := p.JudgePCRs(values); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCounters(t *testing.T) {
	stored := attest.Counters{Reset: 5, Restart: 3, Clock: 10_000_000, Safe: true}
	for name, c := range map[string]struct {
		now attest.Counters
		ok  bool
	}{
		"the same":                             {stored, true},
		"later":                                {attest.Counters{Reset: 5, Restart: 3, Clock: 10_000_001, Safe: true}, true},
		"restarted":                            {attest.Counters{Reset: 5, Restart: 4, Clock: 10_000_001}, true},
		"reset, restarts count anew":           {attest.Counters{Reset: 6, Restart: 0, Clock: 10_000_001, Safe: true}, true},
		"power failed, the clock fell back":    {attest.Counters{Reset: 6, Restart: 0, Clock: 10_000_000 - 1<<22}, true},
		"power failed, the clock fell too far": {attest.Counters{Reset: 6, Restart: 0, Clock: 10_000_000 - 1<<22 - 1}, false},
		"the clock fell back, and is safe":     {attest.Counters{Reset: 6, Restart: 0, Clock: 9_999_999, Safe: true}, false},
		"the clock fell back without a reset":  {attest.Counters{Reset: 5, Restart: 3, Clock: 9_999_999}, false},
		"the restart count went back":          {attest.Counters{Reset: 5, Restart: 2, Clock: 10_000_001, Safe: true}, false},
		"the reset count went back":            {attest.Counters{Reset: 4, Restart: 9, Clock: 10_000_001, Safe: true}, false},
		"cleared":                              {attest.Counters{}, false},
	} {
		if err := c.now.After(stored); (err == nil) != c.ok || !c.ok && attest.ReasonOf(err) != attest.ReasonCounters {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPosture(t *testing.T) {
	s := attest.Posture{Agent: "agent", Version: "1", ProcessHash: &one, HostID: "h", OS: "debian", Patch: "12.7"}
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := attest.DecodePosture(text); err != nil || !reflect.DeepEqual(&s, again) {
		t.Errorf("%+v, %v", again, err)
	}
	for _, bad := range []string{
		``, `{}`, `[]`, `null`, `"agent"`, `{"agent":""}`, `{"agent":"a","x":1}`, `{"agent":"a"} ` + "\n{}", `{"agent":"a","agent":"b"}`, `{"agent":"a\u001b[31m"}`,
		`{"agent":1}`, `{"agent":"a","process_hash":"00"}`, `{"agent":"` + strings.Repeat("a", 201) + `"}`, `{"agent":"a"` + strings.Repeat(" ", attest.MaxPosture) + `}`,
	} {
		if _, err := attest.DecodePosture([]byte(bad)); err == nil {
			t.Errorf("accepted %.60q", bad)
		}
	}
}

// The conditions of a discharge are ones that a verifier can read, and as narrow
// as the policy says.
func TestConditions(t *testing.T) {
	now := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	r := &attest.Result{
		Device: capability.DeviceID(one), AKName: attest.Name{0, 0x0b, 1}, Holder: capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: one},
		Counters: attest.Counters{Reset: 4, Restart: 2}, PCRSet: "golden", Policy: "prod", Version: 3, Lifetime: 5 * time.Minute,
	}
	got, err := r.Conditions(now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"time-before 2026-11-24T09:05:00Z", "holder " + r.Holder.String(), "device " + ones, "context pop is direct",
		"declare attest.device " + ones, "declare attest.ak 000b01", "declare attest.policy prod@3", "declare attest.pcrs golden",
		"declare attest.reset 4", "declare attest.restart 2", "declare attest.sessions forbidden",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, c := range got {
		if err := caveats.ValidateDischarge(c); err != nil {
			t.Error(err)
		}
	}
	r.SessionKeys = true
	got, err = r.Conditions(now, now.Add(time.Minute))
	if err != nil || got[0] != "time-before 2026-11-24T09:01:00Z" || slices.Contains(got, "context pop is direct") || got[len(got)-1] != "declare attest.sessions allowed" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := r.Conditions(now, now); err == nil {
		t.Error("a discharge that has ended")
	}
}

// A stored challenge keeps its secret to itself, except where it is stored.
func TestPending(t *testing.T) {
	secret := bytes.Repeat([]byte{0xd5}, 32)
	p := &attest.Pending{
		ID: bytes.Repeat([]byte{1}, 16), Nonce: bytes.Repeat([]byte{2}, 32), Secret: secret, Expires: time.Unix(5000, 0).UTC(), Audience: "corp",
		Policy: "prod", PolicyVersion: 1, Kind: attest.RSA2048, EKName: attest.Name{1}, AK: []byte{2}, Holder: []byte{3},
		Counters: &attest.Counters{Reset: 1, Restart: 2, Clock: 3, Safe: true},
	}
	text, err := p.Encode()
	if err != nil || len(text) > attest.MaxPending {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	again, err := attest.DecodePending(text)
	if err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("%+v, %v", again, err)
	}
	marshaled, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{p.String(), fmt.Sprintf("%v %+v %#v %x %s", p, *p, p, *p, p), string(marshaled), p.LogValue().String()} {
		if strings.Contains(shown, "d5d5") || strings.Contains(shown, "1dXV") || strings.Contains(shown, "213 213") {
			t.Errorf("shows its secret: %s", shown)
		}
	}
	for _, bad := range []string{``, `{}`, strings.Replace(string(text), `"id":"`, `"id":"AA`, 1), string(text) + "x"} {
		if _, err := attest.DecodePending([]byte(bad)); attest.ReasonOf(err) != attest.ReasonChallenge {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
}

func TestRefusal(t *testing.T) {
	err := fmt.Errorf("finish: %w", attest.Refuse(attest.ReasonPCRs, "PCR %d", 7))
	if attest.ReasonOf(err) != attest.ReasonPCRs || !errors.Is(err, &attest.Refusal{Reason: attest.ReasonPCRs}) || errors.Is(err, &attest.Refusal{Reason: attest.ReasonProof}) {
		t.Error(err)
	}
	for reason, want := range map[attest.Reason]string{
		attest.ReasonTooLarge: "too_large", attest.ReasonMalformed: "malformed", attest.ReasonChallenge: "challenge",
		attest.ReasonPCRs: "refused", attest.ReasonDenied: "refused", attest.ReasonUnexpected: "refused",
	} {
		if got := (&attest.Refusal{Reason: reason, Detail: "secret"}).Public(); got != want {
			t.Errorf("%s is %q to a stranger", reason, got)
		}
	}
}
