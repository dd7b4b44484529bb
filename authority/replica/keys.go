package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

const (
	keysTimeout = 10 * time.Second
	keysEvery   = 5 * time.Minute // keys are fetched at least as often, should an event have been missed
	maxKeys     = 4096
)

// keyring is the root keys at one moment; it is replaced in whole.
type keyring struct {
	keys        []ringKey
	incarnation uint64
	fetched     bool
}

type ringKey struct {
	audience          string
	epoch, generation uint32
	key               *capability.RootKey
	until             int64 // Unix ms; 0: open
}

func (k *keyring) find(audience []byte, epoch, generation uint32) *capability.RootKey {
	for i := range k.keys {
		e := &k.keys[i]
		if e.epoch == epoch && e.generation == generation && e.audience == string(audience) {
			return e.key
		}
	}
	return nil
}

// Key implements capability.Keys.
func (r *Replica) Key(audience []byte, epoch, generation uint32) *capability.RootKey {
	return r.keys.Load().find(audience, epoch, generation)
}

func (r *Replica) keysChanged() {
	select {
	case r.refetch <- struct{}{}:
	default:
	}
}

// runKeys fetches the keys: at first, when the feed says that they have
// changed, before one of them ends, and now and then.
func (r *Replica) runKeys() {
	failures := 0
	for {
		err := r.fetchKeys()
		wait := r.untilKeysEnd()
		if err != nil {
			r.log.Warn("fetching keys", "error", err)
			r.feed.report(fmt.Errorf("fetching keys: %w", err))
			failures++
			wait = min(50*time.Millisecond<<min(failures, 8), maxBackoff)
		} else {
			failures = 0
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-r.refetch:
			t.Stop()
			if err != nil && !r.pause(50*time.Millisecond) {
				return
			}
		case <-r.ctx.Done():
			t.Stop()
			return
		}
	}
}

// sameIncarnation refuses an answer of another incarnation than the feed's: what
// was revoked in that one is not what this replica looks up.
func (r *Replica) sameIncarnation(asOf api.Cursor) error {
	switch d := r.data.Load(); {
	case asOf.Incarnation < d.incarnation:
		return fmt.Errorf("%w: incarnation %d", ErrBehind, asOf.Incarnation)
	case asOf.Incarnation > d.incarnation:
		return fmt.Errorf("incarnation %d, and the feed is of %d", asOf.Incarnation, d.incarnation)
	}
	return nil
}

func (r *Replica) fetchKeys() error {
	ctx, cancel := context.WithTimeout(r.ctx, keysTimeout)
	defer cancel()
	set, err := r.client.Keys(ctx, r.cfg.Audiences...)
	if err != nil {
		return err
	}
	return r.takeKeys(set)
}

// takeKeys puts a key set in force, unless it is of another incarnation than the
// feed. The first set may come ahead of the feed's snapshot, which drops it
// again where the two do not agree.
func (r *Replica) takeKeys(set *api.KeySet) error {
	ring, err := r.ring(set)
	if err != nil {
		return err
	}
	r.feed.mu.Lock()
	defer r.feed.mu.Unlock()
	if r.data.Load().incarnation != 0 {
		if err := r.sameIncarnation(set.AsOf); err != nil {
			return fmt.Errorf("keys: %w", err)
		}
	}
	r.keys.Store(ring)
	r.feed.err = nil
	r.feed.wake()
	return nil
}

// ring checks a key set and keeps the RootKey of every key that stays: a
// prefix cache knows keys by it.
func (r *Replica) ring(set *api.KeySet) (*keyring, error) {
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, more than %d", len(set.Keys), maxKeys)
	}
	old, ring := r.keys.Load(), &keyring{incarnation: set.AsOf.Incarnation, fetched: true}
	now := r.now().UnixMilli()
	for i := range set.Keys {
		k := &set.Keys[i]
		if len(k.Secret) != 32 || !slices.Contains(r.cfg.Audiences, k.Audience) {
			return nil, fmt.Errorf("a key that was not asked for, or is none")
		}
		e := ringKey{audience: k.Audience, epoch: k.Epoch, generation: k.Generation, key: capability.NewRootKey([32]byte(k.Secret))}
		clear(k.Secret)
		if !k.Until.IsZero() {
			if e.until = k.Until.UnixMilli(); e.until+expiryMargin < now {
				continue
			}
		}
		if was := old.find([]byte(e.audience), e.epoch, e.generation); was != nil && was.Equal(e.key) {
			e.key = was
		}
		if ring.find([]byte(e.audience), e.epoch, e.generation) != nil {
			return nil, fmt.Errorf("two keys of one audience, epoch and generation")
		}
		ring.keys = append(ring.keys, e)
	}
	// The newest first: it is asked for most.
	slices.SortFunc(ring.keys, func(a, b ringKey) int {
		if a.epoch != b.epoch {
			return int(int64(b.epoch) - int64(a.epoch))
		}
		return int(int64(b.generation) - int64(a.generation))
	})
	return ring, nil
}

// untilKeysEnd is how long until the next key ends or all are to be fetched.
func (r *Replica) untilKeysEnd() time.Duration {
	wait, now := keysEvery, r.now().UnixMilli()
	for _, k := range r.keys.Load().keys {
		if k.until > now {
			wait = min(wait, time.Duration(k.until-now)*time.Millisecond+time.Second)
		}
	}
	return max(wait, time.Second)
}
