// Package authoritytest starts a real authority for tests and examples: one
// node, Raft with one voter, TLS on loopback, in a directory of its own.
package authoritytest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/authority/server"
)

// Options changes what is started.
type Options struct {
	Bound       time.Duration           // staleness bound; 0: the authority's default
	Limits      server.Limits           // of the server
	Logger      *slog.Logger            // nil: none
	Authority   func(*authority.Config) // last word on the authority's configuration
	Listen      string                  // 127.0.0.1:0 if empty
	RotateEvery time.Duration           // 0: the authority's default
	Tracing     trace.TracerProvider    // of the servers; nil: none
}

// Node is a running authority.
type Node struct {
	Addr          string // host:port
	CAFingerprint string // hex
	RootToken     string // of audience writ; may do everything
	Dir           string // of everything the node has written
	Authority     *authority.Authority
	Server        *server.Server
}

// Start starts an authority, which ends with the test. At most one Options.
func Start(t testing.TB, options ...Options) *Node {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, stop, err := Run(ctx, dir, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stopping the authority: %v", err)
		}
	})
	return n
}

// Run is Start without a test, for examples: it starts an authority in dir, and
// stop ends it. ctx bounds the start only.
func Run(ctx context.Context, dir string, options ...Options) (n *Node, stop func() error, err error) {
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	cfg := authority.Config{
		Dir: filepath.Join(dir, "data"), KeyFile: filepath.Join(dir, "node.key"), NodeID: "n1", Bootstrap: true,
		Bound: o.Bound, RotateEvery: o.RotateEvery, Version: "test", Logger: o.Logger,
	}
	if o.Authority != nil {
		o.Authority(&cfg)
	}
	a, formed, err := authority.Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	fp := a.CAFingerprint()
	n = &Node{CAFingerprint: hex.EncodeToString(fp[:]), Dir: dir, Authority: a}
	root := filepath.Join(dir, "root.token")
	if formed != nil {
		n.RootToken = formed.RootToken
		err = os.WriteFile(root, []byte(n.RootToken+"\n"), 0o600)
	} else {
		// The same directory again: the token of the first start is still good.
		var b []byte
		b, err = os.ReadFile(root)
		n.RootToken = string(trim(b))
	}
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	if n.Server, err = server.New(server.Config{Authority: a, Logger: o.Logger, Limits: o.Limits, TracerProvider: o.Tracing}); err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	n.Addr = ln.Addr().String()
	serving, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Server.Serve(serving, ln) }()
	return n, func() error {
		cancel()
		return errors.Join(<-done, a.Close())
	}, nil
}

func trim(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

// Config is a client's configuration for this node with a credential.
func (n *Node) Config(token string) client.Config {
	return client.Config{Addrs: []string{n.Addr}, CAFingerprint: n.CAFingerprint, Token: token}
}

// Root returns a client with the root token.
func (n *Node) Root() *client.Client { return n.Client(n.RootToken) }

// Client returns a client with this credential; an empty one sends none.
func (n *Node) Client(token string) *client.Client {
	c, err := client.New(n.Config(token))
	if err != nil {
		panic("authoritytest: " + err.Error()) // the configuration is our own
	}
	return c
}

// Join adds a service, joins it and returns its credential.
func (n *Node) Join(ctx context.Context, r api.ServiceRequest) (string, error) {
	root := n.Root()
	defer root.Close()
	return join(ctx, root, r)
}

func join(ctx context.Context, root *client.Client, r api.ServiceRequest) (string, error) {
	added, err := root.AddService(ctx, r)
	if err != nil {
		return "", fmt.Errorf("adding service %s: %w", r.Name, err)
	}
	joined, err := root.Join(ctx, api.JoinRequest{Name: r.Name, JoinSecret: added.JoinSecret})
	if err != nil {
		return "", fmt.Errorf("joining service %s: %w", r.Name, err)
	}
	return joined.Token, nil
}

// Service adds a service, joins it and returns a client with its credential.
func (n *Node) Service(t testing.TB, r api.ServiceRequest) *client.Client {
	t.Helper()
	token, err := n.Join(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	c := n.Client(token)
	t.Cleanup(c.Close)
	return c
}

// Replica opens a replica for a fresh service of these audiences, which ends
// with the test.
func (n *Node) Replica(t testing.TB, name string, audiences ...string) *replica.Replica {
	t.Helper()
	return Open(t, replica.Config{
		Client: n.Service(t, api.ServiceRequest{Name: name, Audiences: audiences}), Audiences: audiences,
	})
}

// Open opens a replica that ends with the test.
func Open(t testing.TB, cfg replica.Config) *replica.Replica {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := replica.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("closing the replica: %v", err)
		}
	})
	return r
}

// Mint issues a token with the root token, for 15 minutes.
func (n *Node) Mint(t testing.TB, audience, subject string, caveats ...string) *api.TokenResponse {
	t.Helper()
	root := n.Root()
	defer root.Close()
	return mint(t, root, audience, subject, caveats...)
}

func mint(t testing.TB, root *client.Client, audience, subject string, caveats ...string) *api.TokenResponse {
	t.Helper()
	got, err := root.Issue(t.Context(), api.IssueRequest{
		Audience: audience, Subject: subject, Owner: "owner@" + audience + ".example", Purpose: "test", TTLSeconds: 900, Caveats: caveats,
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
