package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// upgradeBound is the staleness bound meanwhile: one that a machine busy with
// other tests keeps.
const upgradeBound = 10 * time.Second

// upgradeLoad is what goes on while a cluster is upgraded: clients that issue and
// revoke, and a service that verifies without a pause. Nobody may notice: no
// call fails, a good token is never refused, and a revoked one always is.
func upgradeLoad(t *testing.T, top string) func() {
	text, err := os.ReadFile(filepath.Join(top, "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	addrs, fingerprint, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	cfg := client.Config{Addrs: strings.Split(addrs, ","), CAFingerprint: fingerprint, TokenFile: filepath.Join(top, "root.token")}
	open := func(cfg client.Config) *client.Client {
		c, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	root := open(cfg)
	added, err := root.AddService(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	joined, err := root.Join(t.Context(), api.JoinRequest{Name: "files", JoinSecret: added.JoinSecret})
	if err != nil {
		t.Fatal(err)
	}
	service := cfg
	service.TokenFile, service.Token = "", joined.Token
	r, err := replica.Open(t.Context(), replica.Config{Client: open(service), Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := r.Verifier(checker)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(ctx context.Context, text string) error {
		token, err := capability.Parse(text)
		if err != nil {
			return err
		}
		return verifier.Verify(ctx, new(capability.Grant), token.Bytes(), &capability.Request{Now: time.Now(), Service: "files"})
	}
	issue := func(ctx context.Context, c *client.Client, subject string) (*api.TokenResponse, error) {
		return c.Issue(ctx, api.IssueRequest{Audience: "corp", Subject: subject, Owner: "o", Purpose: "p", TTLSeconds: 900})
	}
	good, err := issue(t.Context(), root, "good")
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var calls, verified atomic.Int64
	for w := range 3 {
		own := open(cfg)
		work.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				got, err := issue(ctx, own, fmt.Sprintf("agent-%d-%d", w, i))
				if err == nil {
					_, err = own.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: got.ID.String(), Reason: "test"})
				}
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("a call failed: %v", err)
					}
					return
				}
				calls.Add(2)
				deadline := time.Now().Add(upgradeBound)
				for err = verify(ctx, got.Token); !errors.Is(err, capability.CodeRevoked) && ctx.Err() == nil; err = verify(ctx, got.Token) {
					if err != nil || time.Now().After(deadline) {
						t.Errorf("a revoked token: %v", err)
						return
					}
				}
			}
		})
	}
	work.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			if err := verify(ctx, good.Token); err != nil && ctx.Err() == nil {
				t.Errorf("a good token was refused: %v", err)
				return
			}
			verified.Add(1)
		}
	})
	return func() {
		stop()
		work.Wait()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if calls.Load() < 100 || verified.Load() < 1000 {
			t.Errorf("only %d calls and %d verifications went on meanwhile", calls.Load(), verified.Load())
		}
		t.Logf("%d calls, %d verifications", calls.Load(), verified.Load())
	}
}
