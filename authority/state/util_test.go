package state

import (
	"crypto/sha256"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// epochStart is where the tests' clocks begin.
var epochStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixMilli()

// trail is an AuditSink in memory that behaves as the log does.
type trail struct {
	mu      sync.Mutex
	origin  string
	edge    audit.Edge
	last    uint64
	records [][]byte
	synced  int
}

func (s *trail) Open(origin string, edge audit.Edge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.origin != origin {
		s.origin, s.edge, s.records, s.last = origin, audit.Edge{}, nil, 0
	}
	if edge.Size() > s.edge.Size() {
		return audit.ErrBehind
	}
	return nil
}

func (s *trail) Append(index uint64, records ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index <= s.last {
		return nil // a replay
	}
	s.last = index
	for _, r := range records {
		s.edge.Append(audit.RecordHash(r))
		s.records = append(s.records, r)
	}
	return nil
}

func (s *trail) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = len(s.records)
	return nil
}

// rig drives one machine: it encodes commands into entries and keeps the log.
type rig struct {
	t     testing.TB
	m     *Machine
	trail *trail
	log   []raftstore.Entry
	index uint64
	stamp int64
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, trail: new(trail), index: 1, stamp: epochStart}
	r.m = openMachine(t, r.trail)
	return r
}

func openMachine(t testing.TB, sink AuditSink) *Machine {
	t.Helper()
	m, err := Open(Config{Path: filepath.Join(t.TempDir(), "state.db"), Audit: sink, Events: 1024})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// formed is a rig with a cluster whose bound is one second.
func formed(t testing.TB) *rig {
	t.Helper()
	r := newRig(t)
	r.must(KindInit, &Init{
		Cluster: "0123456789abcdef0123456789abcdef", Incarnation: 1, BoundMillis: 1000, Origin: "writ/audit/test/1",
		Keys: []SealedKey{
			{Purpose: PurposeMaster, Epoch: 1, Incarnation: 1, Sealed: []byte("sealed master 1")},
			{Purpose: PurposeAdmin, Epoch: AdminEpoch, Incarnation: 1, Sealed: []byte("sealed admin")},
		},
	})
	return r
}

func encode(t testing.TB, h Header, body any) []byte {
	t.Helper()
	c, err := EncodeCommand(h, body)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// apply applies commands as one entry.
func (r *rig) apply(commands ...[]byte) []Result {
	r.t.Helper()
	e, err := EncodeEntry(commands...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.index++
	entry := raftstore.Entry{Index: r.index, Term: 1, Command: e}
	r.log = append(r.log, entry)
	return r.m.Apply([]raftstore.Entry{entry})[0].([]Result)
}

// as applies one command of an actor, a millisecond after the one before.
func (r *rig) as(actor Actor, request capability.TokenID, body Digest, kind Kind, b any) (any, error) {
	r.t.Helper()
	r.stamp++
	return r.now(actor, request, body, kind, b)
}

// now is as without moving the clock: for bodies that name the stamp.
func (r *rig) now(actor Actor, request capability.TokenID, body Digest, kind Kind, b any) (any, error) {
	r.t.Helper()
	h := Header{Kind: kind, Stamp: r.stamp, Actor: actor, Request: request, Body: body}
	res := r.apply(encode(r.t, h, b))[0]
	return res.Value, res.Err
}

var system = Actor{Name: SystemActor}

func (r *rig) do(kind Kind, b any) (any, error) {
	r.t.Helper()
	return r.as(system, capability.TokenID{}, Digest{}, kind, b)
}

func (r *rig) must(kind Kind, b any) any {
	r.t.Helper()
	v, err := r.do(kind, b)
	if err != nil {
		r.t.Fatalf("%T: %v", b, err)
	}
	return v
}

func (r *rig) refused(code api.Code, kind Kind, b any) {
	r.t.Helper()
	if _, err := r.do(kind, b); !errors.Is(err, code) {
		r.t.Fatalf("%T: got %v, want %v", b, err, code)
	}
}

// bits makes an id from a name.
func bits(name string) (b [16]byte) {
	sum := sha256.Sum256([]byte(name))
	copy(b[:], sum[:])
	return b
}

func tokenID(stamp int64, name string) capability.TokenID {
	b := bits(name)
	return capability.NewTokenID(stamp, [10]byte(b[:10]))
}

// record makes the record of a token issued at the next stamp.
func (r *rig) record(name, audience, subject string) TokenRecord {
	epoch := uint32(1)
	if audience == api.AdminAudience {
		epoch = AdminEpoch
	}
	return TokenRecord{
		ID: tokenID(r.stamp+1, name), Audience: audience, Subject: subject, Owner: "owner", Purpose: "purpose",
		NotAfter: r.stamp + 300_000, Epoch: epoch, Unsigned: []byte("macaroon of " + name), Tail: bits(name + "/tail"),
	}
}

// issue issues a token and returns its id.
func (r *rig) issue(name, audience, subject string) capability.TokenID {
	r.t.Helper()
	rec := r.record(name, audience, subject)
	r.must(KindIssue, &Issue{Record: rec})
	return rec.ID
}

// derive issues a token that hangs on another.
func (r *rig) derive(name string, parent capability.TokenID, branches ...string) capability.TokenID {
	r.t.Helper()
	rec := r.record(name, "next", "someone")
	rec.NotAfter -= 10_000
	rec.Parent = &Parent{Token: parent}
	for _, b := range branches {
		rec.Parent.Branches = append(rec.Parent.Branches, bits(b))
	}
	r.must(KindIssue, &Issue{Record: rec})
	return rec.ID
}

// replay applies the whole log to a fresh machine, in batches of n.
func (r *rig) replay(n int) (*Machine, *trail) {
	r.t.Helper()
	sink := new(trail)
	m := openMachine(r.t, sink)
	for log := r.log; len(log) > 0; {
		k := min(n, len(log))
		m.Apply(log[:k])
		log = log[k:]
	}
	return m, sink
}

func hashOf(m *Machine) Digest {
	_, h := m.StateHash()
	return h
}
