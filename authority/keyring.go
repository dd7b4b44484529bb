package authority

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// keyring opens sealed keys and derives audience keys. What verifies and what
// mints is the state's to say, and asked every time.
type keyring struct {
	machine *state.Machine
	clock   func() time.Time

	// reopen unwraps the cluster key in force, when that has changed. It is
	// called with mu held.
	reopen func() (*seal.ClusterKey, uint32, error)

	mu      sync.Mutex
	cluster *seal.ClusterKey            // guarded by mu, but for its own methods
	under   uint32                      // its number; guarded by mu
	opened  map[openedName]openedSecret // guarded by mu
	derived map[derivedName]*capability.RootKey
	ca      *issuer // as it was last opened; guarded by mu
}

type openedName struct {
	purpose string
	epoch   uint32
}

// openedSecret is a secret, for as long as it is sealed in the state as it was.
type openedSecret struct {
	sealed []byte
	secret *seal.Secret
}

type derivedName struct {
	audience          string
	epoch, generation uint32
}

// maxDerived bounds the audience keys that are kept derived.
const maxDerived = 4096

func newKeyring(machine *state.Machine, cluster *seal.ClusterKey, under uint32, clock func() time.Time) *keyring {
	return &keyring{
		machine: machine, cluster: cluster, under: under, clock: clock,
		opened: make(map[openedName]openedSecret), derived: make(map[derivedName]*capability.RootKey),
	}
}

// label is the seal's label of a key of this cluster.
func label(cluster string, k *state.SealedKey) seal.Label {
	return seal.Label{Cluster: cluster, Incarnation: k.Incarnation, Purpose: k.Purpose, Epoch: k.Epoch}
}

// newestKey returns the key of a purpose with the highest epoch, or nil.
func newestKey(m *state.Machine, purpose string) (newest *state.SealedKey) {
	for _, k := range m.SealedKeys(purpose) {
		newest = &k // they come by epoch
	}
	return newest
}

// secret opens the sealed secret of a purpose and epoch.
func (r *keyring) secret(purpose string, epoch uint32) (*seal.Secret, error) {
	name := openedName{purpose, epoch}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.machine.SealedKey(purpose, epoch)
	if k == nil {
		delete(r.opened, name)
		return nil, &Error{Code: capability.CodeUnknownKey, Detail: "no such key"}
	}
	if o, ok := r.opened[name]; ok && bytes.Equal(o.sealed, k.Sealed) {
		return o.secret, nil
	}
	k, plain, err := r.open(purpose, epoch)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	s, err := seal.SecretFromBytes(plain)
	if err != nil {
		return nil, err
	}
	r.opened[name] = openedSecret{k.Sealed, s}
	return s, nil
}

// open opens a key as the state has it now. mu is held.
func (r *keyring) open(purpose string, epoch uint32) (k *state.SealedKey, plain []byte, err error) {
	for range followTries {
		if k = r.machine.SealedKey(purpose, epoch); k == nil {
			return nil, nil, &Error{Code: capability.CodeUnknownKey, Detail: "no such key"}
		}
		if err = r.follow(k.Under); err == nil {
			if plain, err = r.cluster.Open(label(r.machine.Cluster().ID, k), k.Sealed); err != nil {
				err = fmt.Errorf("opening the %s key of epoch %d: %w", purpose, epoch, err)
			}
			return k, plain, err
		}
		if !errors.Is(err, errKeyMoved) {
			break
		}
	}
	return nil, nil, err
}

// issuer opens the cluster's CA.
func (r *keyring) issuer() (*issuer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.machine.SealedKey(state.PurposeCA, 1)
	if k == nil {
		return nil, errors.New("authority: the cluster has no CA")
	}
	if r.ca != nil && bytes.Equal(r.ca.public, k.Public) {
		return r.ca, nil
	}
	k, private, err := r.open(state.PurposeCA, 1)
	if err != nil {
		return nil, err
	}
	defer clear(private)
	ca, err := newIssuer(k.Public, private)
	if err == nil {
		r.ca = ca
	}
	return ca, err
}

// follow has the cluster key of this number at hand. mu is held.
func (r *keyring) follow(under uint32) error {
	if under == r.under {
		return nil
	}
	if r.reopen == nil {
		return fmt.Errorf("%w: the cluster key has changed", ErrKeyFile)
	}
	key, number, err := r.reopen()
	if err != nil {
		return fmt.Errorf("following the cluster key to number %d: %w", under, err)
	}
	// Whoever still seals under the old one is refused by the state.
	r.cluster, r.under = key, number
	if number != under {
		return fmt.Errorf("%w: number %d, not %d", errKeyMoved, number, under)
	}
	return nil
}

