package revocation

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/writ-dev/writ/capability"
)

func tokenID(n uint64) capability.TokenID {
	var r [10]byte
	binary.BigEndian.PutUint64(r[2:], n)
	return capability.NewTokenID(int64(1000+n), r)
}

func branchID(n uint64) (b capability.BranchID) {
	binary.LittleEndian.PutUint64(b[3:], n*0x9e3779b97f4a7c15)
	return b
}

func identity(n uint64, subject, audience string, epoch uint32) *capability.Identity {
	return &capability.Identity{ID: tokenID(n), Subject: []byte(subject), Audience: []byte(audience), Epoch: epoch}
}

// oracle is the set as anyone would write it with maps.
type oracle struct {
	token   map[uint64]int64
	branch  map[[2]uint64]int64
	subject map[string][2]int64 // cut-off, expiry
	aud     map[string][2]int64
	holder  map[capability.HolderKey]int64
	device  map[capability.DeviceID]int64
	epoch   map[uint32]int64
}

func newOracle() *oracle {
	return &oracle{map[uint64]int64{}, map[[2]uint64]int64{}, map[string][2]int64{}, map[string][2]int64{},
		map[capability.HolderKey]int64{}, map[capability.DeviceID]int64{}, map[uint32]int64{}}
}

func later[K comparable](m map[K]int64, k K, expires int64) { m[k] = max(m[k], expires) }

func latest(m map[string][2]int64, k string, cut, expires int64) {
	m[k] = [2]int64{max(m[k][0], cut), max(m[k][1], expires)}
}

func drop[K comparable](m map[K]int64, t int64) (n int) {
	for k, e := range m {
		if e <= t {
			delete(m, k)
			n++
		}
	}
	return n
}

func dropCuts(m map[string][2]int64, t int64) (n int) {
	for k, e := range m {
		if e[1] <= t {
			delete(m, k)
			n++
		}
	}
	return n
}

func (o *oracle) state(n uint64, id *capability.Identity) capability.RevocationState {
	_, token := o.token[n]
	_, epoch := o.epoch[id.Epoch]
	s, byS := o.subject[string(id.Subject)]
	a, byA := o.aud[string(id.Audience)]
	if token || epoch || byS && id.ID.Millis() <= s[0] || byA && id.ID.Millis() <= a[0] {
		return capability.Revoked
	}
	for k := range o.branch {
		if k[0] == n {
			return capability.BranchesRevoked
		}
	}
	return capability.Live
}

