package authority_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/raftstore"
)

// nodeConfig opens the directory and the key file of a node of a test's cluster.
func nodeConfig(c *authoritytest.Cluster, name string) authority.Config {
	dir := filepath.Join(c.Dir, name)
	return authority.Config{NodeID: name, Dir: filepath.Join(dir, "data"), KeyFile: filepath.Join(dir, "node.key"), OnFatal: func(error) {}}
}

// copyOf copies a stopped node's directory and key file elsewhere.
func copyOf(t *testing.T, c *authoritytest.Cluster, name string) authority.Config {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(c.Dir, name))); err != nil {
		t.Fatal(err)
	}
	cfg := nodeConfig(c, name)
	cfg.Dir, cfg.KeyFile = filepath.Join(dir, "data"), filepath.Join(dir, "node.key")
	if err := errors.Join(os.Chmod(cfg.Dir, 0o700), os.Chmod(cfg.KeyFile, 0o600)); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// guard judges tokens by a replica's own keys.
func guard(t *testing.T, r *replica.Replica) func(token string) error {
	t.Helper()
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Verifier(checker)
	if err != nil {
		t.Fatal(err)
	}
	return func(token string) error {
		return v.VerifyText(t.Context(), new(capability.Grant), token, &capability.Request{Now: time.Now(), Service: "corp"})
	}
}