// errKeyMoved: the cluster key has changed since what is to be opened was read.
var errKeyMoved = fmt.Errorf("%w: the cluster key is another one by now", ErrKeyFile)

// followTries bounds how often a key is read again because the cluster key changed
// in between.
const followTries = 5

// sealer returns the cluster key in force, to seal and to wrap, and its number,
// which what is sealed must carry.
func (r *keyring) sealer() (*seal.ClusterKey, uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for range followTries {
		if err = r.follow(r.machine.Cluster().Key); err == nil || !errors.Is(err, errKeyMoved) {
			break
		}
	}
	return r.cluster, r.under, err
}

// until says when a key of this epoch and generation verifies nothing any more
// (Unix ms; 0: not foreseen); ok is false if it verifies nothing now.
func (r *keyring) until(audience string, epoch, generation uint32) (until int64, ok bool) {
	now := r.clock().UnixMilli()
	within := func(end int64) bool {
		if end != 0 && (until == 0 || end < until) {
			until = end
		}
		return end == 0 || now < end
	}
	if audience == api.AdminAudience {
		if epoch < state.AdminEpoch || r.machine.SealedKey(state.PurposeAdmin, epoch) == nil {
			return 0, false
		}
	} else if !r.epochVerifies(epoch, within) {
		return 0, false
	}
	gens := r.machine.Generations(audience)
	if len(gens) == 0 {
		return until, generation == 0
	}
	for _, g := range gens {
		if g.Generation == generation {
			return until, within(g.Until)
		}
	}
	return 0, false
}

func (r *keyring) epochVerifies(epoch uint32, within func(int64) bool) bool {
	for _, e := range r.machine.Epochs() {
		if e.Epoch == epoch {
			return !e.Revoked && within(e.Until)
		}
	}
	return false
}

// key returns a root key if it verifies now, and until when (Unix ms, or 0).
func (r *keyring) key(audience string, epoch, generation uint32) (*capability.RootKey, int64) {
	until, ok := r.until(audience, epoch, generation)
	if !ok {
		return nil, 0
	}
	k, err := r.derive(audience, epoch, generation)
	if err != nil {
		return nil, 0
	}
	return k, until
}

// derive derives a root key whether or not it verifies now.
func (r *keyring) derive(audience string, epoch, generation uint32) (*capability.RootKey, error) {
	name := derivedName{audience, epoch, generation}
	r.mu.Lock()
	k := r.derived[name]
	r.mu.Unlock()
	if k != nil {
		return k, nil
	}
	bytes, err := r.bytes(audience, epoch, generation)
	if err != nil {
		return nil, err
	}
	k = capability.NewRootKey(bytes)
	r.mu.Lock()
	defer r.mu.Unlock()
	if again := r.derived[name]; again != nil {
		return again, nil // one pointer for one key
	}
	if len(r.derived) >= maxDerived {
		clear(r.derived)
	}
	r.derived[name] = k
	return k, nil
}

// bytes derives the 32 bytes of a root key.
func (r *keyring) bytes(audience string, epoch, generation uint32) ([32]byte, error) {
	purpose := state.PurposeMaster
	if audience == api.AdminAudience {
		purpose = state.PurposeAdmin
	}
	s, err := r.secret(purpose, epoch)
	if err != nil {
		return [32]byte{}, err
	}
	return seal.AudienceKey(s, epoch, generation, audience), nil
}

// mints returns the epoch and generation that mint for an audience at a stamp.
func (r *keyring) mints(audience string, stamp int64) (epoch, generation uint32, err error) {
	for _, g := range r.machine.Generations(audience) {
		if g.MintsFrom <= stamp {
			generation = g.Generation
		}
	}
	if audience == api.AdminAudience {
		if k := newestKey(r.machine, state.PurposeAdmin); k != nil {
			epoch = k.Epoch
		}
	} else {
		for _, e := range r.machine.Epochs() {
			if e.MintsFrom <= stamp && !e.Revoked {
				epoch = e.Epoch
			}
		}
	}
	if epoch == 0 {
		return 0, 0, &Error{Code: capability.CodeUnavailable, Detail: "no key mints at this time", Hint: "writ keys rotate"}
	}
	return epoch, generation, nil
}

// keysOf is the keyring as a capability.Keys: of the admin audience, or of all others.
type keysOf struct {
	ring  *keyring
	admin bool
}

// Key implements capability.Keys.
func (k keysOf) Key(audience []byte, epoch, generation uint32) *capability.RootKey {
	if k.admin != (string(audience) == api.AdminAudience) {
		return nil
	}
	key, _ := k.ring.key(string(audience), epoch, generation)
	return key
}
