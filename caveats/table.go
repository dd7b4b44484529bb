package caveats

import (
	"fmt"
	"math"
)

// table is a bounded map of entries that stop mattering at a moment of their
// own, in a unit of its owner's. It never forgets one that still matters: when it is
// full of those, it takes no more. It is not safe for concurrent use.
type table[K comparable, V any] struct {
	index   map[K]int32
	entries []entry[K, V]
	hand    int // where the next search for a dead entry begins
	most    int
}

type entry[K comparable, V any] struct {
	key   K
	until int64 // the entry is dead from this moment on
	value V
}

// sweep is how many entries an insertion looks at for a dead one: enough that
// entries die faster than they come, and that no call pays for many.
const sweep = 8

func newTable[K comparable, V any](most int) (*table[K, V], error) {
	if most < 1 || most > math.MaxInt32 {
		return nil, fmt.Errorf("caveats: a table of %d entries", most)
	}
	return &table[K, V]{index: make(map[K]int32), most: most}, nil
}

// get returns the live or dead entry of key, or nil.
func (t *table[K, V]) get(key K) *entry[K, V] {
	if i, ok := t.index[key]; ok {
		return &t.entries[i]
	}
	return nil
}

// add makes an entry for a key that has none, or returns nil if the table is
// full. The pointer is good until the next add.
func (t *table[K, V]) add(key K, until, now int64) *entry[K, V] {
	t.clean(now)
	if len(t.entries) == t.most {
		return nil
	}
	t.index[key] = int32(len(t.entries))
	t.entries = append(t.entries, entry[K, V]{key: key, until: until})
	return &t.entries[len(t.entries)-1]
}

// room reports whether n entries can be added at now.
func (t *table[K, V]) room(n int, now int64) bool {
	for range n {
		t.clean(now)
	}
	return t.most-len(t.entries) >= n
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
		delete(t.index, e.key)
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
