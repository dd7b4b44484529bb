package replica

import (
	"fmt"
	"sync"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
)

// dataset is what the feed of one incarnation has said. It only grows, but for
// what expires: events may be applied twice and in any order, which is what
// lets two streams feed one set.
type dataset struct {
	incarnation uint64
	revoked     *revocation.Set
	issued      *issuedTable
}

func newDataset(incarnation uint64) *dataset {
	return &dataset{incarnation: incarnation, revoked: revocation.New(), issued: newIssuedTable()}
}

// revoke adds a revocation. An error means that it could not be understood,
// and that the stream is of no use.
func (d *dataset) revoke(f *api.FeedRevocation) error {
	switch f.Kind {
	case api.RevokeToken, api.RevokeBranch:
		id, err := capability.ParseTokenID(f.Token)
		if err != nil {
			return fmt.Errorf("revocation of a token: %w", err)
		}
		if f.Kind == api.RevokeToken {
			d.revoked.RevokeToken(id, f.Expires)
			return nil
		}
		b, err := capability.ParseBranchID(f.Branch)
		if err != nil {
			return fmt.Errorf("revocation of a branch: %w", err)
		}
		d.revoked.RevokeBranch(id, b, f.Expires)
	case api.RevokeSubject:
		if f.Subject == "" {
			return errEmptyRevocation
		}
		d.revoked.RevokeSubject(f.Subject, f.Until, f.Expires)
	case api.RevokeAudience:
		if f.Audience == "" {
			return errEmptyRevocation
		}
		d.revoked.RevokeAudience(f.Audience, f.Until, f.Expires)
	case api.RevokeHolder:
		k, err := capability.ParseHolderKey(f.Holder)
		if err != nil {
			return fmt.Errorf("revocation of a holder: %w", err)
		}
		d.revoked.RevokeHolder(k, f.Expires)
	case api.RevokeDevice:
		id, err := capability.ParseDeviceID(f.Device)
		if err != nil {
			return fmt.Errorf("revocation of a device: %w", err)
		}
		d.revoked.RevokeDevice(id, f.Expires)
	case api.RevokeEpoch:
		d.revoked.RevokeEpoch(f.Epoch, f.Expires)
	default:
		return fmt.Errorf("revocation of an unknown kind %.32q", string(f.Kind))
	}
	return nil
}

var errEmptyRevocation = fmt.Errorf("revocation that names nothing: %w", capability.ErrBadID)

// issuedTable holds the registered tokens, in maps without pointers.
type issuedTable struct {
	shards [16]struct {
		mu sync.RWMutex
		m  map[capability.TokenID]issued // guarded by mu
	}
}

type issued struct {
	tail    capability.BranchID
	expires int64 // Unix ms
}

func newIssuedTable() *issuedTable { return &issuedTable{} }

// shardOf takes the last byte, which is random in a UUIDv7.
func shardOf(id capability.TokenID) int { return int(id[15] & 15) }

func (t *issuedTable) put(id capability.TokenID, i issued) {
	s := &t.shards[shardOf(id)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[capability.TokenID]issued)
	}
	s.m[id] = i
}

func (t *issuedTable) get(id capability.TokenID) (issued, bool) {
	s := &t.shards[shardOf(id)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.m[id]
	return i, ok
}

func (t *issuedTable) len() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		n += len(s.m)
		s.mu.RUnlock()
	}
	return n
}

// expire drops what ended at or before ms.
func (t *issuedTable) expire(ms int64) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id, v := range s.m {
			if v.expires <= ms {
				delete(s.m, id)
			}
		}
		s.mu.Unlock()
	}
}
