package authority

import (
	"context"
	"time"

	"github.com/writ-dev/writ/authority/state"
)

const (
	driveEvery = 10 * time.Second
	// expireMargin is how far behind the clock, besides the bound, expiry stays:
	// the allowed clock skew, and time for whoever still has the token in hand.
	expireMargin = 30 * time.Second
	hashEvery    = 10 * time.Minute
)

// drive does what the leader does by itself: drops what has ended, rotates the
// master, signs checkpoints, and has the nodes compare their states. Of a node that
// is alone it raises the version; of others see reconcile.
func (a *Authority) drive(ctx context.Context) {
	tick := time.NewTicker(driveEvery)
	defer tick.Stop()
	compared := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !a.store.IsLeader() {
			continue
		}
		if a.peers == nil {
			a.raiseVersion(ctx, nil)
		}
		a.report("expiring", a.expire(ctx))
		a.report("rotating the master key", a.rotateIfDue(ctx))
		a.report("saving a checkpoint", a.saveCheckpoint())
		if time.Since(compared) >= hashEvery {
			compared = time.Now()
			a.report("comparing states", a.compareHash(ctx))
		}
	}
}

func (a *Authority) report(what string, err error) {
	if err != nil {
		a.cfg.Logger.Warn(what+" failed", "error", err)
	}
}

// expire drops what has ended, the bound and a margin ago. One command drops so
// many and no more, and what waits meanwhile comes before the next. Where nothing has
// ended nothing is proposed: on a cluster at rest that was an entry every ten
// seconds. Stamps rise all the same, with the nodes' comparing their states.
func (a *Authority) expire(ctx context.Context) error {
	t := a.clocks.now().UnixMilli() - a.machine.Cluster().BoundMillis - expireMargin.Milliseconds()
	if t <= 0 {
		return nil
	}
	for {
		if due, err := a.machine.Due(t); !due || err != nil {
			return err
		}
		_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
			header:  header(state.KindExpire, system()),
			compose: func(stamp int64) (any, error) { return &state.Expire{T: min(t, stamp)}, nil },
		})
		if err != nil {
			return err
		}
		if r, ok := value.(*state.ExpireResult); !ok || !r.More() {
			return nil
		}
	}
}

// rotateIfDue publishes the next master when the newest has minted long enough.
func (a *Authority) rotateIfDue(ctx context.Context) error {
	epochs := a.machine.Epochs()
	if a.cfg.RotateEvery < 0 || len(epochs) == 0 {
		return nil
	}
	if newest := epochs[len(epochs)-1]; a.now() < newest.MintsFrom+a.cfg.RotateEvery.Milliseconds() {
		return nil
	}
	_, err := a.Rotate(ctx, system())
	return err
}

// saveCheckpoint signs the audit log beside its files, so that whoever checks
// them offline finds how much is vouched for.
func (a *Authority) saveCheckpoint() error {
	log, err := a.trail.get()
	if err != nil {
		return err
	}
	signed, _, err := a.checkpoint()
	if err != nil {
		return err
	}
	return log.SaveCheckpoint(signed)
}

// compareHash has every node hold its state against this one's.
func (a *Authority) compareHash(ctx context.Context) error {
	index, hash := a.machine.StateHash()
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindCheckHash, system()),
		compose: func(int64) (any, error) { return &state.CheckHash{Index: index, Hash: hash}, nil },
	})
	return err
}
