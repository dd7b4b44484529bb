// Package revocation holds what has been revoked, in memory, for a million
// entries and more: a look-up costs about one cache miss, takes no lock and
// allocates nothing.
//
// A Set answers the look-ups of capability.Revocations. How fresh its content is, it
// cannot know: whoever feeds it does (authority/replica). Static is a Set
// that counts as always fresh, for tests and for a service that revokes in its
// own process.
package revocation

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/capability"
)

// Set is a set of revocations. Look-ups are safe for concurrent use with each
// other and with changes; changes take turns. Every revocation has an expiry in
// Unix milliseconds: the last moment at which a token that it names could
// still be valid. Revoking again keeps the later expiry and the later cut-off.
type Set struct {
	mu    sync.Mutex // held by whoever changes the set
	state atomic.Pointer[state]

	seed   key
	hashes [2]maphash.Seed
}

// state is one generation of the set's content, swapped as a whole by Reset
// and Swap. Tables are replaced when they grow.
type state struct {
	tokens, branches, keys, names atomic.Pointer[table]
	epochs                        atomic.Pointer[[]epoch]
	whole                         int // entries of tokens that revoke the token; the writer's

	// forgotten is the latest expiry of a revocation that was dropped, Unix ms;
	// 0 if none was. Of a token that ends later nothing has been.
	forgotten atomic.Int64
}

type epoch struct {
	epoch   uint32
	expires int64
}

// Flags of a token's entry.
const (
	flagWhole    = 1
	flagBranches = 2
)

// What a name or key is of, told apart inside one table.
const (
	ofSubject = 1 + iota
	ofAudience
	ofHolder
	ofDevice
)

// New returns an empty set. Its hash is seeded afresh.
func New() *Set {
	s := &Set{hashes: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	s.seed = key{maphash.String(s.hashes[0], "a"), maphash.String(s.hashes[1], "b")}
	s.state.Store(new(state))
	return s
}

func tokenKey(id capability.TokenID) key {
	return key{binary.LittleEndian.Uint64(id[:8]), binary.LittleEndian.Uint64(id[8:])}
}

// branchKey mixes a branch id, which is a hash, with the token's id; that a
// token id is shared by few makes their sum as good as both.
func branchKey(id capability.TokenID, b capability.BranchID) key {
	t := tokenKey(id)
	return key{
		t.a*0x9e3779b97f4a7c15 ^ binary.LittleEndian.Uint64(b[:8]),
		t.b*0x9e3779b97f4a7c15 ^ binary.LittleEndian.Uint64(b[8:]),
	}
}

// hashed is a name's key: 128 bits of two secret hash functions. A collision
// could only refuse a token that was not revoked, never accept one that was.
func hashed[T string | []byte](s *Set, kind uint64, name T) key {
	b := []byte(name)
	return key{maphash.Bytes(s.hashes[0], b) + kind, maphash.Bytes(s.hashes[1], b)}
}

// RevokeToken revokes a token and all that was derived from it.
func (s *Set) RevokeToken(id capability.TokenID, expires int64) {
	s.change(func(st *state) {
		if s.put(&st.tokens, 3, tokenKey(id), expires, flagWhole, 0)&flagWhole == 0 {
			st.whole++
		}
	})
}

// RevokeBranch revokes one branch of a token and all that was derived from it.
func (s *Set) RevokeBranch(id capability.TokenID, b capability.BranchID, expires int64) {
	s.change(func(st *state) {
		// The branch first: a reader that is told to ask for it must find it.
		s.put(&st.branches, 3, branchKey(id, b), expires, 0, 0)
		s.put(&st.tokens, 3, tokenKey(id), expires, flagBranches, 0)
	})
}

// RevokeSubject revokes every token of a subject whose id's time is at or before
// the cut-off, in Unix milliseconds.
func (s *Set) RevokeSubject(subject string, issuedBefore, expires int64) {
	s.change(func(st *state) {
		s.put(&st.names, 4, hashed(s, ofSubject, subject), expires, 0, issuedBefore)
	})
}

// RevokeAudience revokes every token for an audience whose id's time is at or
// before the cut-off, in Unix milliseconds.
func (s *Set) RevokeAudience(audience string, issuedBefore, expires int64) {
	s.change(func(st *state) {
		s.put(&st.names, 4, hashed(s, ofAudience, audience), expires, 0, issuedBefore)
	})
}

// RevokeHolder revokes a holder's key, for whatever token.
func (s *Set) RevokeHolder(k capability.HolderKey, expires int64) {
	s.change(func(st *state) {
		s.put(&st.keys, 3, s.holderKey(k), expires, 0, 0)
	})
}

// RevokeDevice revokes a device.
func (s *Set) RevokeDevice(d capability.DeviceID, expires int64) {
	s.change(func(st *state) {
		s.put(&st.keys, 3, hashed(s, ofDevice, d[:]), expires, 0, 0)
	})
}

func (s *Set) holderKey(k capability.HolderKey) key {
	return hashed(s, ofHolder|uint64(k.Method)<<8, k.Thumbprint[:])
}

// RevokeEpoch revokes every token that was minted with a key epoch.
func (s *Set) RevokeEpoch(n uint32, expires int64) {
	s.change(func(st *state) {
		var list []epoch
		if p := st.epochs.Load(); p != nil {
			list = slices.Clone(*p)
		}
		if i := slices.IndexFunc(list, func(e epoch) bool { return e.epoch == n }); i >= 0 {
			list[i].expires = max(list[i].expires, expires)
		} else {
			list = append(list, epoch{n, expires})
		}
		st.epochs.Store(&list)
	})
}

func (s *Set) change(f func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.state.Load())
}

