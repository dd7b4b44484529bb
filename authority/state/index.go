package state

import (
	"crypto/sha256"

	"github.com/writ-dev/writ/capability"
)

// name16 stands for a name (a subject, an audience, an actor) in an index, so
// that the index holds no pointers and the garbage collector never walks it.
type name16 [16]byte

func nameHash[S string | []byte](s S) name16 {
	sum := sha256.Sum256([]byte(s))
	return name16(sum[:16])
}

// requestKey stands for (actor, request id).
func requestKey(actor string, request capability.TokenID) name16 {
	var space [256]byte
	b := append(space[:0], request[:]...)
	b = append(b, actor...)
	sum := sha256.Sum256(b)
	return name16(sum[:16])
}

// tokenEntry is what memory holds of a registered token: no pointers. The
// record itself is in the state file.
type tokenEntry struct {
	id, tail          [16]byte
	subject, audience name16
	request           name16 // of (issuer, request id); zero for none
	notAfter          int64  // Unix ms
	keep              int64  // Unix ms: the record is kept until then
	epoch, generation uint32
	// A derived token hangs on its parent's list of children. These are slots;
	// 0 is none.
	parent, child, next, prev uint32
	budgets                   uint16
	holders, used             bool
}

// tokenIndex is the registry in memory.
type tokenIndex struct {
	slots    []tokenEntry // slots[0] is never used
	free     []uint32
	byID     map[capability.TokenID]uint32
	requests map[name16]uint32
	parents  map[uint32]struct{} // slots that have children
}

func newTokenIndex() tokenIndex {
	return tokenIndex{
		slots: make([]tokenEntry, 1), byID: make(map[capability.TokenID]uint32),
		requests: make(map[name16]uint32), parents: make(map[uint32]struct{}),
	}
}

// find returns the token's entry, which is good until the next add, or nil.
func (t *tokenIndex) find(id capability.TokenID) *tokenEntry {
	if slot, ok := t.byID[id]; ok {
		return &t.slots[slot]
	}
	return nil
}

// keepUntil is when a token's record may go: it has ended, and so has the
// time in which the request that made it can be retried.
func keepUntil(r *TokenRecord) int64 {
	if r.Request == (capability.TokenID{}) {
		return r.NotAfter
	}
	return max(r.NotAfter, r.Request.Millis()+RequestWindow.Milliseconds())
}

func (t *tokenIndex) add(r *TokenRecord) {
	e := tokenEntry{
		id: r.ID, tail: r.Tail, subject: nameHash(r.Subject), audience: nameHash(r.Audience),
		notAfter: r.NotAfter, keep: keepUntil(r), epoch: r.Epoch, generation: r.Generation,
		holders: len(r.Holders) > 0, used: true,
	}
	var slot uint32
	if n := len(t.free); n > 0 {
		slot, t.free = t.free[n-1], t.free[:n-1]
	} else {
		slot = uint32(len(t.slots))
		t.slots = append(t.slots, tokenEntry{})
	}
	if r.Request != (capability.TokenID{}) {
		e.request = requestKey(r.IssuedBy, r.Request)
		t.requests[e.request] = slot
	}
	t.slots[slot] = e
	t.byID[r.ID] = slot
}

// link hangs a token on the one that it was derived from, if that is still there.
func (t *tokenIndex) link(id, parent capability.TokenID) {
	slot, ok := t.byID[id]
	p, there := t.byID[parent]
	if !ok || !there {
		return
	}
	e := &t.slots[slot]
	e.parent, e.next = p, t.slots[p].child
	if e.next != 0 {
		t.slots[e.next].prev = slot
	}
	t.slots[p].child = slot
	t.parents[p] = struct{}{}
}

func (t *tokenIndex) remove(id capability.TokenID) {
	slot, ok := t.byID[id]
	if !ok {
		return
	}
	e := t.slots[slot]
	for c := e.child; c != 0; {
		next := t.slots[c].next
		t.slots[c].parent, t.slots[c].prev, t.slots[c].next = 0, 0, 0
		c = next
	}
	delete(t.parents, slot)
	if e.parent != 0 {
		if e.prev != 0 {
			t.slots[e.prev].next = e.next
		} else if t.slots[e.parent].child = e.next; e.next == 0 {
			delete(t.parents, e.parent)
		}
		if e.next != 0 {
			t.slots[e.next].prev = e.prev
		}
	}
	if e.request != (name16{}) && t.requests[e.request] == slot {
		delete(t.requests, e.request)
	}
	delete(t.byID, id)
	t.slots[slot] = tokenEntry{}
	t.free = append(t.free, slot)
}

// children returns the ids of the tokens derived from one, in the order of ids.
func (t *tokenIndex) children(id capability.TokenID) []capability.TokenID {
	slot, ok := t.byID[id]
	if !ok {
		return nil
	}
	var ids []capability.TokenID
	for c := t.slots[slot].child; c != 0; c = t.slots[c].next {
		ids = append(ids, t.slots[c].id)
	}
	return sortedIDs(ids)
}

// withChildren returns the ids of the tokens that others were derived from and
// that f selects, in the order of ids.
func (t *tokenIndex) withChildren(f func(e *tokenEntry) bool) []capability.TokenID {
	var ids []capability.TokenID
	for slot := range t.parents {
		if e := &t.slots[slot]; f(e) {
			ids = append(ids, e.id)
		}
	}
	return sortedIDs(ids) // and so the map's order does not show
}
