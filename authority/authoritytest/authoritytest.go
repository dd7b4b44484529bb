// Package authoritytest starts a real authority for tests and examples: one
// node, Raft with one voter, TLS on loopback, in a directory of its own.
package authoritytest

import (
	"context"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
)

// Node is a running authority.
type Node struct {
	Addr          string // host:port
	CAFingerprint string
	RootToken     string // of audience writ; may do everything
	Dir           string
}

// Start starts an authority, which ends with the test.
func Start(t testing.TB) *Node { panic("stub") }

// Run is Start without a test, for examples; stop ends the node and removes dir.
func Run(ctx context.Context, dir string) (n *Node, stop func(), err error) { panic("stub") }

// Root returns a client with the root token.
func (n *Node) Root() *client.Client { panic("stub") }

// Client returns a client with this credential; an empty one sends none.
func (n *Node) Client(token string) *client.Client { panic("stub") }

// Service adds a service for these audiences, joins it and returns a client
// with its credential.
func (n *Node) Service(t testing.TB, r api.ServiceRequest) *client.Client { panic("stub") }

// Replica opens a replica for a fresh service of these audiences, which ends
// with the test.
func (n *Node) Replica(t testing.TB, name string, audiences ...string) *replica.Replica {
	panic("stub")
}

// Mint issues a token with the root token.
func (n *Node) Mint(t testing.TB, audience, subject string, caveats ...string) *api.TokenResponse {
	panic("stub")
}
