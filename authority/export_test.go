package authority

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// SetFree has the authority take its disk's free bytes from free. It is called
// before anything is asked of the node.
func (a *Authority) SetFree(free func() (uint64, error)) { a.proposer.free = free }

// What SetFree is told for issues, and for revocations, to be refused below.
const (
	MinFree       = minFree
	MinFreeRevoke = minFreeRevoke
)

// Stolen is what whoever has a copy of a node's directory and of its key file can
// open of it.
type Stolen struct {
	machine *state.Machine
	trail   *trail
	keys    *keyring
}

// Steal opens a copy of a node's directory with its key file, without the node.
func Steal(ctx context.Context, cfg Config) (*Stolen, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := recoverStore(cfg, cfg.NodeID); err != nil {
		return nil, err
	}
	o, err := openAlone(ctx, cfg, "")
	if err != nil {
		return nil, err
	}
	if err := o.store.Close(); err != nil {
		return nil, err
	}
	identity, err := openIdentity(cfg, false)
	if err != nil {
		return nil, err
	}
	defer identity.Destroy()
	key, err := unwrapFor(o.machine, identity)
	if err != nil {
		return nil, err
	}
	return &Stolen{machine: o.machine, trail: o.trail, keys: newKeyring(o.machine, key, o.machine.Cluster().Key, cfg.Clock)}, nil
}

// Close lets go of the copy.
func (s *Stolen) Close() error { return errors.Join(s.trail.close(), s.machine.Close()) }

// RootKey is the key of an audience, of the admin audience too.
func (s *Stolen) RootKey(audience string, epoch uint32) (*capability.RootKey, error) {
	return s.keys.derive(audience, epoch, 0)
}

// Registered makes a registered token whole again.
func (s *Stolen) Registered(id capability.TokenID) (*capability.Token, error) {
	r, err := s.machine.Token(id)
	if err != nil {
		return nil, err
	}
	key, err := s.keys.derive(r.Audience, r.Epoch, r.Generation)
	if err != nil {
		return nil, err
	}
	return capability.Remint(key, r.Unsigned)
}

// Secret is a secret of the cluster.
func (s *Stolen) Secret(purpose string) ([]byte, error) {
	secret, err := s.keys.secret(purpose, 1)
	if err != nil {
		return nil, err
	}
	return secret.Expose()
}

// Certificate is one for a server of the API.
func (s *Stolen) Certificate(hosts ...string) (*tls.Certificate, error) {
	c := certificates{issuer: s.keys.issuer, node: "n1", hosts: hosts, clock: time.Now}
	return c.get(nil)
}

// Opens reports how many of a node's sealed keys open under the cluster key that
// was stolen, or that the stolen identity unwraps.
func (s *Stolen) Opens(a *Authority, cfg Config) (n int, err error) {
	identity, err := openIdentity(cfg, false)
	if err != nil {
		return 0, err
	}
	defer identity.Destroy()
	keys, _ := a.machine.SealedState()
	for _, k := range keys {
		l := label(a.machine.Cluster().ID, &k)
		if _, err := s.keys.cluster.Open(l, k.Sealed); err == nil {
			n++
		}
		if _, err := identity.Unwrap(l, k.Sealed); err == nil {
			n++
		}
	}
	return n, nil
}
