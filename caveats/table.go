package caveats

import (
	"fmt"
	"math"

	"github.com/writ-dev/writ/capability"
)

// table is a bounded map of entries that stop mattering at a moment of their
// own, in a unit of its owner's. It never forgets one that still matters: when it is
// full of those, it takes no more. Anyone can narrow a token in as many ways as
// he likes, so what one token makes is a share of it at most. It is not safe for
// concurrent use.
type table[K comparable, V any] struct {
	index   map[K]int32
	entries []entry[K, V]
	tokens  map[capability.TokenID]int32 // entries of each token
	hand    int                          // where the next search for a dead entry begins
	most    int

	// forgotten is the latest moment at which an entry that was removed was
	// dead: a clock that is before it has been put back.
	forgotten int64
}

type entry[K comparable, V any] struct {
	key   K
	token capability.TokenID // who made it; zero: nobody's share
	until int64              // the entry is dead from this moment on
	value V
}

// share is how many of most entries one token can make: a sixteenth, and not
// fewer than the authority lets a token have of budgets.
func share(most int) int { return max(most/16, min(most, 256)) }

// sweep is how many entries an insertion looks at for a dead one: enough that
// entries die faster than they come, and that no call pays for many.
const sweep = 8

func newTable[K comparable, V any](most int) (*table[K, V], error) {
	if most < 1 || most > math.MaxInt32 {
		return nil, fmt.Errorf("caveats: a table of %d entries", most)
	}
	return &table[K, V]{
		index: make(map[K]int32), tokens: make(map[capability.TokenID]int32), most: most, forgotten: math.MinInt64,
	}, nil
}

// get returns the live or dead entry of key, or nil.
func (t *table[K, V]) get(key K) *entry[K, V] {
	if i, ok := t.index[key]; ok {
		return &t.entries[i]
	}
	return nil
}

// add makes an entry of a token's for a key that has none, or returns nil if the
// table is full, or the token's share of it. The pointer is good until the next add.
func (t *table[K, V]) add(key K, token capability.TokenID, until, now int64) *entry[K, V] {
	if !t.room(1, token, now) {
		return nil
	}
	t.index[key] = int32(len(t.entries))
	t.entries = append(t.entries, entry[K, V]{key: key, token: token, until: until})
	t.count(token, 1)
	return &t.entries[len(t.entries)-1]
}

// room reports whether n entries of a token's can be added at now.
func (t *table[K, V]) room(n int, token capability.TokenID, now int64) bool {
	for range n {
		t.clean(now)
	}
	return t.most-len(t.entries) >= n && share(t.most)-int(t.tokens[token]) >= n
}

func (t *table[K, V]) count(token capability.TokenID, n int32) {
	switch n += t.tokens[token]; {
	case token == capability.TokenID{}:
	case n == 0:
		delete(t.tokens, token)
	default:
		t.tokens[token] = n
	}
}

// clean removes the dead among the next few entries.
func (t *table[K, V]) clean(now int64) {
	for range min(sweep, len(t.entries)) {
		if t.hand >= len(t.entries) {
			t.hand = 0
		}
		e := &t.entries[t.hand]
		if e.until > now {
			t.hand++
			continue
		}
		t.forgotten = max(t.forgotten, e.until)
		delete(t.index, e.key)
		t.count(e.token, -1)
		last := len(t.entries) - 1
		if t.hand != last {
			*e = t.entries[last]
			t.index[e.key] = int32(t.hand)
		}
		t.entries[last] = entry[K, V]{}
		t.entries = t.entries[:last]
		if last == 0 {
			return
		}
	}
}
