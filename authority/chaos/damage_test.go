package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-dev/writ/raftstore"
)

// losePower has the disk of a node that was killed forget, or hold a part of, what
// was written and not synced: the tail of the audit log.
func (n *node) losePower(r *rand.Rand) error {
	dirs, err := filepath.Glob(filepath.Join(n.dir, "data", "audit", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "commit"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		const magic = 8
		b = b[magic+2+int(binary.BigEndian.Uint16(b[magic:])):]
		size, segment, offset := int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint64(b[24:]), int64(binary.BigEndian.Uint64(b[32:]))
		for name, synced := range map[string]int64{
			fmt.Sprintf("bodies-%016x.seg", segment): offset,
			"hashes":                                 tlog.StoredHashCount(size) * tlog.HashSize,
			"index":                                  size * 16,
		} {
			if err := tear(filepath.Join(dir, name), synced, r.Float64()); err != nil {
				return err
			}
		}
	}
	return nil
}

// tear keeps what was synced of a file, and a part of the rest.
func tear(path string, synced int64, part float64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() <= synced {
		return nil
	}
	return os.Truncate(path, synced+int64(part*float64(info.Size()-synced)))
}

// flip has one bit of a node's files turn over while it is down. A node that
// notices is replaced by another; one that does not must be as good as before.
func flip(s *sim, ctx context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
	if s.made == voters+spare {
		return nothing, nil, errNotMade // there is no place for another node
	}
	if err := n.kill(); err != nil {
		return nil, nil, err
	}
	what, err := n.flip(r)
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		err := s.restart(n)
		s.event("%s, with a bit of %s flipped, starts: %v", n.name, what, err)
		if err == nil {
			if strings.Contains(what, "meta page") {
				s.violated("%s started with a damaged meta page", n.name)
			}
			if _, err := auditRecords(ctx, n.running()); err != nil {
				s.event("%s: its audit log: %v", n.name, err) // which is not read to start
				return s.replace(ctx, n)
			}
			return nil
		}
		if strings.Contains(what, "raft") && !errors.Is(err, raftstore.ErrCorrupt) {
			s.violated("%s, with a bit of %s flipped, says %v", n.name, what, err)
		}
		return s.replace(ctx, n)
	}, nil, nil
}

// flip flips one bit: in half of all cases in a meta page of Raft's log.
func (n *node) flip(r *rand.Rand) (what string, err error) {
	var files []string
	err = filepath.WalkDir(n.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "LOCK" {
			if info, err := e.Info(); err == nil && info.Size() > 0 {
				files = append(files, path)
			}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	file := files[r.IntN(len(files))]
	if r.IntN(2) == 0 {
		file = filepath.Join(n.dir, "data", "raft", "raft.db")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	at := r.IntN(len(b))
	what = strings.TrimPrefix(file, n.dir)
	if filepath.Base(file) == "raft.db" && r.IntN(2) == 0 {
		// A meta page begins with a header of 16 bytes; 64 are checked by its sum,
		// which is the last of them.
		at = r.IntN(2)*os.Getpagesize() + 16 + r.IntN(64)
		what += ", meta page"
	}
	b[at] ^= 1 << r.IntN(8)
	return what, os.WriteFile(file, b, 0o600)
}
