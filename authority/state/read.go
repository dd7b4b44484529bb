package state

import (
	"errors"
	"maps"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
)

// The pages of lists.
const (
	DefaultPage = 100
	MaxPage     = 500
	maxScan     = 20000 // records that one page looks at
)

// Cluster describes the cluster as the state has it; ID is empty before Init.
type Cluster struct {
	ID          string
	Incarnation uint64
	BoundMillis int64
	Origin      string // of the audit log
	Key         uint32 // number of the cluster key in force
}

// AppliedIndex is the index of the last entry that the state holds.
func (m *Machine) AppliedIndex() uint64 { return m.applied.Load() }

// read calls f with the index under its lock: f is quick and keeps nothing.
func (m *Machine) read(f func(*memory)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.mem)
}

// view calls f with a read transaction of the state file.
func (m *Machine) view(f func(*bolt.Tx) error) error {
	for {
		err := m.db.Load().View(f)
		if !errors.Is(err, bolterrors.ErrDatabaseNotOpen) || m.db.Load() == nil {
			return err
		}
		// A restore swapped the file between the two: take the new one. After
		// Close there is none, and the error stands.
		if closed := m.db.Load().View(func(*bolt.Tx) error { return nil }); closed != nil {
			return closed
		}
	}
}

// Cluster returns what Init said.
func (m *Machine) Cluster() (c Cluster) {
	m.read(func(mem *memory) {
		c = Cluster{mem.meta.Cluster, mem.meta.Incarnation, mem.meta.BoundMillis, mem.meta.Origin, mem.meta.ClusterKey}
	})
	return c
}

// Stamp is the least stamp, in Unix milliseconds, that the next command may have.
func (m *Machine) Stamp() (ms int64) {
	m.read(func(mem *memory) { ms = mem.meta.MinStamp })
	return ms
}

// Counts is how much there is.
type Counts struct {
	Tokens, Revocations, Services, Leases, Budgets int
	Audit                                          int64
}

// Counts returns how much there is.
func (m *Machine) Counts() (c Counts) {
	m.read(func(mem *memory) {
		c = Counts{len(mem.tokens.byID), mem.revoked.len(), len(mem.services), mem.leases, mem.budgets, mem.edge.Size()}
	})
	return c
}

// AuditEdge returns the edge of the audit tree, and the index that it is of.
func (m *Machine) AuditEdge() (edge audit.Edge, index uint64) {
	m.read(func(mem *memory) { edge, index = mem.edge, mem.meta.Applied })
	return edge, index
}

// Remembers reports whether a caller's request was made, and is still known: the
// same again is answered with what it came to, whatever is in it.
func (m *Machine) Remembers(caller string, request capability.TokenID) (made bool, err error) {
	if request == (capability.TokenID{}) {
		return false, nil
	}
	err = m.view(func(tx *bolt.Tx) error {
		made = tx.Bucket(bucketRequests).Get(requestRecordKey(&Header{Request: request, Actor: Actor{Name: caller}})) != nil
		return nil
	})
	return made, err
}

// ReturnedToken returns the token of a lease that a caller's request closed, for as
// long as the request is known.
func (m *Machine) ReturnedToken(caller string, request capability.TokenID) (id capability.TokenID, ok bool, err error) {
	err = m.view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketRequests).Get(requestRecordKey(&Header{Request: request, Actor: Actor{Name: caller}}))
		if b == nil {
			return nil
		}
		var r requestRecord
		if mustDecode(b, &r); r.Kind != KindReturn {
			return nil
		}
		var result ReturnResult
		mustDecode(r.Result, &result)
		id, ok = result.Token, result.Token != capability.TokenID{}
		return nil
	})
	return id, ok, err
}

// SealedKeys returns the keys of a purpose by epoch.
func (m *Machine) SealedKeys(purpose string) (keys []SealedKey) {
	m.read(func(mem *memory) {
		for name, k := range mem.keys {
			if name.purpose == purpose {
				keys = append(keys, k)
			}
		}
	})
	slices.SortFunc(keys, func(a, b SealedKey) int { return int(int64(a.Epoch) - int64(b.Epoch)) })
	return keys
}

