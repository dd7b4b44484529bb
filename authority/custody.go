package authority

import (
	"context"
	"fmt"
	"strings"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
)

// reopenClusterKey unwraps the cluster key in force with the node's key file,
// which is read again: between two such changes no private key is in memory.
func (a *Authority) reopenClusterKey() (*seal.ClusterKey, uint32, error) {
	identity, err := openIdentity(a.cfg, false)
	if err != nil {
		return nil, 0, err
	}
	defer identity.Destroy()
	wrapped := a.machine.SealedKey(state.PurposeWrap+a.cfg.NodeID, 0)
	if wrapped == nil {
		return nil, 0, fmt.Errorf("%w: the cluster's key is not wrapped for a node %q", ErrKeyFile, a.cfg.NodeID)
	}
	key, err := identity.Unwrap(label(a.machine.Cluster().ID, wrapped), wrapped.Sealed)
	return key, wrapped.Under, err
}

// RotateClusterKey draws a new cluster key and seals every key there is anew
// under it, in one command; nodes and the recovery recipient get it wrapped. It
// returns the new key's number. The node goes on meanwhile. Backups from before
// open as they did: with what opened the key of their time.
func (a *Authority) RotateClusterKey(ctx context.Context, c Call) (uint32, error) {
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindReseal, c),
		compose: func(int64) (any, error) { return a.composeReseal() },
	})
	if err != nil {
		return 0, err
	}
	return value.(*state.ResealResult).Number, nil
}

func (a *Authority) composeReseal() (*state.Reseal, error) {
	old, under, err := a.keys.sealer()
	if err != nil {
		return nil, err
	}
	key, err := seal.NewClusterKey(a.cfg.Rand)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	cluster := a.machine.Cluster()
	keys, of := a.machine.SealedState()
	b := &state.Reseal{Of: of}
	for _, k := range keys {
		if strings.HasPrefix(k.Purpose, state.PurposeWrap) {
			k, err = wrapFor(cluster.ID, cluster.Incarnation, under+1, k.Purpose, k.Public, key)
		} else {
			k, err = resealed(a.cfg, cluster.ID, old, key, k)
		}
		if err != nil {
			return nil, err
		}
		b.Keys = append(b.Keys, k)
	}
	return b, nil
}

// resealed is a key under the next cluster key, otherwise as it was.
func resealed(cfg Config, cluster string, old, next *seal.ClusterKey, k state.SealedKey) (state.SealedKey, error) {
	plain, err := old.Open(label(cluster, &k), k.Sealed)
	if err != nil {
		return k, fmt.Errorf("opening the %s key of epoch %d: %w", k.Purpose, k.Epoch, err)
	}
	defer clear(plain)
	k.Under++
	k.Sealed, err = next.Seal(cfg.Rand, label(cluster, &k), plain)
	return k, err
}

// SetRecovery has the cluster key wrapped for a recovery recipient, in place of
// the one before, or of none.
func (a *Authority) SetRecovery(ctx context.Context, c Call, recipient string) error {
	to, err := seal.ParseRecipient(recipient)
	if err != nil {
		return invalid("recipient: not of the form writ-recipient-…")
	}
	_, _, err = a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindSetKey, c),
		compose: func(int64) (any, error) {
			key, under, err := a.keys.sealer()
			if err != nil {
				return nil, err
			}
			cluster := a.machine.Cluster()
			k, err := wrapFor(cluster.ID, cluster.Incarnation, under, state.PurposeWrap+"recovery", to.Bytes(), key)
			return &state.SetKey{Key: k}, err
		},
	})
	return err
}

// Recipients says for whom the cluster key is wrapped, and its number.
func (a *Authority) Recipients() *api.RecipientList {
	list := &api.RecipientList{Number: a.machine.Cluster().Key, Recipients: []api.RecipientInfo{}}
	keys, _ := a.machine.SealedState()
	for _, k := range keys {
		name, ok := strings.CutPrefix(k.Purpose, state.PurposeWrap)
		if !ok {
			continue
		}
		info := api.RecipientInfo{Name: name}
		if to, err := seal.RecipientFromBytes(k.Public); err == nil {
			info.Recipient = to.String()
		}
		list.Recipients = append(list.Recipients, info)
	}
	return list
}