const maxMillis = 1<<48 - 1

// put adds or renews an entry and returns the flags that it had.
func (s *Set) put(p *atomic.Pointer[table], width int, k key, expires int64, flags uint64, stamp int64) (had uint64) {
	expires = min(max(expires, 0), maxMillis)
	stamp = max(stamp, 0)
	t := p.Load()
	if e := t.find(k); e >= 0 {
		meta := t.entries[e+wordMeta].Load()
		had = meta & (1<<metaBits - 1)
		if width > wordStamp {
			t.entries[e+wordStamp].Store(max(t.entries[e+wordStamp].Load(), uint64(stamp)))
		}
		t.entries[e+wordMeta].Store(max(meta>>metaBits, uint64(expires))<<metaBits | had | flags)
		return had
	}
	if t == nil {
		t = newTable(s.seed, width, 0)
	} else if t.full() {
		t = t.rebuilt(t.n/2+1, func(uint64) bool { return true })
	}
	t.add(k, uint64(expires)<<metaBits|flags, uint64(stamp))
	p.Store(t)
	return 0
}

// Token looks up the token, its subject, audience and epoch. A token that ends no
// later than a revocation that Expire has dropped is Forgotten: it may be the
// one, should the clock that Expire was told have been ahead.
func (s *Set) Token(id *capability.Identity) capability.RevocationState {
	st := s.state.Load()
	if epochs := st.epochs.Load(); epochs != nil {
		for _, e := range *epochs {
			if e.epoch == id.Epoch {
				return capability.Revoked
			}
		}
	}
	if names := st.names.Load(); names != nil {
		issued := uint64(id.ID.Millis())
		for _, k := range [...]key{hashed(s, ofSubject, id.Subject), hashed(s, ofAudience, id.Audience)} {
			if e := names.find(k); e >= 0 && issued <= names.entries[e+wordStamp].Load() {
				return capability.Revoked
			}
		}
	}
	found := capability.Live
	tokens := st.tokens.Load()
	if e := tokens.find(tokenKey(id.ID)); e >= 0 {
		if tokens.entries[e+wordMeta].Load()&flagWhole != 0 {
			return capability.Revoked
		}
		found = capability.BranchesRevoked
	}
	if id.NotAfter <= st.forgotten.Load() && id.NotAfter != 0 {
		return capability.Forgotten
	}
	return found
}

// Branch looks up one branch of a token.
func (s *Set) Branch(id capability.TokenID, b capability.BranchID) bool {
	return s.state.Load().branches.Load().find(branchKey(id, b)) >= 0
}

// Holder looks up a holder's key.
func (s *Set) Holder(k capability.HolderKey) bool {
	keys := s.state.Load().keys.Load()
	return keys != nil && keys.find(s.holderKey(k)) >= 0
}

// Device looks up a device.
func (s *Set) Device(d capability.DeviceID) bool {
	keys := s.state.Load().keys.Load()
	return keys != nil && keys.find(hashed(s, ofDevice, d[:])) >= 0
}

