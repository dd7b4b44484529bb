package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// ofOneService is how many guards share a service's credential: a node has a
// bound on the feeds of one caller.
const ofOneService = 20

// guard is what a service decides with, without the service.
type guard struct {
	client   *client.Client
	replica  *replica.Replica
	verifier *capability.Verifier
	grant    capability.Grant
	request  capability.Request
}

// opening is how many guards open at a time: each is several TLS handshakes.
const opening = 8

// guards opens n of them, their streams spread over all nodes.
func (c *cluster) guards(ctx context.Context, n int) ([]*guard, error) {
	root := c.root()
	defer root.Close()
	list, errs := make([]*guard, n), make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, opening)
	token := ""
	for i := range n {
		if i%ofOneService == 0 {
			name := fmt.Sprintf("service-%d-%d", n, i/ofOneService)
			made, err := root.AddService(ctx, api.ServiceRequest{Name: name, Audiences: []string{audience}})
			if err != nil {
				return nil, err
			}
			joined, err := root.Join(ctx, api.JoinRequest{Name: name, JoinSecret: made.JoinSecret})
			if err != nil {
				return nil, err
			}
			token = joined.Token
		}
		slots <- struct{}{}
		credential := token
		wg.Go(func() {
			// A machine that is busy opening others may let the first ping go stale.
			for range 5 {
				if list[i], errs[i] = c.guard(ctx, credential, i); errs[i] == nil {
					break
				}
			}
			<-slots
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			closeAll(list)
			return nil, fmt.Errorf("opening guard %d: %w", i, err)
		}
	}
	return list, nil
}

func (c *cluster) guard(ctx context.Context, credential string, i int) (*guard, error) {
	g := &guard{client: c.client(credential, i)}
	checker, err := caveats.Standard()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if g.replica, err = replica.Open(ctx, replica.Config{Client: g.client, Audiences: []string{audience}}); err != nil {
		return nil, err
	}
	if g.verifier, err = g.replica.Verifier(checker, capability.WithPrefixCache(1<<6)); err != nil {
		return nil, errors.Join(err, g.replica.Close())
	}
	g.request = capability.Request{Action: "read", Resource: []string{"files", "q3"}, Client: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	return g, nil
}

// verify decides on a call. One goroutine at a time.
func (g *guard) verify(ctx context.Context, token string) error {
	g.request.Now = time.Now()
	return g.verifier.VerifyText(ctx, &g.grant, token, &g.request)
}

// accept verifies what is to be accepted, by a guard that may have to become
// fresh first.
func (g *guard) accept(ctx context.Context, token string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_ = wait.Until(ctx, 5*time.Millisecond, func() bool {
		err = g.verify(ctx, token)
		return !errors.Is(err, capability.CodeStaleRevocations)
	})
	return err
}

func closeAll(list []*guard) {
	var wg sync.WaitGroup
	for _, g := range list {
		if g != nil {
			wg.Go(func() {
				_ = g.replica.Close()
				g.client.Close()
			})
		}
	}
	wg.Wait()
}
