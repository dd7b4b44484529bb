package state

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/raftstore"
)

// TestGoldenClusterCommands pins the encoding of the commands about members.
func TestGoldenClusterCommands(t *testing.T) {
	const file = "testdata/commands-cluster.txt"
	member := testMember("n2")
	member.API, member.State, member.Joined, member.Token = "n2:2", MemberLeaving, epochStart, Digest{3}
	bodies := []any{
		&SetMember{Member: member},
		&RemoveMember{ID: "n2", Reason: "replaced"},
		&AddJoinToken{Hash: Digest{3}, Until: epochStart, Voter: true},
		&JoinMember{Hash: Digest{3}, Member: member, Wrap: SealedKey{Purpose: PurposeWrap + "n2", Incarnation: 1, Sealed: []byte("sealed"), Public: []byte("public"), Under: 4}},
		&RaiseVersion{Version: 1},
	}
	var got strings.Builder
	for i, body := range bodies {
		h := Header{Kind: KindSetMember + Kind(i), Stamp: epochStart, Actor: system, Request: tokenID(epochStart, "r"), Body: Digest{4}}
		c := encode(t, h, body)
		fmt.Fprintf(&got, "%d %s\n", h.Kind, base64.StdEncoding.EncodeToString(c))
		if _, back, err := DecodeCommand(c); err != nil || !reflect.DeepEqual(back, body) {
			t.Errorf("kind %d does not come back: %v\n%+v", h.Kind, err, back)
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
}

// TestEveryKindHasAGolden: no kind of command is without one that is kept, and
// each is read and written as it is.
func TestEveryKindHasAGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/commands*.txt")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	kept := make(map[Kind]bool)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			kind, encoded, _ := strings.Cut(strings.TrimSpace(line), " ")
			c, err := base64.StdEncoding.DecodeString(encoded)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			h, body, err := DecodeCommand(c)
			if err != nil || fmt.Sprint(h.Kind) != kind {
				t.Errorf("%s: kind %s: %v", file, kind, err)
				continue
			}
			if again := encode(t, h, body); !bytes.Equal(again, c) {
				t.Errorf("%s: kind %s is written otherwise than it was read", file, kind)
			}
			kept[h.Kind] = true
		}
	}
	for k := range Kind(1000) {
		if newBody(k) != nil && !kept[k] {
			t.Errorf("no golden command of kind %d", k)
		}
	}
}

// history is a rig that has seen commands of nearly every kind, some of them
// refused: what a log in the field looks like.
func history(t testing.TB) *rig {
	r := lived(t)
	r.must(KindSetMember, &SetMember{Member: testMember("n1")})
	r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{3}, Until: r.stamp + 1000, Voter: true})
	n2 := testMember("n2")
	join := &JoinMember{Hash: Digest{3}, Member: n2, Wrap: SealedKey{Purpose: PurposeWrap + "n2", Incarnation: 1, Sealed: []byte("wrapped")}}
	r.must(KindJoinMember, join)
	r.must(KindJoinMember, join) // its answer was lost
	r.must(KindRaiseVersion, &RaiseVersion{Version: 1})
	n2.State = MemberLeaving
	r.must(KindSetMember, &SetMember{Member: n2})
	r.must(KindRemoveMember, &RemoveMember{ID: "n2", Reason: "replaced"})
	r.refused(api.CodeConflict, KindSetMember, &SetMember{Member: testMember("n2")})
	r.must(KindSetRoots, &SetRoots{Name: "factory", PEM: []byte("certificates")})
	r.must(KindSetPolicy, &SetPolicy{Name: "prod", Document: []byte(`{"format":1}`)})
	r.must(KindAttest, r.evidence("c"))
	r.refused(api.CodeInvalid, KindReturn, &Return{ID: bits("lease"), Lessee: "service:x", Unspent: 1})
	r.must(KindRemoveService, &RemoveService{Name: "files", Reason: "gone"})
	index, hash := r.m.StateHash()
	r.must(KindCheckHash, &CheckHash{Index: index, Hash: hash})
	// Several commands in one entry, one with a stamp that is behind.
	late := Header{Kind: KindExpire, Stamp: r.stamp - 1, Actor: system}
	r.stamp += 2000
	now := Header{Kind: KindExpire, Stamp: r.stamp, Actor: system}
	results := r.apply(encode(t, now, &Expire{T: r.stamp - 500}), encode(t, late, &Expire{T: 1}))
	if results[0].Err != nil || results[1].Err == nil {
		t.Fatal(results)
	}
	r.must(KindRevive, revival(r, 1))
	r.issue("after", "corp", "alice")
	return r
}

// TestGoldenLog replays a log that was written once: it comes to the state that
// it came to then. A node that rebuilds its state from an old log must not come
// to another one than its peers had.
func TestGoldenLog(t *testing.T) {
	const file = "testdata/log-2.txt"
	if *update {
		r := history(t)
		var b strings.Builder
		for _, e := range r.log {
			fmt.Fprintf(&b, "%d %s\n", e.Index, base64.StdEncoding.EncodeToString(e.Command))
		}
		fmt.Fprintf(&b, "hash %x\n", hashOf(r.m))
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var log []raftstore.Entry
	want, kinds := "", make(map[Kind]bool)
	for s := bufio.NewScanner(f); s.Scan(); {
		first, rest, _ := strings.Cut(s.Text(), " ")
		if first == "hash" {
			want = rest
			continue
		}
		index, err := strconv.ParseUint(first, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		entry, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			t.Fatal(err)
		}
		commands, err := DecodeEntry(entry)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commands {
			h, _, err := DecodeCommand(c)
			if err != nil {
				t.Fatal(err)
			}
			kinds[h.Kind] = true
		}
		log = append(log, raftstore.Entry{Index: index, Term: 1, Command: entry})
	}
	if len(kinds) < 20 {
		t.Errorf("the golden log has commands of %d kinds", len(kinds))
	}
	for _, batch := range []int{1, 7, len(log)} {
		m := openMachine(t, new(trail))
		for rest := log; len(rest) > 0; {
			n := min(batch, len(rest))
			m.Apply(rest[:n])
			rest = rest[n:]
		}
		if h := hashOf(m); hex.EncodeToString(h[:]) != want {
			t.Errorf("the golden log, %d entries at a time, is now the state %x", batch, h)
		}
		if m.Cluster().Incarnation != 8 || m.Version() != 1 {
			t.Errorf("%+v, version %d", m.Cluster(), m.Version())
		}
	}
}
