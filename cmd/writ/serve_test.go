package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// startServe runs writ serve until the test ends it.
func startServe(t *testing.T, args ...string) (*exec.Cmd, ready) {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin(t), "writ"), append([]string{"serve", "--output", "json", "--log-level", "error"}, args...)...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var r ready
	if err := json.NewDecoder(out).Decode(&r); err != nil {
		_ = cmd.Wait()
		t.Fatalf("writ serve %v: %v\n%s", args, err, log.String())
	}
	return cmd, r
}

// acknowledged is what the authority has promised to remember.
type acknowledged struct {
	mu      sync.Mutex
	tokens  []capability.TokenID
	revoked []capability.TokenID
	leased  uint64 // calls of the one budget
}

// A node that is killed in the middle of load has, after it starts again,
// everything that it acknowledged: tokens, revocations and spent calls.
func TestKillUnderLoad(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--data-dir", filepath.Join(dir, "data"), "--node-key", filepath.Join(dir, "node.key"), "--listen", "127.0.0.1:0"}
	node, r := startServe(t, append(args, "--init", "--root-token", filepath.Join(dir, "root"))...)
	connect := func(r ready) *client.Client {
		c, err := client.New(client.Config{
			Addrs: []string{r.Addr}, CAFingerprint: r.CAFingerprint, TokenFile: filepath.Join(dir, "root"), Attempts: 1,
			DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	const limit = 1 << 20
	c := connect(r)
	budget, err := c.Issue(t.Context(), issueRequest("spender", "max-calls 1048576"))
	if err != nil {
		t.Fatal(err)
	}
	macaroon, err := capability.Parse(budget.Token)
	if err != nil {
		t.Fatal(err)
	}
	var acks acknowledged
	for round := range 2 {
		load(t, connect(r), &acks, macaroon.Bytes(), 60, func() {
			if err := node.Process.Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		})
		if err := node.Wait(); err == nil {
			t.Fatal("the node ended in good order: it was to be killed")
		}
		node, r = startServe(t, args...)
		c = connect(r)
		t.Logf("round %d: %d tokens, %d revoked, %d calls leased", round, len(acks.tokens), len(acks.revoked), acks.leased)
		for _, id := range acks.tokens {
			if _, err := c.Token(t.Context(), id); err != nil {
				t.Errorf("token %s was acknowledged and is not there: %v", id, err)
			}
		}
		for _, id := range acks.revoked {
			if info, err := c.Token(t.Context(), id); err != nil || !info.Revoked {
				t.Errorf("the revocation of %s was acknowledged and is not there (%v)", id, err)
			}
		}
		info, err := c.Token(t.Context(), budget.ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Budgets) != 1 || info.Budgets[0].Remaining > limit-acks.leased {
			t.Errorf("%d calls were leased, and %+v says that fewer are gone", acks.leased, info.Budgets)
		}
	}
	if len(acks.tokens) == 0 || len(acks.revoked) == 0 || acks.leased == 0 {
		t.Errorf("nothing was acknowledged: %d tokens, %d revocations, %d calls", len(acks.tokens), len(acks.revoked), acks.leased)
	}
}

// The metrics are where they were asked for, and there alone.
func TestMetricsListener(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--data-dir", filepath.Join(dir, "data"), "--node-key", filepath.Join(dir, "node.key"), "--listen", "127.0.0.1:0"}
	_, r := startServe(t, append(args, "--init", "--root-token", filepath.Join(dir, "root"), "--metrics-listen", "127.0.0.1:0")...)
	get := func(url string) (int, string) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := get("http://" + r.MetricsAddr + "/metrics"); code != http.StatusOK || !strings.Contains(body, "writ_") {
		t.Errorf("metrics: %d %.200s", code, body)
	}
	if code, _ := get("https://" + r.Addr + "/metrics"); code != http.StatusNotFound {
		t.Errorf("the API still serves metrics: %d", code)
	}
	if code, _ := get("https://" + r.Addr + "/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d", code)
	}
}

func issueRequest(subject string, conditions ...string) api.IssueRequest {
	return api.IssueRequest{Audience: "corp", Subject: subject, Owner: "o", Purpose: "p", TTLSeconds: 900, Caveats: conditions}
}

// load issues, revokes and leases from several goroutines, kills the node once
// enough was acknowledged, and returns when every call has failed.
func load(t *testing.T, c *client.Client, acks *acknowledged, budget []byte, enough int, kill func()) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	before := len(acks.tokens)
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				issued, err := c.Issue(ctx, issueRequest("loader"))
				if err != nil {
					return
				}
				acks.mu.Lock()
				acks.tokens = append(acks.tokens, issued.ID)
				if len(acks.tokens)-before >= enough {
					once.Do(kill)
				}
				acks.mu.Unlock()
				if _, err := c.RevokeSelf(ctx, api.SelfRevokeRequest{Token: issued.Token, Reason: "load"}); err != nil {
					return
				}
				acks.mu.Lock()
				acks.revoked = append(acks.revoked, issued.ID)
				acks.mu.Unlock()
				lease, err := c.Lease(ctx, api.LeaseRequest{Macaroon: budget, Want: 3})
				if err != nil {
					return
				}
				acks.mu.Lock()
				acks.leased += lease.Granted
				acks.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatal("the load did not end")
	}
}
