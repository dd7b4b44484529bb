package attest_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/writ-dev/writ/caveats/attest"
)

// fuzz holds a parser to this: what it accepts, it writes in a form that it
// reads as the same, and what it refuses, it refuses with a reason.
func fuzz[T any](f *testing.F, parse func([]byte) (*T, error), write func(*T) ([]byte, error), seeds ...string) {
	for _, s := range seeds {
		if _, err := parse([]byte(s)); err != nil {
			f.Fatalf("the seed %q is refused: %v", s, err)
		}
		f.Add([]byte(s))
		f.Add([]byte(s[:len(s)/2]))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		v, err := parse(document)
		if err != nil {
			if attest.ReasonOf(err) == "" {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		text, err := write(v)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(text)
		if err != nil {
			t.Fatalf("written as %s, which is refused: %v", text, err)
		}
		if twice, err := write(again); err != nil || !bytes.Equal(text, twice) {
			t.Fatalf("written as %s and then as %s, %v", text, twice, err)
		}
	})
}

func marshal[T any](v *T) ([]byte, error) { return json.Marshal(v) }

const b16, b32 = "AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

func FuzzBegin(f *testing.F) {
	fuzz(f, attest.DecodeBegin, marshal, `{"caveat":"AA==","ek_certificate":"MAA=","intermediates":["MAA="],"ak":"ACM=","holder":"ACM="}`)
}

func FuzzChallenge(f *testing.F) {
	fuzz(f, attest.DecodeChallenge, marshal, `{"challenge":"`+b16+`","nonce":"`+b32+`","audience":"corp","policy":"prod","policy_version":1,`+
		`"credential":"AA==","secret":"AA==","pcrs":[0,7],"expires":"2026-11-24T09:00:00Z","state":"AA=="}`)
}

func FuzzFinish(f *testing.F) {
	fuzz(f, attest.DecodeFinish, marshal, `{"challenge":"`+b16+`","activation":"`+b32+`","quote":"AA==","quote_signature":"AA==","pcrs":["`+b32+`"],`+
		`"certify":"AA==","certify_signature":"AA==","signature":"AA==","posture":"e30="}`)
}

func FuzzPolicy(f *testing.F) {
	fuzz(f, attest.ParsePolicy, marshal, document)
}

func FuzzPosture(f *testing.F) {
	fuzz(f, attest.DecodePosture, (*attest.Posture).Encode, `{"agent":"a","version":"1","process_hash":"`+strings.Repeat("00", 32)+`","host_id":"h","os":"debian","patch":"12.7"}`)
}

func FuzzPending(f *testing.F) {
	fuzz(f, attest.DecodePending, (*attest.Pending).Encode, `{"id":"`+b16+`","nonce":"`+b32+`","secret":"`+b32+`","expires":"2026-11-24T09:00:00Z","audience":"corp",`+
		`"caveat_hash":"`+zeros+`","policy":"prod","policy_version":1,"kind":"rsa-2048","device":"`+zeros+`","ek_name":"AA==","ak":"AA==","holder":"AA=="}`)
}
