//go:build linux

package process

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
)

// TestExpiredCertificates has a cluster lose its quorum for longer than any of its
// certificates lives. It must form again all the same.
func TestExpiredCertificates(t *testing.T) {
	const later = 100 * 24 * time.Hour // certificates of nodes live for 90 days
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := newRig(t, 2*time.Second)
	if err := r.form(ctx, 3); err != nil {
		t.Fatal(err)
	}
	ready := func(n *node, at time.Duration) error {
		c, err := client.New(client.Config{
			Addrs: []string{n.host.Join(apiPort)}, CAFingerprint: r.fingerprint, Timeout: 2 * time.Second, Attempts: 1,
			DialContext: r.lab.Switch().DialContext, Now: func() time.Time { return time.Now().Add(at) },
		})
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Ready(ctx)
	}
	alone, others := r.nodes[0], r.nodes[1:]
	for _, n := range others {
		n.kill()
		n.clock = later
	}
	if _, err := alone.control("clock " + later.String()); err != nil {
		t.Fatal(err)
	}
	if err := until(ctx, "the node without a quorum to say so", func() error {
		if ready(alone, later) == nil {
			return errors.New("it is ready")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	for _, n := range others {
		go func() { started <- n.restart(ctx) }()
	}
	for range others {
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range r.nodes {
		if err := until(ctx, n.name, func() error { return ready(n, later) }); err != nil {
			t.Errorf("VIOLATION: certificates have expired, and there is no quorum again: %v", err)
		}
	}
}

// TestRestored has a cluster be restored from a backup. Nothing that was revoked or
// spent after the backup comes back to life, and a guard that followed the cluster
// of before accepts nothing of it.
func TestRestored(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := newRig(t, 2*time.Second)
	if err := r.form(ctx, 3); err != nil {
		t.Fatal(err)
	}
	before := r.guard(ctx, "guard1")
	c := r.client()
	defer c.Close()
	alive, revoked, spent := r.mint(ctx, c, "alive"), r.mint(ctx, c, "revoked"), r.mint(ctx, c, "spent", "max-calls 3")
	show := func(g *worker, at string, want string, tokens ...*api.TokenResponse) {
		t.Helper()
		for _, token := range tokens {
			got := r.show(ctx, g, token)
			if want == "" && got != "" || want != "" && got == "" {
				t.Errorf("VIOLATION: %s %s: the guard says %q", at, token.ID, got)
			}
		}
	}
	show(before, "before the backup", "", alive, revoked)

	backup := filepath.Join(r.dir, "backup")
	var saved bytes.Buffer
	if err := c.SaveSnapshot(ctx, &saved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(backup, saved.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: revoked.ID.String(), Reason: "after the backup"}); err != nil {
		t.Fatal(err)
	}
	show(before, "spent after the backup", "", spent, spent, spent)
	show(before, "after that", "budget_exhausted", spent)
	for _, n := range r.nodes {
		n.kill()
		n.removed = true // of the cluster that is to come
	}
	killed := time.Now()

	// The first node's key file opens the backup; its directory is put aside.
	first := r.nodes[0]
	old := filepath.Join(first.data(), "writ")
	if err := os.RemoveAll(old); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(first.dir, "restored.token")
	restore := exec.CommandContext(ctx, filepath.Join(binaries, "writ"), "cluster", "snapshot", "restore", backup,
		"--node", first.name, "--data-dir", old, "--node-key", first.key(), "--root-token", token, "--peer-listen", first.host.Join(peerPort))
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := first.restart(ctx); err != nil {
		t.Fatal(err)
	}
	first.removed = false
	b, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	r.root = strings.TrimSpace(string(b))
	r.nodes = r.nodes[:1:1] // the others may never start again
	r.place()
	for range 2 {
		if _, err := r.join(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.settle(ctx); err != nil {
		t.Fatal(err)
	}
	r.place()
	after := r.guard(ctx, "guard2")
	anew := r.client()
	defer anew.Close()
	show(after, "after the restore", "dead", alive, revoked, spent)
	show(before, "after the restore", "dead", revoked, spent)
	// What this guard had heard was good for the bound, and no longer.
	pause(ctx, time.Until(killed.Add(r.bound)))
	show(before, "past the bound", "dead", alive)
	show(after, "of the new incarnation", "", r.mint(ctx, anew, "new"))
	if status, err := anew.Cluster(ctx); err != nil || status.Incarnation < 2 {
		t.Errorf("the incarnation is %+v, %v", status, err)
	}
}

// guard starts a guard's process.
func (r *rig) guard(ctx context.Context, name string) *worker {
	r.t.Helper()
	credential, err := r.service(ctx, name)
	if err != nil {
		r.t.Fatal(err)
	}
	w, err := r.worker(workerConfig{Role: "guard", Name: name, Token: credential})
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rig) mint(ctx context.Context, c *client.Client, name string, conditions ...string) *api.TokenResponse {
	r.t.Helper()
	got, err := c.Issue(ctx, api.IssueRequest{
		Audience: audience, Subject: name, Owner: "o@corp.example", Purpose: "campaign", TTLSeconds: 900, Caveats: conditions,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

// show shows a token to a guard and returns its verdict, empty if it accepts.
func (r *rig) show(ctx context.Context, g *worker, token *api.TokenResponse) string {
	r.t.Helper()
	web := &http.Client{Transport: &http.Transport{DialContext: r.lab.Switch().DialContext, DisableKeepAlives: true}}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Listen+calls+token.ID.String(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+token.Token)
	answer, err := web.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	return answer.Header.Get("Verdict")
}
