package discharger

import (
	"context"
	"fmt"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// Follow has a Store heed an authority's revocations (a replica.Replica) besides
// its own: a device or a holder key that is revoked there is attested no more. As
// long as they are older than their bound nobody is: that error carries
// capability.CodeStaleRevocations.
func Follow(s Store, r capability.Revocations) Store { return &follower{s, r} }

type follower struct {
	Store
	authority capability.Revocations
}

// Device implements Store.
func (f *follower) Device(id capability.DeviceID) (*attest.Stored, error) {
	d, err := f.Store.Device(id)
	if err != nil {
		return nil, err
	}
	mark := f.authority.Mark()
	if f.authority.Device(id) {
		var revoked attest.Stored
		if d != nil {
			revoked = *d
		}
		revoked.Revoked = true
		d = &revoked
	}
	return d, f.fresh(mark)
}

// Accept implements Store.
func (f *follower) Accept(ctx context.Context, e *Accepted) error {
	mark := f.authority.Mark()
	switch {
	case f.authority.Device(e.Result.Device):
		return attest.Refuse(attest.ReasonRevoked, "device %s, by the authority", e.Result.Device)
	case f.authority.Holder(e.Result.Holder):
		return attest.Refuse(attest.ReasonRevoked, "holder key %s, by the authority", e.Result.Holder)
	}
	if err := f.fresh(mark); err != nil {
		return err
	}
	return f.Store.Accept(ctx, e)
}

func (f *follower) fresh(mark int64) error {
	if !f.authority.Within(mark, 0) {
		return fmt.Errorf("discharger: the authority's revocations: %w", capability.CodeStaleRevocations)
	}
	return nil
}
