package pop

import (
	"bytes"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"unicode/utf8"
)

// walk walks over an object to its end, and over the objects in it.
func walk(b []byte) error {
	m, err := object(b)
	if err != nil {
		return err
	}
	for {
		name, value, err := m.next()
		if name == nil || err != nil {
			return err
		}
		if value[0] == '{' {
			inner := nested(value)
			for name, err = []byte{}, nil; name != nil && err == nil; {
				name, _, err = inner.next()
			}
			if err != nil {
				return err
			}
		}
	}
}

// FuzzObject holds the walk to encoding/json: it takes nothing that is no JSON
// object in UTF-8, and leaves nothing out but what it is meant to refuse.
func FuzzObject(f *testing.F) {
	for _, s := range []string{
		`{}`, ` {"a":1,"b":[true,false,null,{}],"c":{"d":"e\u0041\/"}} `, `{"a":-0.5e+7,"b":0,"c":1E9}`, `{"a":"\ud800"}`, `{"é":"é"}`,
		`{"a":01}`, `{"a":1.}`, `{"a":1e}`, `{"a":+1}`, `{"a":-}`, `{"a":tru}`, `{"a":"` + "\n" + `"}`, `{"a":"\x41"}`, `{"a":"\u00g0"}`, `{"a":"\u00`,
		`{"a":1,}`, `{,"a":1}`, `{"a":1 "b":2}`, `{"a" 1}`, `{"a":[1,]}`, `{"a":[1 2]}`, `{"a":{"b":1,}}`, `{"a":1}{}`, `{"a":1`, `{"a"`, `{`, ``, `[]`, `{"a":}`, `{a:1}`,
		`{"a":1,"a":2}`, `{"\u0061":1}`, `{"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`,
		`{"a":` + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + `}`, "{\"a\":\"\xff\"}", "\ufeff{}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		valid := utf8.Valid(b) && json.Valid(b) && bytes.Trim(b, " \t\r\n")[0] == '{'
		err := walk(b)
		if err == nil && !valid {
			t.Fatalf("taken, and no JSON object: %q", b)
		}
		if err != nil && valid {
			for _, meant := range []string{"a name twice", "a name with an escape", "too many members"} {
				if strings.Contains(err.Error(), meant) {
					return
				}
			}
			if bytes.Count(b, []byte("["))+bytes.Count(b, []byte("{")) <= maxDepth {
				t.Fatalf("refused, and a JSON object: %q: %v", b, err)
			}
		}
	})
}

// An integer's encoding is that of encoding/asn1, wherever its first one is.
func TestAppendInteger(t *testing.T) {
	for bit := range 257 {
		n := new(big.Int).Rsh(new(big.Int).Lsh(big.NewInt(1), 256), uint(257-bit))
		if bit%3 == 0 && bit > 0 {
			n.Sub(n, big.NewInt(1))
		}
		want, err := asn1.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendInteger(nil, n.FillBytes(make([]byte, 32))); !bytes.Equal(got, want) {
			t.Fatalf("%x: %x, want %x", n, got, want)
		}
	}
}

// A text has one spelling: Go's decoders would skip line breaks.
func TestDecode(t *testing.T) {
	for text, good := range map[string]bool{"QUJD": true, "QUI": true, "QU\nJD": false, "QUJD\r\n": false, "QUJ=": false, "QUJ": false, "QU JD": false, "Q+JD": false} {
		if _, ok := decode(nil, []byte(text)); ok != good {
			t.Errorf("decode %q: %v", text, ok)
		}
	}
	var three [3]byte
	for text, good := range map[string]bool{"QUJD": true, "QUJ\n": false, "\r\nQU": false, "QUI": false, "QUJDQ": false} {
		if ok := decodeExactly(three[:], []byte(text)); ok != good {
			t.Errorf("decode three bytes of %q: %v", text, ok)
		}
	}
}
