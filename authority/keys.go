package authority

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// maxKeyAudiences bounds the audiences of one request for keys.
const maxKeyAudiences = 64

// Keys returns the root keys of audiences, those that mint or will and those
// that still verify: secrets. They go to a service that has the audience and is
// not keyless, and are read through the read index.
func (a *Authority) Keys(ctx context.Context, c Caller, audiences []string) (*api.KeySet, error) {
	if len(audiences) == 0 || len(audiences) > maxKeyAudiences {
		return nil, invalid(fmt.Sprintf("audiences: 1 to %d", maxKeyAudiences))
	}
	for _, audience := range audiences {
		if !capability.ValidName(audience, capability.MaxAudience) {
			return nil, invalid("audience: 1 to 100 bytes of visible ASCII")
		}
		if audience == api.AdminAudience {
			return nil, &Error{Code: capability.CodeResourceDenied, Detail: "the keys of the audience writ are never exported"}
		}
		if err := a.entitled(c, audience); err != nil {
			return nil, err
		}
	}
	if s, ok := a.service(c); ok && s.Keyless {
		return nil, &Error{Code: capability.CodeActionDenied, Detail: "a keyless service verifies through the authority"}
	}
	if _, err := a.store.ReadIndex(ctx); err != nil {
		return nil, serviceError(err)
	}
	if a.machine.IsRevoked(c.Token, c.Branches) {
		return nil, &Error{Code: capability.CodeRevoked}
	}
	set := &api.KeySet{AsOf: a.cursor()}
	for _, audience := range audiences {
		generations := []uint32{0}
		if gens := a.machine.Generations(audience); len(gens) > 0 {
			generations = generations[:0]
			for _, g := range gens {
				generations = append(generations, g.Generation)
			}
		}
		for _, e := range a.machine.Epochs() {
			for _, g := range generations {
				until, ok := a.keys.until(audience, e.Epoch, g)
				if !ok {
					continue
				}
				secret, err := a.keys.bytes(audience, e.Epoch, g)
				if err != nil {
					return nil, serviceError(err)
				}
				set.Keys = append(set.Keys, api.Key{
					Audience: audience, Epoch: e.Epoch, Generation: g, Secret: secret[:], Until: millis(until),
				})
			}
		}
	}
	return set, nil
}

// millis is a time in Unix milliseconds, or zero for 0.
func millis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Epochs lists the master keys' epochs and the generations; no secret.
func (a *Authority) Epochs(ctx context.Context) (*api.EpochList, error) {
	now := a.now()
	list := &api.EpochList{Generations: make(map[string]uint32)}
	epochs := a.machine.Epochs()
	for i, e := range epochs {
		list.Epochs = append(list.Epochs, epochInfo(&e, now, i+1 < len(epochs) && epochs[i+1].MintsFrom <= now))
	}
	for audience, gens := range a.machine.AllGenerations() {
		list.Generations[audience] = gens[len(gens)-1].Generation
	}
	return list, nil
}

func epochInfo(e *state.EpochRecord, now int64, followed bool) api.EpochInfo {
	info := api.EpochInfo{Epoch: e.Epoch, Published: millis(e.Published), MintsFrom: millis(e.MintsFrom), Until: millis(e.Until)}
	switch {
	case e.Revoked:
		info.State = "revoked"
	case now < e.MintsFrom:
		info.State = "published"
	case followed:
		info.State = "verifying"
	default:
		info.State = "minting"
	}
	return info
}

// Rotate publishes a new master key, which mints once every verifier has had
// twice the bound to fetch it. The one before verifies until its last token has ended.
func (a *Authority) Rotate(ctx context.Context, c Call) (*api.EpochInfo, error) {
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindAddEpoch, c),
		compose: a.composeEpoch,
	})
	if err != nil {
		return nil, err
	}
	info := epochInfo(value.(*state.EpochRecord), a.now(), false)
	return &info, nil
}

// composeEpoch makes the next epoch's master.
func (a *Authority) composeEpoch(stamp int64) (any, error) {
	epochs := a.machine.Epochs()
	if len(epochs) == 0 {
		return nil, &Error{Code: capability.CodeUnavailable, Detail: "no cluster has been formed"}
	}
	cluster := a.machine.Cluster()
	master, err := seal.NewSecret(a.cfg.Rand)
	if err != nil {
		return nil, err
	}
	defer master.Destroy()
	key, under, err := a.keys.sealer()
	if err != nil {
		return nil, err
	}
	k := state.SealedKey{
		Purpose: state.PurposeMaster, Epoch: epochs[len(epochs)-1].Epoch + 1, Incarnation: cluster.Incarnation, Under: under,
	}
	if k.Sealed, err = key.SealSecret(a.cfg.Rand, label(cluster.ID, &k), master); err != nil {
		return nil, err
	}
	from := stamp + 2*cluster.BoundMillis
	return &state.AddEpoch{Key: k, MintsFrom: from, OldUntil: oldUntil(from, cluster.BoundMillis)}, nil
}

// oldUntil is when keys that mint no more after a moment verify no more:
// when the longest token has ended, and the bound on top.
func oldUntil(from, bound int64) int64 { return from + state.MaxTTL.Milliseconds() + 2*bound }

// Rekey moves an audience to its next generation, which it returns. To end the
// one before at once, once the new one mints, revoke the audience.
func (a *Authority) Rekey(ctx context.Context, c Call, req *api.RekeyRequest) (uint32, error) {
	if req.Audience == api.AdminAudience {
		return 0, invalid("the audience writ is not rekeyed: writ keys root")
	}
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindRekey, c),
		compose: func(stamp int64) (any, error) {
			bound := a.machine.Cluster().BoundMillis
			from := stamp + 2*bound
			return &state.Rekey{Audience: req.Audience, Reason: req.Reason, MintsFrom: from, OldUntil: oldUntil(from, bound)}, nil
		},
	})
	if err != nil {
		return 0, err
	}
	return value.(*state.RekeyResult).Generation, nil
}

// RootReset issues a new root admin token and revokes the old ones: the way
// back from a lock-out, for whoever can open the seal on this machine.
func (a *Authority) RootReset(ctx context.Context) (string, error) {
	return a.resetRoot(ctx, "root reset")
}

func (a *Authority) resetRoot(ctx context.Context, reason string) (string, error) {
	if _, err := a.revoke(ctx, system(), &state.Revoke{
		Kind: string(api.RevokeSubject), Subject: state.RootSubject, Reason: reason,
	}); err != nil {
		return "", err
	}
	m := rootMinting()
	t, err := a.register(ctx, system(), m)
	if err != nil {
		return "", err
	}
	return t.Token, nil
}

func rootMinting() *minting {
	return &minting{ttl: state.MaxAdminTTL, record: state.TokenRecord{
		Audience: api.AdminAudience, Subject: state.RootSubject, Owner: "operator", Purpose: "root admin token",
	}}
}