func TestSetAgainstMaps(t *testing.T) {
	names := []string{"a", "b", "agent-42", "corp"}
	rapid.Check(t, func(t *rapid.T) {
		s, o := New(), newOracle()
		tokens := rapid.Uint64Range(0, 30)
		expiry := rapid.Int64Range(1, 50)
		cut := rapid.Int64Range(990, 1040)
		check := func(s *Set) {
			n := tokens.Draw(t, "token")
			id := identity(n, rapid.SampledFrom(names).Draw(t, "subject"), rapid.SampledFrom(names).Draw(t, "audience"),
				rapid.Uint32Range(0, 3).Draw(t, "epoch"))
			if got, want := s.Token(id), o.state(n, id); got != want {
				t.Fatalf("Token(%d) = %v, want %v", n, got, want)
			}
			b := tokens.Draw(t, "branch")
			if _, want := o.branch[[2]uint64{n, b}]; s.Branch(tokenID(n), branchID(b)) != want {
				t.Fatalf("Branch(%d, %d), want %v", n, b, want)
			}
			k := capability.HolderKey{Method: capability.HolderMethod(1 + n%2), Thumbprint: [32]byte{byte(b)}}
			if _, want := o.holder[k]; s.Holder(k) != want {
				t.Fatalf("Holder(%v), want %v", k, want)
			}
			d := capability.DeviceID{byte(n)}
			if _, want := o.device[d]; s.Device(d) != want {
				t.Fatalf("Device(%v), want %v", d, want)
			}
			all := len(o.token) + len(o.branch) + len(o.subject) + len(o.aud) + len(o.holder) + len(o.device) + len(o.epoch)
			if s.Len() != all {
				t.Fatalf("Len() = %d, want %d", s.Len(), all)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check(s) },
			"token": func(*rapid.T) {
				n, e := tokens.Draw(t, "n"), expiry.Draw(t, "e")
				s.RevokeToken(tokenID(n), e)
				later(o.token, n, e)
			},
			"branch": func(*rapid.T) {
				n, b, e := tokens.Draw(t, "n"), tokens.Draw(t, "b"), expiry.Draw(t, "e")
				s.RevokeBranch(tokenID(n), branchID(b), e)
				later(o.branch, [2]uint64{n, b}, e)
			},
			"subject": func(*rapid.T) {
				n, c, e := rapid.SampledFrom(names).Draw(t, "n"), cut.Draw(t, "c"), expiry.Draw(t, "e")
				s.RevokeSubject(n, c, e)
				latest(o.subject, n, c, e)
			},
			"audience": func(*rapid.T) {
				n, c, e := rapid.SampledFrom(names).Draw(t, "n"), cut.Draw(t, "c"), expiry.Draw(t, "e")
				s.RevokeAudience(n, c, e)
				latest(o.aud, n, c, e)
			},
			"holder": func(*rapid.T) {
				k := capability.HolderKey{Method: capability.HolderMethod(1 + tokens.Draw(t, "m")%2), Thumbprint: [32]byte{byte(tokens.Draw(t, "k"))}}
				e := expiry.Draw(t, "e")
				s.RevokeHolder(k, e)
				later(o.holder, k, e)
			},
			"device": func(*rapid.T) {
				d, e := capability.DeviceID{byte(tokens.Draw(t, "d"))}, expiry.Draw(t, "e")
				s.RevokeDevice(d, e)
				later(o.device, d, e)
			},
			"epoch": func(*rapid.T) {
				n, e := rapid.Uint32Range(0, 9).Draw(t, "n"), expiry.Draw(t, "e")
				s.RevokeEpoch(n, e)
				later(o.epoch, n, e)
			},
			"expire": func(*rapid.T) {
				at := expiry.Draw(t, "t")
				// A token's entry lives as long as anything revoked of it.
				for k, e := range o.branch {
					if _, ok := o.token[k[0]]; ok {
						later(o.token, k[0], e)
					}
				}
				want := drop(o.token, at) + drop(o.branch, at) + dropCuts(o.subject, at) + dropCuts(o.aud, at) +
					drop(o.holder, at) + drop(o.device, at) + drop(o.epoch, at)
				if got := s.Expire(at); got != want {
					t.Fatalf("Expire(%d) = %d, want %d", at, got, want)
				}
			},
			"clone and swap": func(*rapid.T) {
				c := s.Clone()
				s.Reset()
				if s.Len() != 0 {
					t.Fatalf("%d after Reset", s.Len())
				}
				check(c)
				s.Swap(c)
				if c.Len() != 0 {
					t.Fatalf("%d left after Swap", c.Len())
				}
			},
		})
	})
}

// What has been revoked stays so for every reader, through growth.
func TestReadersWhileItGrows(t *testing.T) {
	s := New()
	const n = 5_000
	var done atomic.Uint64
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			for {
				top := done.Load()
				if top == n {
					return
				}
				if top == 0 {
					continue
				}
				i := rng.Uint64N(top)
				if s.Token(identity(i, "x", "y", 0)) != capability.BranchesRevoked || !s.Branch(tokenID(i), branchID(i)) {
					t.Errorf("a revocation of %d was lost", i)
					return
				}
				if s.Token(identity(n+i, "x", "y", 0)) != capability.Live {
					t.Errorf("%d is revoked, and should not be", n+i)
					return
				}
			}
		})
	}
	for i := range uint64(n) {
		s.RevokeBranch(tokenID(i), branchID(i), 1000)
		done.Store(i + 1)
		if i%1000 == 0 {
			s.Expire(10)
		}
	}
	wg.Wait()
	if s.Len() != n {
		t.Errorf("%d entries, want %d", s.Len(), n)
	}
}

// A million revocations take at most 64 bytes each, as does any number past
// the smallest tables, also just after growing.
func TestMemory(t *testing.T) {
	s := New()
	for i := range uint64(20_000) {
		s.RevokeToken(tokenID(i), 1000)
		if got := s.MemoryBytes() / s.Len(); i > 1000 && got > 64 {
			t.Fatalf("%d bytes an entry at %d", got, i)
		}
	}
	// Growth beyond, by the sizes alone.
	for n := minEntries; n <= 1_000_000; n += n/2 + 1 {
		if grown := newTable(key{}, 3, n+n/2+1).bytes(); n > 1000 && grown/(n+1) > 64 {
			t.Errorf("%d bytes an entry after growing at %d", grown/(n+1), n)
		}
	}
}

