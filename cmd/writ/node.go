package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/raftstore"
)

// node is an open authority. serve, dev, bench and keys root all open the same one.
type node struct {
	*authority.Authority
	formed *authority.Bootstrapped // what forming it handed out, or nil
	fatal  chan error              // what it cannot go on after
	log    *slog.Logger
	spans  trace.TracerProvider // nil: none
	limits server.Limits

	// For failpoints; nil in every other build.
	now    func() time.Time
	opened func(*authority.Authority)
}

// holdsNode reports whether dir is in use by a node, running or not.
func holdsNode(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(entries) > 0, err
}

// checkDir refuses a data directory that others can reach.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is made with the right mode
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &failure{Code: "config", Message: dir + " is no directory", Hint: "choose another --data-dir"}
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return &failure{Code: "permission", Message: fmt.Sprintf("data directory %s has mode %04o: others can reach it", dir, mode), Hint: "chmod 700 " + dir}
	}
	return nil
}

// openNode opens the node that c describes; form has it form a new authority
// of one node first.
func openNode(ctx context.Context, a *app, c *config, log *slog.Logger, form bool) (*node, error) {
	return openMember(ctx, c, log, form, nil, nil)
}

// openMember is openNode for a node that serves its API at an address, and may
// have to join a cluster first.
func openMember(ctx context.Context, c *config, log *slog.Logger, form bool, apiAddr net.Addr, join func(context.Context, *authority.Config) error) (*node, error) {
	if err := checkDir(c.DataDir); err != nil {
		return nil, err
	}
	held, err := holdsNode(c.DataDir)
	switch {
	case err != nil:
		return nil, err
	case form && held:
		return nil, &failure{Code: "exists", Message: c.DataDir + " is not empty", Hint: "leave out --init to start the authority that is there, or choose an empty directory"}
	case join != nil && held:
		return nil, &failure{Code: "exists", Message: c.DataDir + " is not empty", Hint: "writ serve starts the node that is there; one that is to join needs an empty directory"}
	case !form && !held && join == nil:
		return nil, &failure{Code: "not_formed", Message: "no authority in " + c.DataDir, Hint: "writ serve --init forms a new one"}
	}
	dischargers, err := c.dischargers()
	if err != nil {
		return nil, err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	n := &node{fatal: make(chan error, 1), log: log, limits: c.limits()}
	cfg := authority.Config{
		Dir: c.DataDir, NodeID: c.Node, KeyFile: c.NodeKey, Passphrase: c.passphrase(), Protector: protector(c.NodeKeyTPM),
		Bootstrap: form, Recovery: c.Recovery, Bound: time.Duration(c.Bound), RotateEvery: time.Duration(c.RotateEvery),
		Dischargers: dischargers, Hosts: c.Hosts, Version: version().Version,
		OnFatal: func(err error) {
			select {
			case n.fatal <- err:
			default:
			}
		},
		Logger: log,
	}
	if err := n.sabotage(&cfg); err != nil {
		return nil, err
	}
	if cfg.Peers, err = c.peers(apiAddr); err != nil {
		return nil, err
	}
	if join != nil {
		if err := join(ctx, &cfg); err != nil {
			return nil, errors.Join(err, cfg.Peers.Listener.Close())
		}
	}
	if n.Authority, n.formed, err = authority.Open(ctx, cfg); err != nil {
		return nil, err
	}
	if n.opened != nil {
		n.opened(n.Authority)
	}
	if cfg.Peers != nil {
		n.awaitQuorum(ctx)
	}
	return n, nil
}

// fingerprint is the pin that clients need.
func (n *node) fingerprint() string {
	f := n.CAFingerprint()
	return hex.EncodeToString(f[:])
}

// The collector runs when what is in use has grown by collectAt percent: half, so
// that a node with much state, nearly all of it an index that is quick to mark, takes
// no more than half as much again. The ballast is memory that is never touched, and so
// takes none: without it a node with little state would collect thirty times a
// second under load.
const (
	collectAt = 50
	ballast   = 128 << 20
)

// serve serves the API on ln, and the metrics on their own listener if there
// is one, until ctx ends or the node cannot go on. It closes them and the node.
func (n *node) serve(ctx context.Context, ln, metrics net.Listener) error {
	defer n.Close()
	defer ln.Close()
	defer runtime.KeepAlive(make([]byte, ballast))
	s, err := server.New(server.Config{Authority: n.Authority, Now: n.now, Logger: n.log, HideMetrics: metrics != nil, TracerProvider: n.spans, Limits: n.limits})
	if err != nil {
		return err
	}
	if metrics != nil {
		m := &http.Server{Handler: s.Metrics(), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelWarn)}
		defer m.Close()
		go func() { _ = m.Serve(metrics) }() // ends with m.Close
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-n.fatal:
			cancel(fatalError{err})
		case <-ctx.Done():
		}
	}()
	err = s.Serve(ctx, ln)
	if cause, ok := errors.AsType[fatalError](context.Cause(ctx)); ok {
		return cause
	}
	return err
}

