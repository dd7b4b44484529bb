package state

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// samples has one command of every kind, with every field set.
func samples() (headers []Header, bodies []any) {
	id, branch, digest := tokenID(epochStart, "sample"), capability.BranchID(bits("branch")), Digest(bytes.Repeat([]byte{7}, 32))
	record := TokenRecord{
		ID: id, Audience: "corp", Subject: "alice", Owner: "o@corp.example", Purpose: "Q3 <&> \"é\"", Auditor: "b", Agent: []byte(`{"name":"x"}`),
		NotAfter: epochStart + 300_000, Epoch: 1, Generation: 2, Unsigned: []byte{2, 2, 3}, Tail: branch,
		Parent: &Parent{Token: id, Branches: []capability.BranchID{branch}}, Actors: []string{"files"}, Holders: []string{"jkt:x"},
		IssuedBy: "root", Request: id, Body: digest, Index: 9,
	}
	key := SealedKey{Purpose: PurposeMaster, Epoch: 2, Incarnation: 1, Sealed: []byte("sealed"), Public: []byte("public")}
	bodies = []any{
		&Init{Cluster: "c", Incarnation: 1, BoundMillis: 5000, Origin: "o", Keys: []SealedKey{key}},
		&Issue{Record: record, Caveats: []string{"action read"}},
		&Revoke{Kind: "branch", Token: id, Branch: branch, Subject: "s", Holder: "h", Device: "d", Audience: "a", Epoch: 3, Reason: "r", Expires: epochStart},
		&Lease{ID: bits("l"), Token: id, Chain: []capability.BranchID{branch}, Path: []PathPoint{{branch, 3}}, Want: 2, Lessee: "svc", Close: bits("c"), Unspent: 1},
		&Return{ID: bits("l"), Lessee: "svc", Unspent: 1},
		&Expire{T: epochStart},
		&AddEpoch{Key: key, MintsFrom: epochStart, OldUntil: epochStart + 1},
		&Rekey{Audience: "corp", Reason: "r", MintsFrom: epochStart, OldUntil: epochStart + 1},
		&AddService{Name: "files", Audiences: []string{"corp"}, Derive: []string{"next"}, Keyless: true, JoinHash: digest, JoinUntil: epochStart},
		&JoinService{Name: "files", Hash: digest, Record: record, Caveats: []string{"action feed"}},
		&RemoveService{Name: "files", Reason: "gone"},
		&SetKey{Key: key},
		&CheckHash{Index: 7, Hash: digest},
		&Reincarnate{Incarnation: 2, Origin: "o2"},
	}
	for i := range bodies {
		headers = append(headers, Header{
			Kind: Kind(i + 1), Stamp: epochStart, Request: id, Body: digest,
			Actor: Actor{Name: "root", Token: id, Branches: []capability.BranchID{branch}, Audience: "writ"},
		})
	}
	return headers, bodies
}

// TestGoldenCommands pins the encoding: what is in a log must be readable, and
// mean the same, for good.
func TestGoldenCommands(t *testing.T) {
	const file = "testdata/commands.txt"
	headers, bodies := samples()
	var got strings.Builder
	for i := range bodies {
		c := encode(t, headers[i], bodies[i])
		fmt.Fprintf(&got, "%d %s\n", headers[i].Kind, base64.StdEncoding.EncodeToString(c))
		h, body, err := DecodeCommand(c)
		if err != nil || !reflect.DeepEqual(h, headers[i]) || !reflect.DeepEqual(body, bodies[i]) {
			t.Errorf("kind %d does not come back: %v\n%+v", headers[i].Kind, err, body)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got.String() {
		t.Error("the encoding of a command has changed: logs in the field cannot be read")
	}
	if n := strings.Count(string(want), "\n"); n != len(bodies) || n != int(KindReincarnate) {
		t.Errorf("%d golden commands for %d kinds", n, KindReincarnate)
	}
}

// forge makes a command from parts that EncodeCommand would not write.
func forge(kind Kind, header, body string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(kind))
	b = binary.AppendUvarint(b, uint64(len(header)))
	return append(append(b, header...), body...)
}

func TestDecodeIsStrict(t *testing.T) {
	headers, bodies := samples()
	h, err := json.Marshal(headers[KindExpire-1])
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(bodies[KindExpire-1])
	if err != nil {
		t.Fatal(err)
	}
	header, body := string(h), string(b)
	if _, _, err := DecodeCommand(forge(KindExpire, header, body)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, c := range map[string][]byte{
		"nothing":              nil,
		"one byte":             {0},
		"unknown kind":         forge(15, strings.Replace(header, `"kind":6`, `"kind":15`, 1), body),
		"kind 0":               forge(0, header, body),
		"kinds differ":         forge(KindExpire, strings.Replace(header, `"kind":6`, `"kind":5`, 1), body),
		"unknown field":        forge(KindExpire, header, strings.Replace(body, "{", `{"more":1,`, 1)),
		"unknown header field": forge(KindExpire, strings.Replace(header, "{", `{"more":1,`, 1), body),
		"duplicate":            forge(KindExpire, header, strings.Replace(body, "{", `{"t":1,`, 1)),
		"other case":           forge(KindExpire, header, strings.Replace(body, `"t"`, `"T"`, 1)),
		"trailing":             forge(KindExpire, header, body+"\n"),
		"two values":           forge(KindExpire, header, body+body),
		"space":                forge(KindExpire, header, " "+body),
		"header too long":      forge(KindExpire, header+" ", body),
		"null":                 forge(KindExpire, header, "null"),
		"no body":              forge(KindExpire, header, ""),
		"exponent":             forge(KindExpire, header, `{"t":1e3}`),
		"length beyond":        append([]byte{0, 6, 0xff, 0x01}, header...),
		"long length":          append([]byte{0, 6, 0x80 | 2, 0}, "{}"...),
	} {
		if _, _, err := DecodeCommand(c); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, e := range map[string][]byte{
		"empty": nil, "version 0": {0, 1, 1}, "version 2": {2, 1, 1}, "nothing in it": {1},
		"length beyond": {1, 9, 1}, "long length": {1, 0x80 | 1, 0, 1},
	} {
		if _, err := DecodeEntry(e); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("entry, %s: %v", name, err)
		}
	}
	if _, err := EncodeCommand(Header{Kind: KindExpire}, &Return{}); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("a body of another kind: %v", err)
	}
}

// TestUnknownCommandStopsTheNode: to skip what it cannot read, a node would
// have to guess.
func TestUnknownCommandStopsTheNode(t *testing.T) {
	r := formed(t)
	entry, err := EncodeEntry(forge(99, `{}`, `{}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("applied: %v", err)
		}
	}()
	r.m.Apply([]raftstore.Entry{{Index: r.index + 1, Term: 1, Command: entry}})
}

func FuzzDecodeEntry(f *testing.F) {
	headers, bodies := samples()
	for i := range bodies {
		c, err := EncodeCommand(headers[i], bodies[i])
		if err != nil {
			f.Fatal(err)
		}
		e, err := EncodeEntry(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		commands, err := DecodeEntry(entry)
		if err != nil {
			return
		}
		var again [][]byte
		for _, c := range commands {
			h, body, err := DecodeCommand(c)
			if err != nil {
				return
			}
			again = append(again, encode(t, h, body))
		}
		e, err := EncodeEntry(again...)
		if err != nil || !bytes.Equal(e, entry) {
			t.Fatalf("accepted, and written otherwise: %v", err)
		}
	})
}