// Expire drops the revocations whose expiry, in Unix milliseconds, is at or before
// t, and returns how many. Until it is called they stay: nothing here reads a
// clock. It copies what remains, while look-ups go on. Should t be of a clock that
// is put back later, the tokens that they named are not accepted for it: see Token.
func (s *Set) Expire(t int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state.Load()
	before := st.len()
	forgotten := st.forgotten.Load()
	keep := func(meta uint64) bool {
		expires := int64(meta >> metaBits)
		if expires <= t {
			forgotten = max(forgotten, expires)
		}
		return expires > t
	}
	var next [4]*table
	tables := [...]*atomic.Pointer[table]{&st.tokens, &st.branches, &st.keys, &st.names}
	for i, p := range tables {
		if old := p.Load(); old != nil {
			next[i] = old.rebuilt(0, keep)
		}
	}
	var epochs []epoch
	if p := st.epochs.Load(); p != nil {
		for _, e := range *p {
			if e.expires > t {
				epochs = append(epochs, e)
			} else {
				forgotten = max(forgotten, e.expires)
			}
		}
	}
	st.forgotten.Store(forgotten) // before anything is gone
	for i, p := range tables {
		if old := p.Load(); old != nil && next[i].n < old.n {
			p.Store(next[i])
		}
	}
	if st.epochs.Load() != nil {
		st.epochs.Store(&epochs)
	}
	st.whole = 0
	if tokens := st.tokens.Load(); tokens != nil {
		for e := 0; e < tokens.n*tokens.width; e += tokens.width {
			st.whole += int(tokens.entries[e+wordMeta].Load() & flagWhole)
		}
	}
	return before - st.len()
}

// Forget has every token that ends at or before t, in Unix milliseconds, be
// Forgotten: whoever fills the set does not know what was revoked of those.
func (s *Set) Forget(t int64) {
	s.change(func(st *state) { st.forgotten.Store(max(st.forgotten.Load(), t)) })
}

func (st *state) len() int {
	n := st.whole + st.branches.Load().len() + st.keys.Load().len() + st.names.Load().len()
	if p := st.epochs.Load(); p != nil {
		n += len(*p)
	}
	return n
}

// Len is how many revocations there are.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Load().len()
}

// MemoryBytes is how much memory the tables take.
func (s *Set) MemoryBytes() int {
	st := s.state.Load()
	return st.tokens.Load().bytes() + st.branches.Load().bytes() + st.keys.Load().bytes() + st.names.Load().bytes()
}

// Reset empties the set.
func (s *Set) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(new(state))
}

// Fresh returns an empty set for Swap: one that shares s's seeds.
func (s *Set) Fresh() *Set {
	f := &Set{seed: s.seed, hashes: s.hashes}
	f.state.Store(new(state))
	return f
}

// Clone returns a copy, good for Swap.
func (s *Set) Clone() *Set {
	c := s.Fresh()
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := s.state.Load(), c.state.Load()
	all := func(uint64) bool { return true }
	for _, p := range [][2]*atomic.Pointer[table]{
		{&from.tokens, &to.tokens}, {&from.branches, &to.branches}, {&from.keys, &to.keys}, {&from.names, &to.names},
	} {
		if t := p[0].Load(); t != nil {
			p[1].Store(t.rebuilt(0, all))
		}
	}
	to.epochs.Store(from.epochs.Load()) // replaced, never changed
	to.whole = from.whole
	to.forgotten.Store(from.forgotten.Load())
	return c
}

// Swap makes the content of other, which must come from s.Fresh or s.Clone, the
// content of s, in one step for every look-up; other is left empty. It is how
// a snapshot is brought in whole.
func (s *Set) Swap(other *Set) {
	if s == other || s.seed != other.seed {
		panic("revocation: swapped with a set that is not of its own making")
	}
	other.mu.Lock()
	next := other.state.Swap(new(state))
	other.mu.Unlock()
	s.mu.Lock()
	s.state.Store(next)
	s.mu.Unlock()
}

// Static is a Set that counts as always fresh.
type Static struct{ *Set }

// Mark is constant.
func (Static) Mark() int64 { return 0 }

// Within is always true.
func (Static) Within(int64, time.Duration) bool { return true }

var _ capability.Revocations = Static{}
