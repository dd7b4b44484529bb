package api

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeIsStrict(t *testing.T) {
	good := []string{
		`{"audience":"corp","subject":"a","owner":"o","purpose":"p"}`,
		" {\t\"audience\" : \"corp\" , \"agent\":{\"name\":\"n\"}, \"caveats\":[\"action read\",\"}\\\"{\"]}\n",
		`{"audience":"corp","caveats":null,"agent":null,"ttl_seconds":300}`,
		`{}`,
		`{"third_party":[{"discharger":"d","condition":"c"},{}]}`,
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

func TestDecodeQuotesNoValue(t *testing.T) {
	var r JoinRequest
	err := Decode([]byte(`{"name":"n","join_secret":12345678}`), &r)
	if err == nil || strings.Contains(err.Error(), "12345678") {
		t.Errorf("error %v", err)
	}
}

// FuzzDecode: what Decode accepts, encoding/json reads the same, and encoded
// again and decoded again it is the same value.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"audience":"corp","caveats":["a"]}`, `{"agent":{"name":"\u0061"}}`, `{"a":1}`, `{"audience":"a","audience":"b"}`, `[`, `{"third_party":[{"any_machine":true}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var got, again, plain IssueRequest
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
	})
}