// SealedKey returns the key of a purpose and epoch, or nil.
func (m *Machine) SealedKey(purpose string, epoch uint32) (key *SealedKey) {
	m.read(func(mem *memory) {
		if k, ok := mem.keys[keyName{purpose, epoch}]; ok {
			key = &k
		}
	})
	return key
}

// Epochs returns the epochs in order.
func (m *Machine) Epochs() (epochs []EpochRecord) {
	m.read(func(mem *memory) { epochs = slices.Clone(mem.epochs) })
	return epochs
}

// Generations returns an audience's generations in order: none if it was never rekeyed.
func (m *Machine) Generations(audience string) (gens []GenerationRecord) {
	m.read(func(mem *memory) { gens = mem.generations[audience] })
	return gens // replaced as a whole, never changed
}

// AllGenerations returns the generations of every audience that was rekeyed.
func (m *Machine) AllGenerations() (all map[string][]GenerationRecord) {
	m.read(func(mem *memory) { all = maps.Clone(mem.generations) })
	return all
}

// Service returns a service.
func (m *Machine) Service(name string) (s ServiceRecord, ok bool) {
	m.read(func(mem *memory) {
		if r := mem.services[name]; r != nil {
			s, ok = *r, true
		}
	})
	return s, ok
}

// Services returns the services by name.
func (m *Machine) Services() (all []ServiceRecord) {
	m.read(func(mem *memory) {
		for _, name := range sortedKeys(mem.services) {
			all = append(all, *mem.services[name])
		}
	})
	return all
}

// Registered returns the branch id of a registered token's issued tail and its
// not-after (Unix ms), from memory.
func (m *Machine) Registered(id capability.TokenID) (tail capability.BranchID, notAfter int64, ok bool) {
	m.read(func(mem *memory) {
		if e := mem.tokens.find(id); e != nil {
			tail, notAfter, ok = e.tail, e.notAfter, true
		}
	})
	return tail, notAfter, ok
}

// IsRevoked reports whether a registered token, or one of these points of its
// chain, was revoked, from memory. A token that is not registered is not revoked.
func (m *Machine) IsRevoked(id capability.TokenID, branches []capability.BranchID) (revoked bool) {
	m.read(func(mem *memory) {
		if e := mem.tokens.find(id); e != nil {
			revoked = mem.isRevoked(e, branches)
		}
	})
	return revoked
}

// Revocations is the set of what is revoked, for verifiers: always the same set,
// and as fresh as what this node has applied.
func (m *Machine) Revocations() *revocation.Set { return m.set }

// Token returns a token's record from the state file, or nil.
func (m *Machine) Token(id capability.TokenID) (*TokenRecord, error) {
	var r *TokenRecord
	err := m.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucketTokens).Get(id[:]); b != nil {
			r = new(TokenRecord)
			mustDecode(b, r)
		}
		return nil
	})
	return r, err
}

// LeaseToken returns the token of an open lease.
func (m *Machine) LeaseToken(lease LeaseID) (id capability.TokenID, ok bool, err error) {
	err = m.view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketLeaseTokens).Get(lease[:])
		ok = copy(id[:], b) == len(id)
		return nil
	})
	return id, ok, err
}

// Budgets returns the budgets of a token from the state file.
func (m *Machine) Budgets(id capability.TokenID) ([]api.BudgetInfo, error) {
	var all []api.BudgetInfo
	err := m.view(func(tx *bolt.Tx) error {
		leased := make(map[capability.BranchID]uint64)
		prefixed(tx, bucketLeases, id[:], func(_, v []byte) {
			var r leaseRecord
			mustDecode(v, &r)
			for _, branch := range r.Path {
				leased[branch] += r.Granted
			}
		})
		prefixed(tx, bucketBudgets, id[:], func(k, v []byte) {
			b, branch := decodeBudget(v), capability.BranchID(k[16:])
			all = append(all, api.BudgetInfo{Branch: branch, Limit: b.limit, Remaining: b.remaining, Leased: leased[branch]})
		})
		return nil
	})
	return all, err
}

