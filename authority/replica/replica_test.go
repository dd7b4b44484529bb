package replica_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

func verifier(t testing.TB, r *replica.Replica, opts ...capability.Option) *capability.Verifier {
	t.Helper()
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Verifier(checker, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// allow verifies a token for an action on files/q3.
func allow(ctx context.Context, v *capability.Verifier, text, action string) error {
	req := capability.Request{Now: time.Now(), Action: action, Resource: []string{"files", "q3"}}
	return v.VerifyText(ctx, new(capability.Grant), text, &req)
}

// TestTheWholeJob: what a service does with a replica, end to end over HTTPS.
func TestTheWholeJob(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	r := n.Replica(t, "files", "corp")
	v := verifier(t, r)
	minted := n.Mint(t, "corp", "agent-42", "action read", "resource files/**", "max-calls 3")
	token, err := capability.Parse(minted.Token)
	if err != nil {
		t.Fatal(err)
	}
	helper, err := token.Attenuate("branch helper", "resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	backup, err := token.Attenuate("branch backup", "resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	if err := allow(t.Context(), v, helper.Text(), "read"); err != nil {
		t.Fatalf("helper reads: %v", err)
	}
	if err := allow(t.Context(), v, helper.Text(), "write"); !errors.Is(err, capability.CodeActionDenied) {
		t.Fatalf("helper writes: %v", err)
	}
	start := time.Now()
	if _, err := n.Root().RevokeSelf(t.Context(), api.SelfRevokeRequest{Token: helper.Text(), Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	for err = nil; !errors.Is(err, capability.CodeRevoked); {
		if err = allow(t.Context(), v, helper.Text(), "write"); time.Since(start) > time.Second {
			t.Fatalf("still not revoked after the bound: %v", err)
		}
	}
	t.Logf("refused %v after the revocation was asked for", time.Since(start))
	for i := range 2 {
		if err := allow(t.Context(), v, backup.Text(), "read"); err != nil {
			t.Fatalf("backup reads, call %d: %v", i+2, err)
		}
	}
	if err := allow(t.Context(), v, backup.Text(), "read"); !errors.Is(err, capability.CodeBudgetExhausted) {
		t.Fatalf("call 4 of 3: %v", err)
	}
}

// gate stands between a client and the node. Shut, it lets nothing through and
// breaks nothing off, as a network that drops packets does.
type gate struct {
	mu   sync.Mutex
	open *sync.Cond
	shut bool
}

func newGate() *gate {
	g := new(gate)
	g.open = sync.NewCond(&g.mu)
	return g
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

// pass waits until the gate is open, or the connection has been closed.
func (g *gate) pass(closed *atomic.Bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut && !closed.Load() {
		g.open.Wait()
	}
}

func (g *gate) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var never atomic.Bool
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g.pass(&never)
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &gated{Conn: c, g: g}, nil
}

type gated struct {
	net.Conn
	g      *gate
	closed atomic.Bool
}

func (c *gated) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.g.pass(&c.closed) // what arrives while the gate is shut is held back
	return n, err
}

func (c *gated) Write(b []byte) (int, error) {
	c.g.pass(&c.closed)
	return c.Conn.Write(b)
}

func (c *gated) Close() error {
	c.closed.Store(true)
	c.g.mu.Lock()
	c.g.open.Broadcast()
	c.g.mu.Unlock()
	return c.Conn.Close()
}

// until asks again and again, for at most a minute.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// TestPartition cuts a replica off, revokes meanwhile, and lets it back: no
// acceptance later than the bound after the revocation was acknowledged, and
// none of anything while the replica is stale.
func TestPartition(t *testing.T) {
	t.Parallel()
	const bound = time.Second
	n := authoritytest.Start(t, authoritytest.Options{Bound: bound})
	token, err := n.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	cfg := n.Config(token)
	cfg.DialContext = g.dial
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := authoritytest.Open(t, replica.Config{Client: c, Audiences: []string{"corp"}})
	v := verifier(t, r)
	victim, other := n.Mint(t, "corp", "agent-42").Token, n.Mint(t, "corp", "agent-43").Token
	if err := allow(t.Context(), v, victim, "read"); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		g.set(true)
		if round == 0 {
			if _, err := n.Root().RevokeSelf(t.Context(), api.SelfRevokeRequest{Token: victim, Reason: "leaked"}); err != nil {
				t.Fatal(err)
			}
		}
		acknowledged, asked := time.Now(), victim
		if round > 0 {
			asked = other // of a revoked token, that it is revoked is said first
		}
		until(t, "stale", func() bool {
			err := allow(t.Context(), v, asked, "read")
			late := time.Since(acknowledged) > bound
			if err == nil && late {
				t.Fatalf("accepted %v after the revocation was acknowledged", time.Since(acknowledged))
			}
			return errors.Is(err, capability.CodeStaleRevocations)
		})
		if err := allow(t.Context(), v, other, "read"); !errors.Is(err, capability.CodeStaleRevocations) {
			t.Errorf("a live token at a stale replica: %v", err)
		}
		g.set(false)
		until(t, "recovery", func() bool {
			err := allow(t.Context(), v, victim, "read")
			if err == nil {
				t.Fatal("the revoked token was accepted after the partition")
			}
			return errors.Is(err, capability.CodeRevoked)
		})
		until(t, "a live token", func() bool { return allow(t.Context(), v, other, "read") == nil })
	}
	until(t, "both streams", func() bool { return r.Status().Streams == 2 })
}

// TestRestart: a node that comes back is resumed from, and its replica never
// accepts anything meanwhile that it could not vouch for.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const bound = 2 * time.Second
	n, stop, err := authoritytest.Run(t.Context(), dir, authoritytest.Options{Bound: bound})
	if err != nil {
		t.Fatal(err)
	}
	r := n.Replica(t, "files", "corp")
	v := verifier(t, r)
	minted := n.Mint(t, "corp", "agent-42", "max-calls 100")
	if err := allow(t.Context(), v, minted.Token, "read"); err != nil {
		t.Fatal(err)
	}
	before := r.Status().Cursor
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	until(t, "stale without the node", func() bool {
		return errors.Is(allow(t.Context(), v, minted.Token, "read"), capability.CodeStaleRevocations)
	})
	n2, stop2, err := authoritytest.Run(t.Context(), dir, authoritytest.Options{Bound: bound, Listen: n.Addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop2() })
	until(t, "recovery", func() bool { return allow(t.Context(), v, minted.Token, "read") == nil })
	if _, err := n2.Root().Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeSubject, Subject: "agent-42", Reason: "gone"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the revocation", func() bool { return errors.Is(allow(t.Context(), v, minted.Token, "read"), capability.CodeRevoked) })
	after := r.Status().Cursor
	if after.Incarnation != before.Incarnation || after.Index <= before.Index {
		t.Errorf("the cursor went from %v to %v", before, after)
	}
}

// TestRotation: keys change under running verification and no call is refused
// for it; the old key's tokens go on.
func TestRotation(t *testing.T) {
	t.Parallel()
	n := authoritytest.Start(t, authoritytest.Options{Bound: 500 * time.Millisecond})
	r := n.Replica(t, "files", "corp")
	v := verifier(t, r, capability.WithPrefixCache(100))
	old := n.Mint(t, "corp", "agent-42").Token
	root := n.Root()
	defer root.Close()
	if _, err := root.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var fresh string
	until(t, "a token of the next epoch", func() bool {
		got := n.Mint(t, "corp", "agent-42").Token
		if err := allow(t.Context(), v, got, "read"); err != nil && !errors.Is(err, capability.CodeStaleRevocations) {
			t.Fatalf("a token just minted: %v", err)
		}
		token, err := capability.Parse(got)
		if err != nil {
			t.Fatal(err)
		}
		in, err := token.Inspect()
		if err != nil {
			t.Fatal(err)
		}
		fresh = got
		return in.Identifier.Epoch == 2
	})
	for _, text := range []string{old, fresh} {
		until(t, "verifying", func() bool {
			err := allow(t.Context(), v, text, "read")
			if err != nil && !errors.Is(err, capability.CodeStaleRevocations) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	if r.Status().Keys != 2 {
		t.Errorf("%d keys", r.Status().Keys)
	}
	if _, err := root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeEpoch, Epoch: 1, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the epoch's end", func() bool {
		code := capability.CodeOf(allow(t.Context(), v, old, "read"))
		return code == capability.CodeRevoked || code == capability.CodeUnknownKey
	})
	until(t, "the other epoch", func() bool { return allow(t.Context(), v, fresh, "read") == nil })
}

// TestKeyless verifies through the authority, and never sees a key.
func TestKeyless(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	svc := n.Service(t, api.ServiceRequest{Name: "guest", Audiences: []string{"corp"}, Keyless: true})
	if _, err := svc.Keys(t.Context(), "corp"); !errors.Is(err, capability.CodeActionDenied) {
		t.Errorf("keys for a keyless service: %v", err)
	}
	r := authoritytest.Open(t, replica.Config{Client: svc, Audiences: []string{"corp"}, Keyless: true})
	v := verifier(t, r)
	minted := n.Mint(t, "corp", "agent-42", "action read", "max-calls 2")
	token, err := capability.Parse(minted.Token)
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := token.Attenuate("resource files/**")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := allow(t.Context(), v, narrow.Text(), "read"); err != nil {
			t.Fatal(err)
		}
	}
	if err := allow(t.Context(), v, narrow.Text(), "read"); !errors.Is(err, capability.CodeBudgetExhausted) {
		t.Errorf("call 3 of 2: %v", err)
	}
	if err := allow(t.Context(), v, narrow.Text(), "write"); !errors.Is(err, capability.CodeActionDenied) {
		t.Errorf("write: %v", err)
	}
	forged, err := capability.Mint(capability.NewRootKey([32]byte{1}), capability.Identifier{
		Epoch: 1, ID: minted.ID, NotAfter: minted.NotAfter, Audience: "corp", Subject: "mallory",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := allow(t.Context(), v, forged.Text(), "read"); !errors.Is(err, capability.CodeBadSignature) {
		t.Errorf("forged: %v", err)
	}
	if _, err := n.Root().RevokeSelf(t.Context(), api.SelfRevokeRequest{Token: narrow.Text(), Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the revocation", func() bool { return errors.Is(allow(t.Context(), v, narrow.Text(), "read"), capability.CodeRevoked) })
}

// TestRegistered refuses what the authority did not issue, though its MAC is
// right: the answer to a stolen audience key.
func TestRegistered(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	svc := n.Service(t, api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	before := n.Mint(t, "corp", "agent-1", "action read")
	r := authoritytest.Open(t, replica.Config{Client: svc, Audiences: []string{"corp"}, Registered: true})
	v := verifier(t, r)
	after := n.Mint(t, "corp", "agent-2", "action read")
	for _, m := range []*api.TokenResponse{before, after} {
		if err := allow(t.Context(), v, m.Token, "read"); err != nil {
			t.Errorf("registered: %v", err)
		}
	}
	until(t, "the feed", func() bool { return r.Status().Registered == 2 })
	keys, err := svc.Keys(t.Context(), "corp")
	if err != nil {
		t.Fatal(err)
	}
	k := keys.Keys[0]
	stolen := capability.NewRootKey([32]byte(k.Secret))
	for name, id := range map[string]capability.TokenID{"a new id": capability.NewTokenID(time.Now().UnixMilli(), [10]byte{7}), "an id of another token": after.ID} {
		forged, err := capability.Mint(stolen, capability.Identifier{
			Epoch: k.Epoch, Generation: k.Generation, ID: id, NotAfter: time.Now().Add(time.Minute), Audience: "corp", Subject: "mallory",
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := allow(t.Context(), v, forged.Text(), "read"); !errors.Is(err, capability.CodeUnregistered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLeasesOverTheWire: two replicas of two services spend one budget in
// parallel until both refuse: exactly its calls go through. One that crashes
// forfeits what it held, and one that closes gives it back.
func TestLeasesOverTheWire(t *testing.T) {
	const calls = 10_000
	n := authoritytest.Start(t, authoritytest.Options{Bound: 5 * time.Second})
	open := func(name string) *replica.Replica {
		return authoritytest.Open(t, replica.Config{
			Client:    n.Service(t, api.ServiceRequest{Name: name, Audiences: []string{"corp"}}),
			Audiences: []string{"corp"}, Leases: replica.LeaseConfig{Want: 500, Timeout: 10 * time.Second},
		})
	}
	closing := open("closing")
	minted := n.Mint(t, "corp", "agent-42", fmt.Sprint("max-calls ", calls))
	if err := allow(t.Context(), verifier(t, closing), minted.Token, "read"); err != nil {
		t.Fatal(err)
	}
	if err := closing.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := n.Root().Token(t.Context(), minted.ID)
	if err != nil || len(info.Budgets) != 1 || info.Budgets[0].Remaining != calls-1 {
		t.Fatalf("after a replica that spent one call has closed: %+v, %v", info, err)
	}
	a, b := open("a"), open("b")
	var spent atomic.Int64
	spent.Store(1)
	until(t, "both refusing", func() bool {
		var wg sync.WaitGroup
		var again atomic.Bool
		for _, r := range []*replica.Replica{a, b} {
			v := verifier(t, r)
			for range 3 {
				wg.Go(func() {
					for {
						err := allow(context.Background(), v, minted.Token, "read")
						if capability.CodeOf(err) == capability.CodeBudgetExhausted {
							return
						}
						again.Store(true)
						if err != nil {
							t.Errorf("spend: %v", err)
							return
						}
						spent.Add(1)
					}
				})
			}
		}
		wg.Wait()
		return !again.Load() || t.Failed()
	})
	if spent.Load() != calls {
		t.Errorf("%d calls went through, not %d", spent.Load(), calls)
	}
}

// TestOpenSaysWhyNot: what is hopeless fails at once.
func TestOpenSaysWhyNot(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	token, err := n.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	wrong := n.Config(token)
	wrong.CAFingerprint = strings.Repeat("ab", 32)
	stranger, err := client.New(wrong)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  replica.Config
		want error
	}{
		{"no client", replica.Config{Audiences: []string{"corp"}}, replica.ErrConfig},
		{"no audience", replica.Config{Client: n.Root()}, replica.ErrConfig},
		{"audience twice", replica.Config{Client: n.Root(), Audiences: []string{"a", "a"}}, replica.ErrConfig},
		{"short bound", replica.Config{Client: n.Root(), Audiences: []string{"a"}, Bound: time.Millisecond}, replica.ErrConfig},
		{"bad audit key", replica.Config{Client: n.Root(), Audiences: []string{"a"}, AuditKey: "x"}, replica.ErrConfig},
		{"no credential", replica.Config{Client: n.Client(""), Audiences: []string{"corp"}}, client.ErrNoToken},
		{"another's audience", replica.Config{Client: n.Client(token), Audiences: []string{"other"}}, capability.CodeResourceDenied},
		{"a token for services", replica.Config{Client: n.Client(n.Mint(t, "corp", "a").Token), Audiences: []string{"corp"}}, capability.CodeUnknownKey},
		{"another cluster", replica.Config{Client: stranger, Audiences: []string{"corp"}}, client.ErrFingerprint},
	} {
		start := time.Now()
		_, err := replica.Open(t.Context(), c.cfg)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s: took %v to say so", c.name, d)
		}
	}
}

// TestOpenOutlastsACertificate: what a node with its clock off shows is out of date,
// and the next attempt may meet another.
func TestOpenOutlastsACertificate(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	token, err := n.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := n.Config(token)
	var looks atomic.Int64
	cfg.Now = func() time.Time {
		if looks.Add(1) < 3 {
			return time.Now().Add(-time.Hour) // as if all that it is shown were signed an hour ahead
		}
		return time.Now()
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	authoritytest.Open(t, replica.Config{Client: c, Audiences: []string{"corp"}})
	if looks.Load() < 3 {
		t.Error("no certificate was out of date")
	}
}

// TestCheckpointsArrive follows the node's own audit log, and goes on from the
// file in the next run.
func TestCheckpointsArrive(t *testing.T) {
	t.Parallel()
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	root := n.Root()
	defer root.Close()
	c, err := root.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	svc := n.Service(t, api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	file := filepath.Join(t.TempDir(), "checkpoint")
	var before []byte
	for run := range 2 {
		cfg := replica.Config{Client: svc, Audiences: []string{"corp"}, AuditKey: c.VerifierKey, CheckpointFile: file}
		r := authoritytest.Open(t, cfg)
		until(t, "a checkpoint", func() bool {
			b, err := os.ReadFile(file)
			if err != nil || string(b) == string(before) {
				return false
			}
			before = b
			return true
		})
		if err := r.Status().Err; err != nil {
			t.Errorf("run %d: %v", run, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		n.Mint(t, "corp", "agent-42") // the log grows
	}
}

// TestRenewal: a credential with less than a third of its life left is
// replaced, in its file, by a better one, which is bound to the same key.
func TestRenewal(t *testing.T) {
	t.Parallel()
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	key, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	for name, prover := range map[string]pop.Signer{"a bearer": nil, "bound": key} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRenewal(t, n, "files-"+name[:1], prover)
		})
	}
}

func testRenewal(t *testing.T, n *authoritytest.Node, name string, prover pop.Signer) {
	root := n.Root()
	defer root.Close()
	added, err := root.AddService(t.Context(), api.ServiceRequest{Name: name, Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	join := api.JoinRequest{Name: name, JoinSecret: added.JoinSecret}
	if prover != nil {
		join.Holder = prover.HolderKey().String()
	}
	joined, err := root.Join(t.Context(), join)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "credential")
	if err := os.WriteFile(file, []byte(joined.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := n.Config("")
	cfg.TokenFile, cfg.Prover = file, prover
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	credential := func() string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	late := func() time.Time { return time.Now().Add(5 * 24 * time.Hour) }
	authoritytest.Open(t, replica.Config{Client: c, Audiences: []string{"corp"}, CredentialFile: file, Now: late})
	until(t, "another credential", func() bool { return credential() != joined.Token })
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := c.Keys(t.Context(), "corp"); err != nil {
		t.Errorf("with the new credential: %v", err)
	}
	if prover == nil {
		return
	}
	// Renewed twice it is no better for a thief than it was at first.
	again, err := c.Renew(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, token := range map[string]string{"at first": joined.Token, "renewed": credential(), "renewed twice": again.Token} {
		thief := n.Client(token)
		if _, err := thief.Keys(t.Context(), "corp"); capability.CodeOf(err) != capability.CodeHolderProof {
			t.Errorf("without the key, %s: %v", what, err)
		}
		if _, err := thief.Renew(t.Context()); capability.CodeOf(err) != capability.CodeHolderProof {
			t.Errorf("renewed without the key, %s: %v", what, err)
		}
		thief.Close()
	}
}

// TestAnotherNode: of two addresses one is dead, and both streams, keys and
// leases find the other.
func TestAnotherNode(t *testing.T) {
	t.Parallel()
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	token, err := n.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	for _, addrs := range [][]string{{dead.Addr().String(), n.Addr}, {n.Addr, dead.Addr().String()}} {
		cfg := n.Config(token)
		cfg.Addrs = addrs
		c, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r := authoritytest.Open(t, replica.Config{Client: c, Audiences: []string{"corp"}})
		until(t, "both streams", func() bool { return r.Status().Streams == 2 })
		if err := allow(t.Context(), verifier(t, r), n.Mint(t, "corp", "agent-42", "max-calls 2").Token, "read"); err != nil {
			t.Error(err)
		}
	}
}

// TestOneConnectionLess breaks the replica's connections one after the other:
// the other stream vouches meanwhile, and no call is refused.
func TestOneConnectionLess(t *testing.T) {
	t.Parallel()
	const bound = 2 * time.Second
	n := authoritytest.Start(t, authoritytest.Options{Bound: bound})
	token, err := n.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	cfg := n.Config(token)
	cfg.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, c)
		}
		return c, err
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := authoritytest.Open(t, replica.Config{Client: c, Audiences: []string{"corp"}})
	v := verifier(t, r)
	text := n.Mint(t, "corp", "agent-42").Token
	until(t, "both streams", func() bool { return r.Status().Streams == 2 })
	cursor := r.Status().Cursor
	for i := range 3 {
		mu.Lock()
		if len(conns) < 3 {
			t.Fatalf("%d connections, not one for calls and one for each stream", len(conns))
		}
		broken := conns[i]
		mu.Unlock()
		broken.Close()
		broke := time.Now()
		n.Mint(t, "corp", "agent-43")
		until(t, "recovery", func() bool {
			if err := allow(t.Context(), v, text, "read"); err != nil {
				t.Fatalf("connection %d was broken, %v: %v", i, r.Status(), err)
			}
			now := r.Status()
			if now.Cursor.Index < cursor.Index || now.Cursor.Incarnation != cursor.Incarnation {
				t.Fatalf("the cursor went from %v back to %v", cursor, now.Cursor)
			}
			cursor = now.Cursor
			return time.Since(broke) > bound && now.Streams == 2
		})
	}
}
