package state

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
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
	headers, _ := samples()
	cborOf := func(v any) string {
		b, err := encoding.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	header, body := cborOf(headers[KindExpire-1]), cborOf(&Expire{T: 1})
	if body != "\xa1\x01\x01" {
		t.Fatalf("a map of one is %x", body)
	}
	if _, _, err := DecodeCommand(forge(KindExpire, header, body)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	with := func(change func(h *Header)) string {
		h := headers[KindExpire-1]
		change(&h)
		return cborOf(h)
	}
	var fields map[int]any
	if err := decoding.Unmarshal([]byte(header), &fields); err != nil {
		t.Fatal(err)
	}
	fields[99] = 1
	for name, c := range map[string][]byte{
		"nothing":              nil,
		"one byte":             {0},
		"unknown kind":         forge(15, with(func(h *Header) { h.Kind = 15 }), body),
		"kind 0":               forge(0, header, body),
		"kinds differ":         forge(KindExpire, with(func(h *Header) { h.Kind = 5 }), body),
		"no UTF-8":             forge(KindExpire, with(func(h *Header) { h.Actor.Name = "\xff" }), body),
		"unknown header field": forge(KindExpire, cborOf(fields), body),
		"header and more":      forge(KindExpire, header+"\x00", body),
		"unknown field":        forge(KindExpire, header, "\xa2\x01\x01\x02\x01"),
		"duplicate":            forge(KindExpire, header, "\xa2\x01\x01\x01\x01"),
		"a field by its name":  forge(KindExpire, header, "\xa1\x61T\x01"),
		"trailing":             forge(KindExpire, header, body+"\x00"),
		"two values":           forge(KindExpire, header, body+body),
		"a number in more":     forge(KindExpire, header, "\xa1\x01\x18\x01"),
		"a number as text":     forge(KindExpire, header, "\xa1\x611\x01"),
		"without a length":     forge(KindExpire, header, "\xbf\x01\x01\xff"),
		"a tag":                forge(KindExpire, header, "\xa1\x01\xc1\x01"),
		"a floating point":     forge(KindExpire, header, "\xa1\x01\xf9\x3c\x00"),
		"null":                 forge(KindExpire, header, "\xf6"),
		"an array":             forge(KindExpire, header, "\x81\x01"),
		"no body":              forge(KindExpire, header, ""),
		"length beyond":        append([]byte{0, 6, 0xff, 0x01}, header...),
		"long length":          append([]byte{0, 6, 0x80 | 1, 0}, "\xa0"+body...),
	} {
		if _, _, err := DecodeCommand(c); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, e := range map[string][]byte{
		"empty": nil, "version 1": {1, 1, 1}, "version 3": {3, 1, 1}, "nothing in it": {2},
		"length beyond": {2, 9, 1}, "long length": {2, 0x80 | 1, 0, 1},
	} {
		if _, err := DecodeEntry(e); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("entry, %s: %v", name, err)
		}
	}
	if _, err := EncodeCommand(Header{Kind: KindExpire}, &Return{}); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("a body of another kind: %v", err)
	}
}

// TestEveryFieldHasItsNumber: a field without one would be written by its name,
// and of two with the same, one would not be written at all.
func TestEveryFieldHasItsNumber(t *testing.T) {
	types := []any{
		&Header{}, &meta{}, &requestRecord{}, &TokenRecord{}, &RevocationRecord{}, &leaseRecord{}, &ServiceRecord{},
		&SealedKey{}, &EpochRecord{}, &GenerationRecord{}, &PolicyRecord{}, &RootsRecord{}, &DeviceRecord{},
		&MemberRecord{}, &JoinTokenRecord{},
	}
	for k := range Kind(1000) {
		for _, v := range []any{newBody(k), newResult(k)} {
			if v != nil {
				types = append(types, v)
			}
		}
	}
	here, seen := reflect.TypeFor[Header]().PkgPath(), make(map[reflect.Type]bool)
	var check func(of reflect.Type, numbers map[string]string)
	check = func(of reflect.Type, numbers map[string]string) {
		for i := range of.NumField() {
			f := of.Field(i)
			if f.Anonymous {
				check(f.Type, numbers)
				continue
			}
			number, rest, _ := strings.Cut(f.Tag.Get("cbor"), ",")
			if !f.IsExported() || !strings.HasPrefix(rest, "keyasint") || numbers[number] != "" {
				t.Errorf("%v: %s has the number %q, as %q", of, f.Name, number, numbers[number])
			}
			numbers[number] = f.Name
			inner := f.Type
			for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && inner.PkgPath() == here && !seen[inner] {
				seen[inner] = true
				check(inner, make(map[string]string))
			}
		}
	}
	for _, v := range types {
		check(reflect.TypeOf(v).Elem(), make(map[string]string))
	}
}

// TestUnknownCommandStopsTheNode: to skip what it cannot read, a node would
// have to guess.
func TestUnknownCommandStopsTheNode(t *testing.T) {
	r := formed(t)
	entry, err := EncodeEntry(forge(99, "\xa0", "\xa0"))
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
