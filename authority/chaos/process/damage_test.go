//go:build linux

package process

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Where bbolt's meta pages, the first two, have their fields: behind a page header
// of 16 bytes.
const (
	metaPgid = 56 // pages in use
	metaTxid = 64
	metaEnd  = 80
)

// damage ends a node, does something to one of its files and starts it again.
// It refuses, or all goes on as if nothing had been: what it must not do is
// something else than the others. One that refuses is replaced by another node.
func (r *campaign) damage(ctx context.Context, n *node, what string, mustRefuse bool, do func() error) (undo, error) {
	n.kill()
	if err := do(); err != nil {
		return nothing, fmt.Errorf("%s: %w", what, err)
	}
	err := n.restart(ctx)
	e, refused := errors.AsType[*ended](err)
	switch {
	case err != nil && !refused:
		r.violated("%s: %v", what, err)
		n.kill()
	case refused && (e.exit == 0 || e.code == "no code"):
		r.violated("%s: %v", what, e)
	case !refused && mustRefuse:
		r.violated("%s, and %s starts", what, n.name)
	}
	r.t.Logf("%s of %s: %v", what, n.name, err)
	if err == nil {
		// It may find what is wrong only when it needs it.
		settling, cancel := context.WithCancel(ctx)
		defer cancel()
		go func(exited chan struct{}) {
			select {
			case <-exited:
				cancel()
			case <-settling.Done():
			}
		}(n.exited)
		if err := r.settle(settling); err == nil {
			c := r.client(n)
			defer c.Close()
			if _, err = trail(ctx, c); err == nil {
				return nothing, nil
			}
			r.t.Logf("the audit log of %s: %v", n.name, err) // which is not read to start
			n.kill()
		} else {
			select {
			case <-n.exited:
				n.cmd = nil
			default:
				r.violated("%s: %s neither ends nor works", what, n.name)
				n.kill()
			}
		}
	}
	r.refused++
	return nothing, r.replace(ctx, n)
}

// tornLog takes the end off the log, as a write does that was cut short.
func (r *campaign) tornLog(ctx context.Context, s scene) (undo, error) {
	path := filepath.Join(s.follower.data(), "writ/raft/raft.db")
	return r.damage(ctx, s.follower, "a torn log", true, func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		used := int64(0)
		for page := range 2 {
			var meta [metaEnd]byte
			if _, err := f.ReadAt(meta[:], int64(page*os.Getpagesize())); err != nil {
				return err
			}
			used = max(used, int64(binary.LittleEndian.Uint64(meta[metaPgid:])))
		}
		return os.Truncate(path, (used-1)*int64(os.Getpagesize())-int64(s.choice%4096))
	})
}

// flippedMeta flips a bit of one of bbolt's meta pages.
func (r *campaign) flippedMeta(ctx context.Context, s scene) (undo, error) {
	path := filepath.Join(s.follower.data(), "writ/raft/raft.db")
	random := rand.New(rand.NewPCG(s.choice, 0))
	off := int64(random.IntN(2)*os.Getpagesize() + 16 + random.IntN(metaEnd-16))
	return r.damage(ctx, s.follower, fmt.Sprintf("a flipped bit at %d in raft.db", off), true, func() error {
		return flip(path, off, 1<<random.IntN(8))
	})
}

// flipped flips a bit of what is written in a file of a node, which has a pattern as
// in path.Match: of a follower, if one has such a file with anything in it.
func flipped(pattern string) func(*campaign, context.Context, scene) (undo, error) {
	return func(r *campaign, ctx context.Context, s scene) (undo, error) {
		random := rand.New(rand.NewPCG(s.choice, 0))
		var n *node
		var path string
		var b []byte
		waiting, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		if err := until(waiting, "a file to damage", func() error { // a snapshot comes after a while
			for _, n = range slices.Concat([]*node{s.follower}, s.others, []*node{s.leader}) {
				files, err := filepath.Glob(filepath.Join(n.data(), "writ", pattern))
				if err != nil || len(files) == 0 {
					continue // the pattern is our own
				}
				path = files[random.IntN(len(files))]
				if b, err = os.ReadFile(path); err == nil && len(b) > 0 {
					return nil
				}
			}
			return fmt.Errorf("nobody has anything in %s", pattern)
		}); err != nil {
			return nothing, err
		}
		off := random.IntN(len(b))
		if !strings.HasSuffix(path, ".json") {
			// Most of a database is space for later. It is not a kind of its own.
			for b[off] == 0 {
				off = random.IntN(len(b))
			}
		}
		name, err := filepath.Rel(n.dir, path)
		if err != nil {
			return nothing, err
		}
		return r.damage(ctx, n, fmt.Sprintf("a flipped bit at %d in %s", off, name), false, func() error {
			return flip(path, int64(off), 1<<random.IntN(8))
		})
	}
}

func flip(path string, off int64, bit byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= bit
	_, err = f.WriteAt(b[:], off)
	return err
}
