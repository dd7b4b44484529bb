package replica_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
)

// TestNewIncarnation: a replica that ran on follows an authority that was
// recovered, as soon as its service has a credential there: it accepts nothing of
// before and what is new.
func TestNewIncarnation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const bound = 2 * time.Second
	n, stop, err := authoritytest.Run(t.Context(), dir, authoritytest.Options{Bound: bound})
	if err != nil {
		t.Fatal(err)
	}
	service := api.ServiceRequest{Name: "files", Audiences: []string{"corp"}}
	credential, err := n.Join(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	var current atomic.Pointer[string]
	current.Store(&credential)
	cfg := n.Config("")
	cfg.Token, cfg.TokenSource = "", func(context.Context) (string, error) { return *current.Load(), nil }
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r, err := replica.Open(t.Context(), replica.Config{Client: c, Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	v := verifier(t, r)
	before := n.Mint(t, "corp", "agent-42")
	if err := allow(t.Context(), v, before.Token, "read"); err != nil {
		t.Fatal(err)
	}
	at := r.Status().Cursor
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	reborn, err := authority.Recover(t.Context(), authority.Rebirth{Config: authority.Config{
		Dir: filepath.Join(dir, "data"), KeyFile: filepath.Join(dir, "node.key"), NodeID: "n1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.token"), []byte(reborn.RootToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n2, stop2, err := authoritytest.Run(t.Context(), dir, authoritytest.Options{Bound: bound, Listen: n.Addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop2() })
	until(t, "stale without a credential", func() bool {
		return errors.Is(allow(t.Context(), v, before.Token, "read"), capability.CodeStaleRevocations)
	})
	again, err := n2.Join(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	current.Store(&again)
	after := n2.Mint(t, "corp", "agent-42")
	until(t, "a token of the new incarnation", func() bool { return allow(t.Context(), v, after.Token, "read") == nil })
	if err := allow(t.Context(), v, before.Token, "read"); err == nil || errors.Is(err, capability.CodeStaleRevocations) {
		t.Errorf("a token of the incarnation before: %v", err)
	}
	if now := r.Status().Cursor; now.Incarnation != reborn.Incarnation || at.Incarnation != 1 {
		t.Errorf("the cursor went from %v to %v", at, now)
	}
}
