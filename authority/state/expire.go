package state

import (
	"bytes"
	"encoding/binary"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// maxExpired bounds the tokens, the revocations and the requests that one
// Expire drops of each, so that no command holds up the ones behind it; what
// is left goes with the next.
const maxExpired = 4096

// expire drops what ended before T. Nothing else does: no clock is read.
func (a *applier) expire(h *Header, b *Expire) (*ExpireResult, error) {
	if h.Actor.Name != SystemActor || b.T > h.Stamp {
		return nil, refuse(api.CodeInvalid, "only what has ended expires")
	}
	var r ExpireResult
	r.Tokens, r.Leases = a.expireTokens(b.T)
	r.Revocations = a.expireRevocations(b.T)
	r.Requests = a.expireRequests(b.T)
	for _, name := range sortedKeys(a.services) {
		// A join secret that was never used takes its service's name along.
		if s := a.services[name]; !s.Joined && s.JoinUntil < b.T {
			a.w.delete(bucketServices, []byte(name))
			delete(a.services, name)
			r.Services++
		}
	}
	a.expireChallenges(b.T)
	a.expireJoinTokens(b.T)
	keys := a.expireKeys(b.T)
	if went := (ExpireResult{Requests: r.Requests}); r != went || keys {
		a.audit(h, auditRecord{
			Action: "expire", NotAfter: b.T,
			Expired: &expiredCounts{r.Tokens, r.Revocations, r.Leases, r.Services, r.Requests},
		})
	}
	return &r, nil
}

// Due reports whether an Expire of T would drop anything. It may change by the time
// that one is applied, to no harm.
func (m *Machine) Due(t int64) (due bool, err error) {
	m.read(func(mem *memory) { due = mem.due(t) })
	if due {
		return true, nil
	}
	err = m.view(func(tx *bolt.Tx) error {
		due = dueOnFile(tx, t)
		return nil
	})
	return due, err
}

// due is Due as far as the index can tell.
func (m *memory) due(t int64) bool {
	for i := range m.tokens.slots {
		if e := &m.tokens.slots[i]; e.used && e.keep < t {
			return true
		}
	}
	for _, expires := range m.revoked.tokens {
		if expires < t {
			return true
		}
	}
	for _, expires := range m.revoked.branches {
		if expires < t {
			return true
		}
	}
	for _, token := range m.cluster.joins {
		if token.Until < t {
			return true
		}
	}
	for _, name := range sortedKeys(m.services) {
		if s := m.services[name]; !s.Joined && s.JoinUntil < t {
			return true
		}
	}
	if len(m.epochs) > 1 && m.epochs[0].Until != 0 && m.epochs[0].Until < t {
		return true
	}
	for _, audience := range sortedKeys(m.generations) {
		if g := m.generations[audience]; len(g) > 1 && g[0].Until != 0 && g[0].Until < t {
			return true
		}
	}
	return false
}

// dueOnFile is Due as far as it takes the state file.
func dueOnFile(tx *bolt.Tx, t int64) (due bool) {
	for _, kind := range rareRevocations {
		prefixed(tx, bucketRevocations, revocationPrefix(kind), func(_, v []byte) {
			var r RevocationRecord
			mustDecode(v, &r)
			due = due || r.Expires < t
		})
	}
	// Requests and challenges lie in the order in which they end.
	if k, _ := tx.Bucket(bucketRequests).Cursor().First(); k != nil && requestEnded(k, t) {
		return true
	}
	k, _ := tx.Bucket(bucketAttest).Cursor().Seek([]byte{keyChallenge})
	return due || k != nil && bytes.Compare(k, challengeKey(max(t, 0), ChallengeID{})) < 0
}

// rareRevocations are the kinds that the index holds by hash. They are few: the
// records say when they end.
var rareRevocations = []api.RevocationKind{api.RevokeSubject, api.RevokeHolder, api.RevokeDevice, api.RevokeAudience, api.RevokeEpoch}

func revocationPrefix(kind api.RevocationKind) []byte { return append([]byte(kind), 0) }

// requestEnded reports whether a request's id, with which its key begins, has left
// the window.
func requestEnded(key []byte, t int64) bool {
	return capability.TokenID(key[:16]).Millis() < t-RequestWindow.Milliseconds()
}

// least collects the maxExpired least of the keys that it is given, in whatever
// order they come: the index is in another on a node that was restored.
type least struct {
	keys [][]byte
	most []byte // no key beyond it is among them; nil: not known yet
	key  []byte // the one at hand
}

// add takes the key that is prefix and name one after the other.
func (l *least) add(prefix string, name []byte) {
	l.key = append(append(l.key[:0], prefix...), name...)
	if l.most != nil && bytes.Compare(l.key, l.most) > 0 {
		return
	}
	l.keys = append(l.keys, bytes.Clone(l.key))
	if len(l.keys) == 2*maxExpired {
		l.most = l.sorted()[maxExpired-1]
	}
}

// sorted returns them.
func (l *least) sorted() [][]byte {
	slices.SortFunc(l.keys, bytes.Compare)
	l.keys = l.keys[:min(len(l.keys), maxExpired)]
	return l.keys
}

func (a *applier) expireTokens(t int64) (tokens, leases int) {
	var ids least
	for i := range a.tokens.slots {
		if e := &a.tokens.slots[i]; e.used && e.keep < t {
			ids.add("", e.id[:])
		}
	}
	for _, key := range ids.sorted() {
		id := capability.TokenID(key)
		if a.tokens.find(id).budgets > 0 {
			n := a.w.deletePrefixed(bucketLeases, id[:], func(k, _ []byte) { a.w.delete(bucketLeaseTokens, k[16:]) })
			leases += n
			a.leases -= n
			a.w.deletePrefixed(bucketLessees, id[:], nil)
			a.budgets -= a.w.deletePrefixed(bucketBudgets, id[:], nil)
		}
		a.w.delete(bucketTokens, id[:])
		a.tokens.remove(id)
	}
	return len(ids.keys), leases
}

func (a *applier) expireRevocations(t int64) int {
	r := &a.revoked
	var ended least
	token, branch := string(revocationPrefix(api.RevokeToken)), string(revocationPrefix(api.RevokeBranch))
	for id, expires := range r.tokens {
		if expires < t {
			ended.add(token, id[:])
		}
	}
	for b, expires := range r.branches {
		if expires < t {
			ended.add(branch, b[:])
		}
	}
	for _, kind := range rareRevocations {
		prefixed(a.w.tx, bucketRevocations, revocationPrefix(kind), func(k, v []byte) {
			var rec RevocationRecord
			if mustDecode(v, &rec); rec.Expires < t {
				ended.add("", k)
			}
		})
	}
	keys := ended.sorted()
	for _, k := range keys {
		var rec RevocationRecord
		mustDecode(a.w.get(bucketRevocations, k), &rec)
		a.w.delete(bucketRevocations, k)
		r.remove(&rec)
	}
	if len(keys) > 0 {
		a.set.Expire(t - 1)
	}
	return len(keys)
}

// expireRequests forgets requests whose ids have left the window. Their keys
// begin with the id's time.
func (a *applier) expireRequests(t int64) int {
	var keys [][]byte
	c := a.w.tx.Bucket(bucketRequests).Cursor()
	for k, _ := c.First(); k != nil && len(keys) < maxExpired; k, _ = c.Next() {
		if !requestEnded(k, t) {
			break
		}
		keys = append(keys, append([]byte(nil), k...))
	}
	for _, k := range keys {
		a.w.delete(bucketRequests, k)
	}
	return len(keys)
}

// expireKeys drops the masters of epochs, and the generations, that verify
// nothing any more. The last of each stays, since it numbers the next.
func (a *applier) expireKeys(t int64) (changed bool) {
	for len(a.epochs) > 1 && a.epochs[0].Until != 0 && a.epochs[0].Until < t {
		n := a.epochs[0].Epoch
		a.w.delete(bucketEpochs, binary.BigEndian.AppendUint32(nil, n))
		a.deleteKey(PurposeMaster, n)
		a.epochs = slices.Clone(a.epochs[1:])
		changed = true
	}
	for _, audience := range sortedKeys(a.generations) {
		gens := a.generations[audience]
		n := 0
		for n < len(gens)-1 && gens[n].Until != 0 && gens[n].Until < t {
			n++
		}
		if n > 0 {
			a.putGenerations(audience, slices.Clone(gens[n:]))
			changed = true
		}
	}
	return changed
}
