package api

import (
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

func TestDecodeIsStrict(t *testing.T) {
	good := []string{
		`{"audience":"corp","subject":"a","owner":"o","purpose":"p"}`,
		" {\t\"audience\" : \"corp\" , \"agent\":{\"name\":\"n\"}, \"caveats\":[\"action read\",\"}\\\"{\"]}\n",
		`{"audience":"corp","caveats":null,"agent":null,"ttl_seconds":300}`,
		`{}`,
		`{"third_party":[{"discharger":"d","condition":"c"},{}]}`,
		`{"third_party":[null],"ttl_seconds":null,"audience":null}`,
		`null`,
		`{"audience":"` + strings.Repeat(`\\\"[{`, 50) + `"}`, // nested in a string alone
	}
	for _, in := range good {
		var r IssueRequest
		if err := Decode([]byte(in), &r); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
	bad := map[string]string{
		"unknown member":          `{"audience":"corp","who":1}`,
		"unknown nested":          `{"agent":{"nam":"x"}}`,
		"unknown in a list":       `{"third_party":[{"x":1}]}`,
		"twice":                   `{"audience":"a","audience":"b"}`,
		"twice, escaped":          `{"audience":"a","\u0061udience":"b"}`,
		"twice, nested":           `{"agent":{"name":"a","name":"b"}}`,
		"another case":            `{"Audience":"corp"}`,
		"both cases":              `{"audience":"a","AUDIENCE":"b"}`,
		"trailing value":          `{} {}`,
		"trailing garbage":        `{}x`,
		"nothing":                 ``,
		"not an object":           `[]`,
		"a string for a number":   `{"ttl_seconds":"300"}`,
		"a fraction for a number": `{"ttl_seconds":1.5}`,
		"not UTF-8":               "{\"audience\":\"\xff\"}",
		"a byte order mark":       "\ufeff{}",
		"half a character":        `{"audience":"\ud800"}`,
		"too deep":                `{"agent":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
	}
	for name, in := range bad {
		var r IssueRequest
		if err := Decode([]byte(in), &r); !errors.Is(err, ErrJSON) {
			t.Errorf("%s: %s: %v", name, in, err)
		}
	}
	// The embedded fields of a revocation are its own.
	var i RevocationInfo
	if err := Decode([]byte(`{"kind":"token","token":"x","reason":"r","by":"me","at":"2026-01-01T00:00:00Z","expires":"2026-01-01T00:00:00Z","index":1}`), &i); err != nil || i.Token != "x" {
		t.Errorf("embedded: %v", err)
	}
}

// TestDecodeReadsAsItWasWritten: the types that read themselves, and bytes and
// times, in the one form that this package writes.
func TestDecodeReadsAsItWasWritten(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	for _, v := range []any{
		&TokenResponse{Token: "writ_x", ID: capability.TokenID{1}, Branch: capability.BranchID{2}, NotAfter: at, Index: 1<<64 - 1},
		&TokenInfo{Parent: &capability.TokenID{3}, Caveats: []string{"a"}, Budgets: []BudgetInfo{{Limit: 1}}},
		&RevocationInfo{RevokeRequest: RevokeRequest{Kind: RevokeEpoch, Epoch: 1<<32 - 1}, At: at},
		&KeySet{Keys: []Key{{Secret: []byte{0, 255, 254}, Until: at}}},
		&VerifyResponse{Branches: []capability.BranchID{{4}, {5}}},
		&AuditRecords{Records: [][]byte{[]byte("{}"), {}}},
		&EpochList{Epochs: []EpochInfo{}, Generations: manyGenerations(1000)},
		&AttestResponse{Device: "d"}, // omits a time
		&struct{}{},
	} {
		in, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if err := Decode(in, got); err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%s was read as %+v: %v", in, got, err)
		}
	}
	for in, v := range map[string]any{
		`{"set":[1,2]}`:        new(VerifyRequest), // bytes are base64
		`{"set":"AA"}`:         new(VerifyRequest),
		`{"set":"AA==\n"}`:     new(VerifyRequest),
		`{"id":1}`:             new(TokenResponse),
		`{"index":-1}`:         new(TokenResponse),
		`{"not_after":"now"}`:  new(TokenResponse),
		`{"who":1}`:            new(struct{}),
		`{"generations":[]}`:   new(EpochList),
		`{"epoch":4294967296}`: new(RevokeRequest),
	} {
		if err := Decode([]byte(in), v); !errors.Is(err, ErrJSON) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func manyGenerations(n int) map[string]uint32 {
	m := make(map[string]uint32, n)
	for i := range n {
		m["audience"+strconv.Itoa(i)] = uint32(i)
	}
	return m
}

// TestDecodeSaysWhichMember, and not what was in it.
func TestDecodeSaysWhichMember(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000)
	for in, want := range map[string]string{
		`{"audience":12345678}`:                          `member "audience" cannot be a number`,
		`{"ttl_seconds":"12345678"}`:                     `member "ttl_seconds" cannot be a string`,
		`{"ttl_seconds":12345678.5}`:                     `member "ttl_seconds" is not in its form`,
		`{"ttl_seconds":12345678123456781234}`:           `member "ttl_seconds" is not in its form`,
		`{"agent":[12345678]}`:                           `member "agent" cannot be an array`,
		`{"caveats":{"a":12345678}}`:                     `member "caveats" cannot be an object`,
		`{"agent":true}`:                                 `member "agent" cannot be true`,
		`{"agent":{"nam":"12345678"}}`:                   `member "agent.nam" is unknown`,
		`{"third_party":[{},{"device":12345678}]}`:       `member "third_party.1.device" cannot be a number`,
		`{"agent":{"name":"12345678","name":"b"}}`:       `member "agent.name" is given twice`,
		`{"` + strings.Repeat("x", 1000) + `":12345678}`: `member "` + strings.Repeat("x", 64) + `" is unknown`,
		`"12345678"`:                                     `the value cannot be a string`,
		`{"audience":"12345678`:                          `not one JSON value in UTF-8`,
		`{"audience":"a"}12345678`:                       `not one JSON value in UTF-8`,
		`{"audience":` + deep + `}`:                      `nested too deeply`,
	} {
		var r IssueRequest
		if err := Decode([]byte(in), &r); err == nil || err.Error() != ErrJSON.Error()+": "+want {
			t.Errorf("%.100s: %v, not %s", in, err, want)
		}
	}
	for _, in := range []string{`{"id":"12345678"}`, `{"not_after":"12345678"}`, `{"branch":12345678}`} {
		var r TokenResponse
		if err := Decode([]byte(in), &r); err == nil || strings.Contains(err.Error(), "12345678") || !strings.Contains(err.Error(), "is not in its form") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// FuzzDecode: what Decode accepts, encoding/json reads the same, and encoded
// again and decoded again it is the same value.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"audience":"corp","caveats":["a"]}`, `{"agent":{"name":"\u0061"}}`, `{"a":1}`, `{"audience":"a","audience":"b"}`, `[`,
		`{"third_party":[{"any_machine":true}]}`, `{"kind":"epoch","epoch":1,"at":"2026-01-02T03:04:05.678Z"}`, `{"set":"AAE="}`,
		`{"id":"01890a5d-ac96-774b-bcce-b302099a8057","not_after":"2026-01-02T03:04:05+01:00","index":18446744073709551615}`,
		`{"at":{"index":1},"revoke":{"kind":"token","expires":-1}}`, `{"generations":{"a":1},"epochs":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		fuzzDecode[IssueRequest](t, in)
		fuzzDecode[TokenResponse](t, in)
		fuzzDecode[RevocationInfo](t, in)
		fuzzDecode[FeedEvent](t, in)
		fuzzDecode[VerifyRequest](t, in)
		fuzzDecode[EpochList](t, in)
	})
}

func fuzzDecode[T any](t *testing.T, in []byte) {
	var got, again, plain T
	if Decode(in, &got) != nil {
		return
	}
	if err := json.Unmarshal(in, &plain); err != nil || !reflect.DeepEqual(got, plain) {
		t.Fatalf("accepted what encoding/json reads otherwise: %v", err)
	}
	out, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if err := Decode(out, &again); err != nil {
		t.Fatalf("what was written is not accepted: %s: %v", out, err)
	}
	third, _ := json.Marshal(again)
	if string(third) != string(out) {
		t.Fatalf("%s became %s", out, third)
	}
}