// TokenQuery selects tokens; empty fields select all.
type TokenQuery struct{ Audience, Subject, Owner string }

// Tokens returns up to limit tokens, newest first, from before the cursor
// (zero: the newest), and the cursor of the next page, zero if there is none.
// A page may be short, or empty, and yet have a next.
func (m *Machine) Tokens(q TokenQuery, cursor capability.TokenID, limit int) (page []*TokenRecord, next capability.TokenID, err error) {
	err = m.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketTokens).Cursor()
		var k, v []byte
		if cursor == (capability.TokenID{}) {
			k, v = c.Last()
		} else if k, _ = c.Seek(cursor[:]); k == nil {
			k, v = c.Last()
		} else {
			k, v = c.Prev()
		}
		for scanned := 0; k != nil; k, v = c.Prev() {
			if len(page) == limit || scanned == maxScan {
				if after, _ := c.Next(); after != nil { // where we just were
					next = capability.TokenID(after)
				}
				return nil
			}
			scanned++
			r := new(TokenRecord)
			mustDecode(v, r)
			if (q.Audience == "" || q.Audience == r.Audience) && (q.Subject == "" || q.Subject == r.Subject) &&
				(q.Owner == "" || q.Owner == r.Owner) {
				page = append(page, r)
			}
		}
		return nil
	})
	return page, next, err
}

// RevocationList returns up to limit revocations of a kind (empty: all) after
// the cursor (empty: the first), and the cursor of the next page.
func (m *Machine) RevocationList(kind api.RevocationKind, cursor string, limit int) (page []RevocationRecord, next string, err error) {
	prefix := ""
	if kind != "" {
		prefix = string(kind) + "\x00"
	}
	err = m.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketRevocations).Cursor()
		k, v := c.Seek([]byte(max(prefix, cursor)))
		if cursor != "" && string(k) == cursor {
			k, v = c.Next()
		}
		last := ""
		for ; k != nil && strings.HasPrefix(string(k), prefix); k, v = c.Next() {
			if len(page) == limit {
				next = last
				return nil
			}
			var r RevocationRecord
			mustDecode(v, &r)
			page = append(page, r)
			last = string(k)
		}
		return nil
	})
	return page, next, err
}

// FeedSnapshot is the whole of what the feed has said and still holds.
type FeedSnapshot struct {
	Index  uint64  // what it is of: events after it follow
	Events []Event // without indexes
}

// FeedSnapshot returns all live revocations and, if registered, the registered
// tokens of these audiences.
func (m *Machine) FeedSnapshot(audiences []string, registered bool) (*FeedSnapshot, error) {
	s := new(FeedSnapshot)
	err := m.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucketMeta).Get(keyMeta); b != nil {
			var me meta
			mustDecode(b, &me)
			s.Index = me.Applied
		}
		return tx.Bucket(bucketRevocations).ForEach(func(_, v []byte) error {
			var r RevocationRecord
			mustDecode(v, &r)
			if r.About == "" || slices.Contains(audiences, r.About) {
				s.Events = append(s.Events, Event{Audience: r.About, Revoke: r.feed()})
			}
			return nil
		})
	})
	if err != nil || !registered {
		return s, err
	}
	// Memory may be a little ahead of the transaction. A token that is
	// registered twice is registered.
	names := make([]name16, len(audiences))
	for i, a := range audiences {
		names[i] = nameHash(a)
	}
	m.read(func(mem *memory) {
		for i := range mem.tokens.slots {
			e := &mem.tokens.slots[i]
			if at := slices.Index(names, e.audience); e.used && at >= 0 {
				s.Events = append(s.Events, Event{
					Audience: audiences[at], Issued: api.FeedIssued{Token: e.id, Branch: e.tail, Expires: e.notAfter},
				})
			}
		}
	})
	return s, nil
}

// Through is the index of the last entry that memory holds: what Events and the
// look-ups from memory are of. It is never behind AppliedIndex.
func (m *Machine) Through() (index uint64) {
	m.read(func(mem *memory) { index = mem.events.through })
	return index
}
