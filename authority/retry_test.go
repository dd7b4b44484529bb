package authority_test

import (
	"errors"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// TestReturnIsAnsweredAgain: a lease's return that is made again, since its answer
// was lost, is answered as it was, and credits nothing more. For whoever else asks
// the lease is gone.
func TestReturnIsAnsweredAgain(t *testing.T) {
	c := authoritytest.StartCluster(t, 1)
	root := c.Root()
	defer root.Close()
	until(t, "the cluster remembers whose a return was", func() bool {
		s, err := root.Cluster(t.Context())
		return err == nil && s.Version >= 2
	})
	of := func(name, audience string) *client.Client {
		token, err := c.Join(t.Context(), api.ServiceRequest{Name: name, Audiences: []string{audience}})
		if err != nil {
			t.Fatal(err)
		}
		own := c.Client(token)
		t.Cleanup(own.Close)
		return own
	}
	files, other := of("files", "corp"), of("other", "corp")
	issued := c.Mint(t, "corp", "agent", "max-calls 10")
	lease, err := files.Lease(t.Context(), api.LeaseRequest{Macaroon: parse(t, issued.Token).Bytes(), Want: 10})
	if err != nil {
		t.Fatal(err)
	}
	ctx := client.WithRequestID(t.Context(), capability.NewTokenID(time.Now().UnixMilli(), [10]byte{1}))
	for range 2 {
		if r, err := files.Return(ctx, lease.Lease, api.ReturnRequest{Unspent: 4}); err != nil || r.Credited != 4 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if _, err := files.Return(ctx, lease.Lease, api.ReturnRequest{Unspent: 5}); !errors.Is(err, api.CodeConflict) {
		t.Errorf("another return under the same id: %v", err)
	}
	if _, err := other.Return(ctx, lease.Lease, api.ReturnRequest{Unspent: 4}); !errors.Is(err, api.CodeNotFound) {
		t.Errorf("another's: %v", err)
	}
	if _, err := files.Return(t.Context(), lease.Lease, api.ReturnRequest{Unspent: 4}); !errors.Is(err, api.CodeNotFound) {
		t.Errorf("another call: %v", err)
	}
	info, err := root.Token(t.Context(), issued.ID)
	if err != nil || info.Budgets[0].Remaining != 10-lease.Granted+4 {
		t.Errorf("credited otherwise than once: %+v, %v", info, err)
	}
}
