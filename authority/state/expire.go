package state

import (
	"bytes"
	"encoding/binary"
	"slices"

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
	prefix := func(kind api.RevocationKind) string { return string(kind) + "\x00" }
	token, branch := prefix(api.RevokeToken), prefix(api.RevokeBranch)
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
	// The index holds the other kinds by hash, and they are few: the records say.
	for _, kind := range []api.RevocationKind{api.RevokeSubject, api.RevokeHolder, api.RevokeDevice, api.RevokeAudience, api.RevokeEpoch} {
		prefixed(a.w.tx, bucketRevocations, []byte(prefix(kind)), func(k, v []byte) {
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
		if capability.TokenID(k[:16]).Millis() >= t-RequestWindow.Milliseconds() {
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
