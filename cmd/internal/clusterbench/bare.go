package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/cmd/internal/wait"
	"github.com/writ-dev/writ/raftstore"
)

// The yardstick is hashicorp/raft with our log store and transport, BatchApplyCh
// and all, under a state machine that does nothing: three processes as well, the
// callers in the leader's own.

// bareOrder is what a bare node is told on its standard input, a line of JSON
// each.
type bareOrder struct {
	Add     string        `json:"add,omitempty"` // a node, at Address
	Address string        `json:"address,omitempty"`
	Callers int           `json:"callers,omitempty"` // propose for so long
	Each    time.Duration `json:"each,omitempty"`
	Size    int           `json:"size,omitempty"`   // bytes of a command
	Others  []int         `json:"others,omitempty"` // the processes of the other nodes
}

// bareAnswer is what it answers.
type bareAnswer struct {
	Address   string        `json:"address,omitempty"`
	PerSecond float64       `json:"per_second,omitempty"`
	Median    time.Duration `json:"median,omitempty"`
	Each      time.Duration `json:"each,omitempty"` // processor time of all nodes for one
}

// blank is a state machine that does nothing.
type blank struct{ applied atomic.Uint64 }

// Apply implements raftstore.StateMachine.
func (m *blank) Apply(batch []raftstore.Entry) []any {
	m.applied.Store(batch[len(batch)-1].Index)
	return make([]any, len(batch))
}

// AppliedIndex implements raftstore.StateMachine.
func (m *blank) AppliedIndex() uint64 { return m.applied.Load() }

// Snapshot implements raftstore.StateMachine.
func (m *blank) Snapshot() (raftstore.Snapshot, error) { return blankSnapshot(m.applied.Load()), nil }

// Restore implements raftstore.StateMachine.
func (m *blank) Restore(r io.Reader) error {
	var s blankSnapshot
	err := json.NewDecoder(r).Decode(&s)
	m.applied.Store(uint64(s))
	return err
}

type blankSnapshot uint64

// Persist implements raftstore.Snapshot.
func (s blankSnapshot) Persist(w io.Writer) error { return json.NewEncoder(w).Encode(s) }

// Release implements raftstore.Snapshot.
func (s blankSnapshot) Release() {}

// bareMain is a bare node: its name and its directory.
func bareMain(args []string) error {
	if len(args) != 2 {
		return errors.New("bare NAME DIRECTORY")
	}
	name := args[0]
	cert, err := selfSigned(name)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	trans, err := raftstore.NewTransport(raftstore.TransportConfig{
		NodeID: name, Listener: ln,
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Authorize:   func(s tls.ConnectionState) (string, error) { return s.PeerCertificates[0].Subject.CommonName, nil },
	})
	if err != nil {
		return err
	}
	store, err := raftstore.Open(raftstore.Config{
		Dir: args[1], NodeID: name, Transport: trans, Bootstrap: name == "n1", Join: name != "n1",
	}, new(blank))
	if err != nil {
		return err
	}
	defer store.Close()
	if name == "n1" {
		if _, err := store.WaitLeader(context.Background()); err != nil {
			return err
		}
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(bareAnswer{Address: string(trans.LocalAddr())}); err != nil {
		return err
	}
	for in := json.NewDecoder(os.Stdin); ; {
		var o bareOrder
		if err := in.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		a, err := o.follow(store)
		if err == nil {
			err = out.Encode(a)
		}
		if err != nil {
			return err
		}
	}
}

func (o *bareOrder) follow(store *raftstore.Store) (a bareAnswer, err error) {
	ctx := context.Background()
	if o.Add != "" {
		if err := store.AddNonvoter(ctx, o.Add, o.Address); err != nil {
			return a, err
		}
		return a, wait.Until(ctx, 10*time.Millisecond, func() bool {
			err = store.Promote(ctx, o.Add, false)
			return err == nil || !errors.Is(err, raftstore.ErrLagging)
		})
	}
	command := make([]byte, o.Size)
	_, _ = rand.Read(command)
	l, err := drive(ctx, o.Callers, o.Each, func(ctx context.Context, _ int) error {
		// A machine that is busy with something else may have the leader change.
		return wait.Until(ctx, 10*time.Millisecond, func() bool {
			_, err := store.Propose(ctx, command)
			return err == nil
		})
	}, o.Others...)
	return bareAnswer{PerSecond: l.perSecond(), Median: l.took.at(0.5), Each: l.each()}, err
}

// selfSigned is a certificate that names a node, for a minute's benchmark.
func selfSigned(name string) (*tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
}

// bareNode is a bare node as a process.
type bareNode struct {
	cmd     *exec.Cmd
	in      *json.Encoder
	stdin   io.Closer
	out     *json.Decoder
	address string
}

func (b *bench) bareNode(name, dir string) (*bareNode, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	n := &bareNode{cmd: exec.Command(self, "bare", name, dir)}
	n.cmd.Stderr = b.nodes
	in, err := n.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	n.in, n.stdin, n.out = json.NewEncoder(in), in, json.NewDecoder(bufio.NewReader(out))
	var a bareAnswer
	if err := n.out.Decode(&a); err != nil {
		return nil, errors.Join(fmt.Errorf("bare node %s: %w", name, err), n.end())
	}
	n.address = a.Address
	return n, nil
}

func (n *bareNode) end() error {
	_ = n.stdin.Close()
	return n.cmd.Wait()
}

func (n *bareNode) order(o bareOrder) (a bareAnswer, err error) {
	if err := n.in.Encode(o); err != nil {
		return a, err
	}
	return a, n.out.Decode(&a)
}

// yardstick is what bare Raft does with commands of a size: one caller, and many.
func (b *bench) yardstick(size, callers int) (one, many bareAnswer, err error) {
	dir := filepath.Join(b.dir, "bare")
	defer os.RemoveAll(dir)
	var nodes []*bareNode
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.end())
		}
	}()
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		n, err := b.bareNode(name, filepath.Join(dir, name))
		if err != nil {
			return one, many, err
		}
		nodes = append(nodes, n)
		if i > 0 {
			if _, err := nodes[0].order(bareOrder{Add: name, Address: n.address}); err != nil {
				return one, many, err
			}
		}
	}
	if one, err = nodes[0].order(bareOrder{Callers: 1, Each: b.each / 2, Size: size}); err != nil {
		return one, many, err
	}
	others := []int{nodes[1].cmd.Process.Pid, nodes[2].cmd.Process.Pid}
	many, err = nodes[0].order(bareOrder{Callers: callers, Each: b.each, Size: size, Others: others})
	return one, many, err
}