func TestLookupsDoNotAllocate(t *testing.T) {
	s := New()
	const n = 1000
	for i := range uint64(n) {
		s.RevokeToken(tokenID(i), 1000)
	}
	s.RevokeSubject("someone", 1, 1000)
	s.RevokeHolder(capability.HolderKey{Method: capability.HolderDPoP}, 1000)
	id := identity(n+1, "agent-42", "corp", 1)
	if got := testing.AllocsPerRun(100, func() {
		if s.Token(id) != capability.Live || s.Branch(id.ID, branchID(1)) ||
			s.Holder(capability.HolderKey{Method: capability.HolderMTLS}) || s.Device(capability.DeviceID{}) {
			t.Fatal("a miss that hits")
		}
	}); got != 0 {
		t.Errorf("%v allocations a look-up", got)
	}
}

func TestSwapOfAStranger(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("swapped with a set of other seeds: every look-up would miss")
		}
	}()
	New().Swap(New())
}

func BenchmarkLookupMiss(b *testing.B) {
	const n = 1_000_000
	ids := make([]capability.TokenID, 1<<16)
	for i := range ids {
		ids[i] = tokenID(uint64(n + i*7919))
	}
	b.Run("set", func(b *testing.B) {
		s := New()
		for i := range uint64(n) {
			s.RevokeToken(tokenID(i), 1000)
		}
		i, id := 0, identity(0, "agent-42", "corp", 1)
		for b.Loop() {
			id.ID = ids[i&(1<<16-1)]
			if s.Token(id) != capability.Live {
				b.Fatal("hit")
			}
			i++
		}
	})
	b.Run("map", func(b *testing.B) {
		m := make(map[[16]byte]struct{}, n)
		for i := range uint64(n) {
			m[tokenID(i)] = struct{}{}
		}
		i := 0
		for b.Loop() {
			if _, ok := m[ids[i&(1<<16-1)]]; ok {
				b.Fatal("hit")
			}
			i++
		}
	})
}

// TestForgotten: what a clock that was ahead had the set drop is not taken for
// never having been; what ends later than all that was dropped is as it was.
func TestForgotten(t *testing.T) {
	s := New()
	ends := func(n uint64, ms int64) *capability.Identity {
		id := identity(n, "agent", "corp", 1)
		id.NotAfter = ms
		return id
	}
	s.RevokeToken(tokenID(1), 100)
	s.RevokeBranch(tokenID(2), branchID(2), 200)
	s.RevokeSubject("other", 0, 150)
	s.RevokeEpoch(9, 300)
	if s.Expire(50); s.Token(ends(3, 40)) != capability.Live {
		t.Error("nothing was dropped, and a token is forgotten")
	}
	s.Expire(160)
	for _, set := range []*Set{s, s.Clone()} {
		for _, c := range []struct {
			id   *capability.Identity
			want capability.RevocationState
		}{
			{ends(1, 100), capability.Forgotten}, {ends(7, 150), capability.Forgotten},
			{ends(7, 151), capability.Live}, {ends(2, 200), capability.BranchesRevoked},
		} {
			if got := set.Token(c.id); got != c.want {
				t.Errorf("token %s that ends at %d: %d, want %d", c.id.ID, c.id.NotAfter, got, c.want)
			}
		}
	}
	if s.Expire(1000); s.Token(ends(2, 200)) != capability.Forgotten || s.Token(ends(7, 300)) != capability.Forgotten || s.Token(ends(7, 301)) != capability.Live {
		t.Error("after all was dropped")
	}
	s.RevokeToken(tokenID(7), 400)
	if s.Token(ends(7, 250)) != capability.Revoked {
		t.Error("a token that is known to be revoked is only forgotten")
	}
	s.Swap(s.Fresh())
	if s.Token(ends(1, 100)) != capability.Live {
		t.Error("a new set does not begin anew")
	}
	s.Forget(90)
	s.Forget(10)
	if s.Token(ends(1, 90)) != capability.Forgotten || s.Token(ends(1, 91)) != capability.Live {
		t.Error("Forget, to the last moment and not beyond")
	}
}
