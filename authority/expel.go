package authority

import (
	"context"
	"fmt"
	"strings"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// RemoveCompromised removes a node, or takes one that was removed before, and
// leaves it nothing that works: a new incarnation begins, with a new cluster key,
// CA, audit key and discharger's key, a new master and a new admin key (see
// state.Expel). All happens in one change, in which nothing of before outlives what
// takes its place: a token that the node could forge is refused within the bound,
// or as soon as its verifier is stale.
//
// Every credential of before ends, the caller's too, and so does every token.
// Services are added again, and clients pin the new CA: on the node's word nobody
// can be told of it. Call it on another node than the one that is removed. What was
// begun and not finished is finished by calling it again.
func (a *Authority) RemoveCompromised(ctx context.Context, c Call, id string, req *api.ExpelRequest) (*api.ExpelResponse, error) {
	if a.peers == nil {
		return nil, errAlone
	}
	r, ok := a.machine.Member(id)
	switch {
	case !ok:
		return nil, &Error{Code: api.CodeNotFound, Detail: "no such node"}
	case id == a.cfg.NodeID:
		return nil, &Error{Code: api.CodeConflict, Detail: "the node leads", Hint: "cut its machine off first, so that another leads, and ask that"}
	case req.Reason == "":
		return nil, invalid("reason: 1 to 500 bytes")
	}
	out := &api.ExpelResponse{Node: id, Services: []string{}}
	for _, s := range a.machine.Services() {
		out.Services = append(out.Services, s.Name)
	}
	c.Request = capability.TokenID{} // it is several changes, and none that is made again does harm
	if r.State != state.MemberRemoved {
		if err := a.RemoveNode(ctx, c, id, req.Force); err != nil {
			return nil, err
		}
	}
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindExpel, c),
		cutoff:  true,
		compose: func(int64) (any, error) { return a.composeExpel(id, req.Reason) },
	})
	if err != nil {
		return nil, err
	}
	fingerprint := a.CAFingerprint()
	out.Incarnation, out.CAFingerprint = a.machine.Cluster().Incarnation, fmt.Sprintf("%x", fingerprint)
	return out, nil
}

// composeExpel draws every key anew, under a new cluster key that is wrapped for
// those who have the present one.
func (a *Authority) composeExpel(node, reason string) (*state.Expel, error) {
	_, under, err := a.keys.sealer()
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
	b := &state.Expel{Node: node, Of: of, Incarnation: nextIncarnation(cluster.Incarnation, a.cfg.Clock()), Reason: reason}
	if b.Origin, err = audit.Origin(cluster.ID, b.Incarnation); err != nil {
		return nil, err
	}
	epochs := a.machine.Epochs()
	fresh := []state.SealedKey{
		{Purpose: state.PurposeMaster, Epoch: epochs[len(epochs)-1].Epoch + 1},
		{Purpose: state.PurposeAdmin, Epoch: newestKey(a.machine, state.PurposeAdmin).Epoch + 1},
	}
	for _, k := range keys {
		switch {
		case k.Purpose == state.PurposeMaster, k.Purpose == state.PurposeAdmin:
		case strings.HasPrefix(k.Purpose, state.PurposeWrap):
			wrap, err := wrapFor(cluster.ID, b.Incarnation, under+1, k.Purpose, k.Public, key)
			if err != nil {
				return nil, err
			}
			b.Keys = append(b.Keys, wrap)
		default:
			fresh = append(fresh, k)
		}
	}
	for _, k := range fresh {
		secret, err := drawKey(a.cfg, cluster.ID, b.Origin, &k)
		if err != nil {
			return nil, err
		}
		k.Incarnation, k.Under = b.Incarnation, under+1
		k.Sealed, err = key.Seal(a.cfg.Rand, label(cluster.ID, &k), secret)
		clear(secret)
		if err != nil {
			return nil, err
		}
		b.Keys = append(b.Keys, k)
	}
	return b, nil
}
