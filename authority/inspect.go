package authority

import (
	"context"

	"github.com/writ-dev/writ/authority/state"
)

// Barrier has this node apply everything that was acknowledged anywhere before
// the call: what is read of it afterwards is linearizable. Unlike CatchUp it asks
// a quorum on a node that leads, too, which need not know that it no longer
// does. ctx bounds the wait.
func (a *Authority) Barrier(ctx context.Context) error { return a.fresh.wait(ctx) }

// StateHash returns the hash of the state that this node has applied, and the
// index that it is of. Nodes whose hashes of one index differ have diverged.
func (a *Authority) StateHash() (index uint64, hash state.Digest) { return a.machine.StateHash() }