func parse(t *testing.T, text string) *capability.Token {
	t.Helper()
	token, err := capability.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func identityOf(t *testing.T, cfg authority.Config) *seal.Identity {
	t.Helper()
	id, err := seal.ReadIdentityFile(cfg.KeyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(id.Destroy)
	return id
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func backup(t *testing.T, c *authoritytest.Cluster) *authority.BackupFile {
	t.Helper()
	root := c.Root()
	defer root.Close()
	var b bytes.Buffer
	if err := root.SaveSnapshot(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	f, err := authority.OpenBackup(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// forged mints a token as only the authority should.
func forged(t *testing.T, s *authority.Stolen, audience, subject string, keyEpoch, epoch uint32) string {
	t.Helper()
	key, err := s.RootKey(audience, keyEpoch)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token, err := capability.Mint(key, capability.Identifier{
		Epoch: epoch, ID: capability.NewTokenID(now.UnixMilli(), [10]byte{1}), NotAfter: now.Add(10 * time.Minute), Audience: audience, Subject: subject,
	})
	if err != nil {
		t.Fatal(err)
	}
	return token.Text()
}

// TestCompromisedNode: whoever has a copy of a node's directory and key file can
// do a lot; once the node is removed as compromised, nothing of it.
func TestCompromisedNode(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	root := c.Root()
	defer root.Close()
	until(t, "n1 leads", func() bool {
		_, err := root.LeadNode(t.Context(), "n1")
		return err == nil && c.Node("n1").Authority.Leads()
	})
	files := c.Replica(t, "files", []string{"corp"}, c.Node("n1"), c.Node("n2"))
	accepts := guard(t, files)
	issued := c.Mint(t, "corp", "agent")
	joinToken, err := root.ClusterToken(t.Context(), api.ClusterTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pending, err := root.AddService(t.Context(), api.ServiceRequest{Name: "mail", Audiences: []string{"mail"}})
	if err != nil {
		t.Fatal(err)
	}
	before := backup(t, c)
	checkpoint, err := root.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	oldPin, oldRoot := c.CAFingerprint, c.RootToken

	// The theft.
	if err := c.Node("n3").Stop(); err != nil {
		t.Fatal(err)
	}
	running, open := copyOf(t, c, "n3"), copyOf(t, c, "n3")
	if err := c.Node("n3").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stolen, err := authority.Steal(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	defer stolen.Close()
	fake := forged(t, stolen, "corp", "intruder", 1, 1)
	in, err := parse(t, oldRoot).Inspect()
	if err != nil {
		t.Fatal(err)
	}
	stolenRoot, err := stolen.Registered(in.Identifier.ID)
	if err != nil {
		t.Fatal(err)
	}
	services, err := root.Tokens(t.Context(), client.TokenQuery{Audience: api.AdminAudience, Subject: "service:files"})
	if err != nil || len(services.Tokens) != 1 {
		t.Fatal(services, err)
	}
	stolenService, err := stolen.Registered(services.Tokens[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	stolenDischarger := dischargerOf(t, stolen)
	if list, err := root.Dischargers(t.Context()); err != nil || !bytes.Equal(list.Dischargers[0].PublicKey, stolenDischarger) {
		t.Fatalf("the discharger's key before: %+v, %v", list, err)
	}
	impostor := impersonate(t, stolen)

	// Until something is done about it, all of it works.
	if err := accepts(fake); err != nil {
		t.Fatalf("a forged token before: %v; it proves nothing that it is refused later", err)
	}
	if stolenRoot.Text() != oldRoot {
		t.Fatal("the root token was not made whole")
	}
	rootOf(t, running)
	if err := feeds(t, c, stolenService.Text()); err != nil {
		t.Fatalf("a service's credential before: %v", err)
	}
	if n, err := stolen.Opens(c.Node("n1").Authority, running); err != nil || n < 6 {
		t.Fatalf("%d of the keys open before: %v", n, err)
	}
	if _, err := impostor(oldPin); err != nil {
		t.Fatalf("an impostor before: %v", err)
	}
	if _, _, err := before.Inspect(identityOf(t, running)); err != nil {
		t.Fatalf("a backup of before: %v", err)
	}
	c.RootToken = rootOf(t, nodeConfig(c, "n1")) // the thief's root token has ended ours
	stolenRootNow := c.RootToken
	operator := c.Root()
	defer operator.Close()

	var gone *api.ExpelResponse
	until(t, "n3 is expelled", func() bool {
		gone, err = operator.ExpelNode(t.Context(), "n3", api.ExpelRequest{Reason: "its disk was copied"})
		if errors.Is(err, api.CodeConflict) { // it leads by now
			_, _ = operator.LeadNode(t.Context(), "n1")
			return false
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	expelled := time.Now()
	if gone.Node != "n3" || gone.CAFingerprint == oldPin || gone.Incarnation < 2 || len(gone.Services) != 2 {
		t.Errorf("%+v", gone)
	}
	if err := <-c.Node("n3").Fatal; !errors.Is(err, raftstore.ErrRemoved) {
		t.Errorf("the removed node: %v", err)
	}
	if err := c.Node("n3").Stop(); err != nil {
		t.Log(err) // it has ended already
	}

	// What a service sees that still pins the old CA: within the bound nothing is
	// accepted any more.
	until(t, "the guard refuses the forged token", func() bool { return accepts(fake) != nil })
	if after := time.Since(expelled); after > authoritytest.ClusterBound+time.Second {
		t.Errorf("refused only after %v", after)
	}
	if err := accepts(issued.Token); err == nil {
		t.Error("a token of before is accepted")
	}

	// The way back in, on any node that is left; and again, by whoever asks last.
	for _, name := range []string{"n1", "n2"} {
		c.RootToken = rootOf(t, nodeConfig(c, name))
	}
	c.CAFingerprint = gone.CAFingerprint
	for _, name := range []string{"n1", "n2"} { // one that has yet to hear of it knows none of the new keys
		until(t, name+" has heard of it", func() bool {
			pin := c.Node(name).Authority.CAFingerprint()
			return fmt.Sprintf("%x", pin) == gone.CAFingerprint
		})
	}
	again := c.Root()
	defer again.Close()
	accepts = guard(t, c.Replica(t, "files", []string{"corp"}, c.Node("n1"), c.Node("n2")))
	fresh := c.Mint(t, "corp", "agent")
	if err := accepts(fresh.Token); err != nil {
		t.Errorf("a token of afterwards: %v", err)
	}

	t.Run("tokens", func(t *testing.T) {
		for name, token := range map[string]string{"forged": fake, "issued before": issued.Token, "forged of the next epoch": forged(t, stolen, "corp", "intruder", 1, 2)} {
			if err := accepts(token); err == nil {
				t.Errorf("a token %s is accepted by a guard", name)
			}
			if _, err := again.Verify(t.Context(), parse(t, token).Bytes()); err == nil {
				t.Errorf("a token %s is accepted by the authority", name)
			}
		}
		if _, err := again.Verify(t.Context(), parse(t, fresh.Token).Bytes()); err != nil {
			t.Errorf("a token of afterwards: %v", err)
		}
	})
	t.Run("credentials", func(t *testing.T) {
		budget := c.Mint(t, "corp", "agent", "max-calls 1")
		for name, token := range map[string]string{
			"of a service": stolenService.Text(), "root": oldRoot, "the thief's root": stolenRootNow, "forged": forged(t, stolen, "writ", "root", 1<<31, 1<<31),
			"forged of the next epoch": forged(t, stolen, "writ", "root", 1<<31, 1<<31+1),
		} {
			own := c.Client(token)
			for what, try := range map[string]func() error{
				"the cluster's status": func() error { _, err := own.Cluster(t.Context()); return err },
				"its feed":             func() error { return feeds(t, c, token) },
				"its keys":             func() error { _, err := own.Keys(t.Context(), "corp"); return err },
				"a renewal":            func() error { _, err := own.Renew(t.Context()); return err },
				"a token": func() error {
					_, err := own.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "x", Owner: "x", Purpose: "x"})
					return err
				},
				"a lease": func() error {
					_, err := own.Lease(t.Context(), api.LeaseRequest{Macaroon: parse(t, budget.Token).Bytes(), Want: 1})
					return err
				},
				"a backup":        func() error { return own.SaveSnapshot(t.Context(), new(bytes.Buffer)) },
				"a token to join": func() error { _, err := own.ClusterToken(t.Context(), api.ClusterTokenRequest{}); return err },
				"the audit log":   func() error { _, err := own.AuditRecords(t.Context(), 0, 1); return err },
				"another's end":   func() error { return own.RemoveNode(t.Context(), "n2", false) },
				"another recovery": func() error {
					_, err := own.SetRecovery(t.Context(), api.RecoveryRequest{Recipient: identityOf(t, running).Recipient().String()})
					return err
				},
			} {
				if err := settled(t, try); !errors.Is(err, capability.CodeRevoked) && !errors.Is(err, capability.CodeUnknownKey) && !errors.Is(err, capability.CodeBadSignature) {
					t.Errorf("the credential %s gets %s: %v", name, what, err)
				}
			}
			own.Close()
		}
		if _, err := again.Join(t.Context(), api.JoinRequest{Name: "mail", JoinSecret: pending.JoinSecret}); err == nil {
			t.Error("a join secret of before is good")
		}
	})
	t.Run("discharger", func(t *testing.T) {
		if list, err := again.Dischargers(t.Context()); err != nil || bytes.Equal(list.Dischargers[0].PublicKey, stolenDischarger) {
			t.Errorf("caveats are still made for the key that was stolen: %+v, %v", list, err)
		}
	})
	t.Run("peer", func(t *testing.T) {
		if _, err := authority.MemberRoot(t.Context(), running); !errors.Is(err, raftstore.ErrRefused) {
			t.Errorf("a peer with the node's key: %v", err)
		}
	})
	t.Run("start", func(t *testing.T) {
		cfg := running
		cfg.Peers = &authority.PeerConfig{Listener: listen(t)}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		a, _, err := authority.Open(ctx, cfg)
		if err == nil {
			t.Error("the copy starts", a.Close())
		}
	})
	t.Run("join", func(t *testing.T) {
		valid, err := again.ClusterToken(t.Context(), api.ClusterTokenRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]string{"a token of before": joinToken.Token, "its old key": valid.Token} {
			cfg := running
			cfg.NodeID, cfg.Dir = "n9", filepath.Join(t.TempDir(), "data")
			cfg.Peers = &authority.PeerConfig{Listener: listen(t)}
			if name != "its old key" {
				cfg.KeyFile = filepath.Join(t.TempDir(), "key")
			}
			req, err := authority.PrepareJoin(cfg, token)
			if err != nil {
				t.Fatal(err)
			}
			if err := settled(t, func() error { _, err := again.ClusterJoin(t.Context(), *req); return err }); !errors.Is(err, api.CodeUnauthorized) && !errors.Is(err, api.CodeConflict) {
				t.Errorf("joining with %s: %v", name, err)
			}
		}
	})
	t.Run("keys", func(t *testing.T) {
		if n, err := stolen.Opens(c.Node("n2").Authority, running); err != nil || n != 0 {
			t.Errorf("%d keys open: %v", n, err)
		}
		if _, _, err := backup(t, c).Inspect(identityOf(t, running)); !errors.Is(err, authority.ErrKeyFile) {
			t.Errorf("a backup of afterwards: %v", err)
		}
		if _, _, err := backup(t, c).Inspect(identityOf(t, nodeConfig(c, "n2"))); err != nil {
			t.Errorf("a backup of afterwards, for a member: %v", err)
		}
	})
	t.Run("impostor", func(t *testing.T) {
		if _, err := impostor(gone.CAFingerprint); !errors.Is(err, client.ErrFingerprint) {
			t.Errorf("whoever signs with the old CA: %v", err)
		}
		for _, name := range []string{"n1", "n2"} {
			cfg := c.Config(c.RootToken)
			cfg.Addrs, cfg.CAFingerprint, cfg.Attempts = []string{c.Node(name).Addr}, oldPin, 1
			old, err := client.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := old.Cluster(t.Context()); !errors.Is(err, client.ErrFingerprint) {
				t.Errorf("%s shows the old CA: %v", name, err)
			}
			old.Close()
		}
	})
	t.Run("audit", func(t *testing.T) {
		now, err := again.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seed, err := stolen.Secret("audit")
		if err != nil {
			t.Fatal(err)
		}
		verifier, err := audit.ParseVerifier(now.VerifierKey)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := audit.NewSigner(verifier.Name(), seed)
		if err != nil {
			t.Fatal(err)
		}
		lie, err := audit.Checkpoint{Origin: verifier.Name(), Size: 1}.Sign(signer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.VerifyCheckpoint(lie, verifier); !errors.Is(err, audit.ErrSignature) {
			t.Errorf("a checkpoint by the old key: %v", err)
		}
		if now.VerifierKey == checkpoint.VerifierKey {
			t.Error("the audit key stays")
		}
	})
	// What is left works: nodes start anew, the two logs verify, another node joins.
	if err := c.Node("n2").Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.Node("n2").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Add(t.Context(), api.ClusterTokenRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	now, err := again.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Node("n2").Stop(); err != nil {
		t.Fatal(err)
	}
	for dir, k := range map[string]string{"1": checkpoint.VerifierKey, fmt.Sprint(gone.Incarnation): now.VerifierKey} {
		verifier, err := audit.ParseVerifier(k)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := audit.VerifyDir(filepath.Join(nodeConfig(c, "n2").Dir, "audit", dir), verifier); err != nil || r.Size < 2 {
			t.Errorf("the audit log of incarnation %s: %+v, %v", dir, r, err)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// settled makes a call again whose outcome is not known: on a busy machine a node
// can be too slow with its refusal.
func settled(t *testing.T, call func() error) (err error) {
	t.Helper()
	until(t, "an outcome", func() bool {
		err = call()
		return !errors.Is(err, api.CodeIndeterminate)
	})
	return err
}

// rootOf asks with a member's key for a root token, again where the leader that was
// asked has gone.
func rootOf(t *testing.T, cfg authority.Config) (token string) {
	t.Helper()
	until(t, "a member's key gets a root token", func() (done bool) {
		var err error
		token, err = authority.MemberRoot(t.Context(), cfg)
		if err != nil && !errors.Is(err, raftstore.ErrIndeterminate) && !errors.Is(err, raftstore.ErrNotLeader) {
			t.Fatalf("%s: %v", cfg.NodeID, err)
		}
		return err == nil
	})
	return token
}

// dischargerOf is the public half of the discharger's key that was stolen.
func dischargerOf(t *testing.T, s *authority.Stolen) []byte {
	t.Helper()
	seed, err := s.Secret("discharger")
	if err != nil {
		t.Fatal(err)
	}
	key, err := capability.NewDischargerKey([32]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public()
	return public[:]
}

// feeds opens a feed with a credential.
func feeds(t *testing.T, c *authoritytest.Cluster, token string) error {
	t.Helper()
	cfg := c.Config(token)
	cfg.Addrs, cfg.Attempts = []string{c.Node("n2").Addr}, 1
	own, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	f, err := own.Feed(t.Context(), client.FeedRequest{Audiences: []string{"corp"}})
	if err != nil {
		return err
	}
	f.Close()
	return nil
}

// impersonate serves the API with a certificate by the stolen CA. It returns what
// a client with a pin meets.
func impersonate(t *testing.T, s *authority.Stolen) func(pin string) (*api.CAInfo, error) {
	t.Helper()
	cert, err := s.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"ca_fingerprint":"","not_after":"2030-01-01T00:00:00Z"}`)
	})}
	go func() {
		_ = srv.Serve(tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}}))
	}()
	t.Cleanup(func() { srv.Close() })
	return func(pin string) (*api.CAInfo, error) {
		c, err := client.New(client.Config{Addrs: []string{ln.Addr().String()}, CAFingerprint: pin, Token: forged(t, s, "corp", "x", 1, 1), Attempts: 1})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.CA(t.Context())
	}
}
