package revocation

import (
	"math/bits"
	"sync/atomic"
)

// key is 128 bits that name one thing: a token's id, or a keyed hash.
type key struct{ a, b uint64 }

// table is an open-addressing hash table without pointers: a slot holds 32 bits
// of the key's hash and the number of an entry. Nearly every look-up is a miss,
// so a Bloom filter of one word a key stands before it, which is small enough to
// stay in the processor's cache: a miss is one load and one branch that
// predicts well, so that the processor gets on with what comes next.
//
// Readers take no lock. There is one writer at a time; an entry and its bits in
// the filter are written before the slot that publishes it, its key never
// changes, and nothing is removed: a table is rebuilt instead.
type table struct {
	seed    key
	width   int             // words an entry: key, meta, and perhaps a stamp
	filter  []atomic.Uint64 // 16 bits an entry, 4 set for each key in its word
	slots   []atomic.Uint64 // hash<<32 | entry+1; 0 is free
	entries []atomic.Uint64
	n       int // entries in use; the writer's
}

const (
	wordKeyA  = 0
	wordKeyB  = 1
	wordMeta  = 2 // expiry in Unix ms << metaBits | flags
	wordStamp = 3

	metaBits = 8

	minEntries = 64
)

// newTable has room for n entries at a load of at most 0.7.
func newTable(seed key, width, n int) *table {
	n = max(n, minEntries)
	return &table{
		seed: seed, width: width,
		filter:  make([]atomic.Uint64, n/4+1),
		slots:   make([]atomic.Uint64, n*10/7+1),
		entries: make([]atomic.Uint64, n*width),
	}
}

// hash folds the key with a secret seed (the multiply-and-fold of wyhash), so
// that nobody who chooses keys can choose where they collide.
func (t *table) hash(k key) uint64 {
	hi, lo := bits.Mul64(k.a^t.seed.a, k.b^t.seed.b)
	return hi ^ lo
}

// bits is where the filter has a hash: the word from its high bits, four bits in
// it from its low ones.
func (t *table) bits(h uint64) (word, mask uint64) {
	word, _ = bits.Mul64(h, uint64(len(t.filter)))
	return word, 1<<(h&63) | 1<<(h>>6&63) | 1<<(h>>12&63) | 1<<(h>>18&63)
}

// find returns the entry's first word, or -1. A nil table has none.
func (t *table) find(k key) int {
	if t == nil {
		return -1
	}
	h := t.hash(k)
	word, mask := t.bits(h)
	if t.filter[word].Load()&mask != mask {
		return -1
	}
	at, _ := bits.Mul64(h, uint64(len(t.slots)))
	for {
		s := t.slots[at].Load()
		if s == 0 {
			return -1
		}
		if uint32(s>>32) == uint32(h) {
			e := (int(uint32(s)) - 1) * t.width
			if t.entries[e+wordKeyA].Load() == k.a && t.entries[e+wordKeyB].Load() == k.b {
				return e
			}
		}
		if at++; at == uint64(len(t.slots)) {
			at = 0
		}
	}
}

// add appends an entry that is not there yet; full tables are the caller's
// to rebuild first.
func (t *table) add(k key, meta, stamp uint64) {
	e := t.n * t.width
	t.entries[e+wordKeyA].Store(k.a)
	t.entries[e+wordKeyB].Store(k.b)
	t.entries[e+wordMeta].Store(meta)
	if t.width > wordStamp {
		t.entries[e+wordStamp].Store(stamp)
	}
	t.n++
	h := t.hash(k)
	word, mask := t.bits(h)
	t.filter[word].Store(t.filter[word].Load() | mask)
	at, _ := bits.Mul64(h, uint64(len(t.slots)))
	for t.slots[at].Load() != 0 {
		if at++; at == uint64(len(t.slots)) {
			at = 0
		}
	}
	t.slots[at].Store(h<<32 | uint64(t.n))
}

func (t *table) full() bool { return (t.n+1)*t.width > len(t.entries) }

// rebuilt copies the entries that keep accepts into a table with room for
// at least extra more.
func (t *table) rebuilt(extra int, keep func(meta uint64) bool) *table {
	live := 0
	for e := 0; e < t.n*t.width; e += t.width {
		if keep(t.entries[e+wordMeta].Load()) {
			live++
		}
	}
	out := newTable(t.seed, t.width, live+extra)
	for e := 0; e < t.n*t.width; e += t.width {
		meta, stamp := t.entries[e+wordMeta].Load(), uint64(0)
		if !keep(meta) {
			continue
		}
		if t.width > wordStamp {
			stamp = t.entries[e+wordStamp].Load()
		}
		out.add(key{t.entries[e+wordKeyA].Load(), t.entries[e+wordKeyB].Load()}, meta, stamp)
	}
	return out
}

func (t *table) bytes() int {
	if t == nil {
		return 0
	}
	return 8 * (len(t.filter) + len(t.slots) + len(t.entries))
}

func (t *table) len() int {
	if t == nil {
		return 0
	}
	return t.n
}
