package capability

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"
)

// ways is how many entries share a place in a cache.
const ways = 4

// places is a cache of a fixed number of entries without locks: a key has one
// place, a place has a few ways, and an entry, once stored, is never changed.
// Two that store at once may lose one entry, which costs a verification.
type places[E any] struct {
	seed maphash.Seed
	at   [][ways]atomic.Pointer[E]
}

func newPlaces[E any](entries int) *places[E] {
	return &places[E]{seed: maphash.MakeSeed(), at: make([][ways]atomic.Pointer[E], (entries+ways-1)/ways)}
}

func (p *places[E]) of(key []byte) *[ways]atomic.Pointer[E] {
	return &p.at[maphash.Bytes(p.seed, key)%uint64(len(p.at))]
}

// maxPrefixesOfToken caps what one token can take of its place.
const maxPrefixesOfToken = 2

// prefixEntry is a chain that this verifier has verified: the exact bytes, and
// the signature at each point. Any prefix of it is as good as the whole. It is
// never found by a signature that somebody presented.
type prefixEntry struct {
	id       TokenID
	key      *RootKey // what it was verified with
	notAfter int64
	bytes    []byte   // the root through its last caveat
	ends     []uint16 // where each point ends in bytes: header, caveats
	sigs     [][32]byte
	used     atomic.Bool // hit since it was last considered for eviction
}

// prefixCache remembers chains. Only keys that are still handed out by Keys, and
// bytes that are identical, make a hit; everything after the chain's MAC is
// done anew each time.
type prefixCache struct{ *places[prefixEntry] }

func newPrefixCache(n int) *prefixCache { return &prefixCache{newPlaces[prefixEntry](n)} }

// find returns the entry that shares the longest prefix with the root, and how
// many points that is.
func (c *prefixCache) find(set []byte, l *layout, id *Identity, key *RootKey) (best *prefixEntry, points int) {
	place := c.of(id.ID[:])
	for i := range place {
		e := place[i].Load()
		if e == nil || e.id != id.ID {
			continue
		}
		if e.key != key && !sameBytes(e.key.derived[:], key.derived[:]) {
			place[i].CompareAndSwap(e, nil) // rekeyed
			continue
		}
		if n := e.shared(set, l); n > points {
			best, points = e, n
		}
	}
	if best != nil && !best.used.Load() {
		best.used.Store(true)
	}
	return best, points
}

// shared is how many points the root's chain shares with the entry's.
func (e *prefixEntry) shared(set []byte, l *layout) int {
	root, start := l.root(), 0
	for i, end := range e.ends {
		if i > int(root.last) || l.pointEnd(i) != int(end) || !sameBytes(e.bytes[start:end], set[start:end]) {
			return i
		}
		start = int(end)
	}
	return len(e.ends)
}

// pointEnd is where a point of the root ends: the header, or a caveat.
func (l *layout) pointEnd(point int) int {
	if point == 0 {
		id := l.macaroons[0].id
		return int(id.off) + int(id.n) + 1
	}
	return int(l.caveats[point-1].end)
}

// worthStoring is whether a chain of so many points, of which some were found,
// is to be remembered. One that is narrowed anew for every call (a request
// caveat and an expiry) is not: it would never be seen again.
func worthStoring(points, found int) bool { return found == 0 || points-found > 2 }

// store remembers the chain of a token that has just been granted.
func (c *prefixCache) store(g *Grant, key *RootKey, now int64) {
	n := g.points()
	if !worthStoring(n, g.shared) {
		return
	}
	e := &prefixEntry{
		id: g.id.ID, key: key, notAfter: g.id.NotAfter,
		bytes: slices.Clone(g.buf[:g.layout.pointEnd(n-1)]),
		ends:  make([]uint16, n), sigs: make([][32]byte, n),
	}
	for i := range n {
		e.ends[i], e.sigs[i] = uint16(g.layout.pointEnd(i)), *g.sigAt(i)
	}
	place := c.of(e.id[:])
	victim, own := -1, 0
	for i := range place {
		old := place[i].Load()
		if old == nil || old.notAfter <= now {
			victim = i
			continue
		}
		if old.id == e.id {
			if own++; own == maxPrefixesOfToken {
				victim = i
				break
			}
		}
	}
	// Second chance: the first way that was not hit since it was last passed over.
	for i := 0; victim < 0; i = (i + 1) % ways {
		if old := place[i].Load(); old == nil || !old.used.Swap(false) {
			victim = i
		}
	}
	place[victim].Store(e)
}

// drop forgets a token.
func (c *prefixCache) drop(id TokenID) {
	place := c.of(id[:])
	for i := range place {
		if e := place[i].Load(); e != nil && e.id == id {
			place[i].CompareAndSwap(e, nil)
		}
	}
}

// sameBytes compares in a time that depends on the lengths alone, a word at a
// time.
func sameBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	var diff uint64
	for len(a) >= 8 && len(b) >= 8 {
		diff |= binary.NativeEndian.Uint64(a) ^ binary.NativeEndian.Uint64(b)
		a, b = a[8:], b[8:]
	}
	for i := range min(len(a), len(b)) {
		diff |= uint64(a[i] ^ b[i])
	}
	return diff == 0
}

// answerEntry is an authority's yes to exactly one token set.
type answerEntry struct {
	sum      [sha256.Size]byte // of the set
	branches []BranchID
	until    int64 // Unix milliseconds
}

type answerCache struct {
	*places[answerEntry]
	age int64 // milliseconds
}

// WithAnswerCache has a keyless verifier remember up to n of the authority's
// positive answers, each for exactly the bytes it was given for, at most for
// age by the requests' clock and never past the token's not-after. Revocations are
// looked up for every call all the same.
func WithAnswerCache(n int, age time.Duration) Option {
	return func(v *Verifier) error {
		if v.auth == nil || n <= 0 || age < time.Millisecond {
			return errors.New("an answer cache is for a keyless verifier, with a size and an age")
		}
		v.answers = &answerCache{newPlaces[answerEntry](n), age.Milliseconds()}
		return nil
	}
}

// find appends the branch ids of an answer that is still good.
func (c *answerCache) find(sum *[sha256.Size]byte, now int64, branches []BranchID) ([]BranchID, bool) {
	place := c.of(sum[:])
	for i := range place {
		e := place[i].Load()
		if e == nil || e.sum != *sum {
			continue
		}
		if now < e.until-c.age || now >= e.until {
			place[i].CompareAndSwap(e, nil) // stale, or the clock stepped back
			continue
		}
		return append(branches, e.branches...), true
	}
	return branches, false
}

func (c *answerCache) store(sum *[sha256.Size]byte, branches []BranchID, now, notAfter int64) {
	until := min(now+c.age, notAfter)
	if until <= now {
		return
	}
	place := c.of(sum[:])
	victim := int(sum[0]) % ways
	for i := range place {
		if old := place[i].Load(); old == nil || old.until <= now || old.sum == *sum {
			victim = i
			break
		}
	}
	place[victim].Store(&answerEntry{sum: *sum, branches: slices.Clone(branches), until: until})
}