// fatalError is what a node could not go on after.
type fatalError struct{ error }

func (f fatalError) Unwrap() error { return f.error }

// explainNode explains what opening and running a node can meet.
func explainNode(err error) *failure {
	msg := lower(err.Error())
	switch {
	case errors.Is(err, raftstore.ErrLocked):
		return &failure{Code: "locked", Message: msg, Hint: "another writ serves this data directory: stop it first, or use its API"}
	case errors.Is(err, raftstore.ErrCorrupt):
		return &failure{Code: "corrupt", Message: msg, Hint: "the file was damaged: keep a copy of the directory, and restore it from a backup of this node"}
	case errors.Is(err, raftstore.ErrDiskFull), errors.Is(err, raftstore.ErrStateMachine) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)):
		// Of the second, what was acknowledged found no space to be applied in.
		msg, _, _ = strings.Cut(msg, "\n") // a stack follows
		return &failure{Code: "disk_full", Message: msg, Hint: "free some space and start it again; nothing acknowledged is lost"}
	case errors.Is(err, raftstore.ErrDiskStalled):
		return &failure{Code: "disk_stalled", Message: msg, Hint: "the disk does not answer in time"}
	case errors.Is(err, raftstore.ErrStateMachine):
		msg, _, _ = strings.Cut(msg, "\n") // a stack follows
		return &failure{Code: "state_machine", Message: msg, Hint: "this node's files contradict each other: keep a copy of the data directory, and restore the node from a backup"}
	case errors.Is(err, raftstore.ErrRemoved):
		return &failure{Code: "removed", Message: msg, Hint: "its name and its key never come back: writ cluster join, under another name, into an empty data directory and with a new key file"}
	case errors.Is(err, raftstore.ErrEmptyDir):
		return &failure{Code: "not_formed", Message: msg, Hint: "writ serve --init forms a new one"}
	case errors.Is(err, seal.ErrPassphrase):
		return &failure{Code: "wrong_passphrase", Message: msg, Hint: "check --passphrase-file"}
	case errors.Is(err, seal.ErrPermissions):
		return &failure{Code: "permission", Message: msg, Hint: "chmod 600 the key file"}
	case errors.Is(err, seal.ErrKind):
		return &failure{Code: "wrong_passphrase", Message: msg, Hint: "the key file is protected: name its --passphrase-file, or the TPM with --node-key-tpm"}
	case errors.Is(err, seal.ErrRefused):
		return &failure{Code: "wrong_key_file", Message: msg, Hint: "the data directory is of another node: name the key file that it was formed with"}
	}
	switch {
	case errors.Is(err, authority.ErrKeyFile):
		return &failure{Code: "wrong_key_file", Message: msg, Hint: "name the key file that this node was formed with: --node-key"}
	case errors.Is(err, authority.ErrUnreached):
		return &failure{Code: "unreached", Message: msg, Hint: "it has its place, and the token is spent: check that the others reach that address and that a majority of them is up, then start it with writ serve"}
	case errors.Is(err, authority.ErrNotFormed):
		return &failure{Code: "not_formed", Message: msg, Hint: "writ serve --init forms a new one"}
	case errors.Is(err, authority.ErrConfig):
		return &failure{Code: "config", Message: msg, Hint: "writ help config tells every key"}
	}
	if e, ok := errors.AsType[*authority.Error](err); ok {
		return &failure{Code: string(e.Code), Message: msg, Hint: e.Hint}
	}
	return nil
}

// formedFile makes the file for the root token before there is one, so that
// forming an authority never ends with a token that could not be stored.
func formedFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}
