package wallet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/atomicfile"
	"github.com/writ-dev/writ/capability"
)

const (
	maxCached = 256     // discharges; those that end first go first
	maxFile   = 4 << 20 // bytes
	margin    = 10 * time.Second
)

// ErrFile is wrapped by every error about the wallet's file.
var ErrFile = errors.New("wallet file")

// cached is a discharge that is kept.
type cached struct {
	Caveat    string    `json:"caveat"` // SHA-256 of the caveat id, in hexadecimal
	Discharge string    `json:"discharge"`
	Expires   time.Time `json:"expires"`
}

func caveatName(id []byte) string {
	sum := sha256.Sum256(id)
	return hex.EncodeToString(sum[:])
}

// load reads the file. One that is not there is an empty one.
func load(path string) ([]cached, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s can be read by others: chmod 600", ErrFile, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	var all struct {
		Discharges []cached `json:"discharges"`
	}
	if len(b) > maxFile || api.Decode(b, &all) != nil || len(all.Discharges) > maxCached {
		return nil, fmt.Errorf("%w: %s is no wallet", ErrFile, path)
	}
	return all.Discharges, nil
}

// save replaces the file.
func save(path string, all []cached) error {
	b, err := json.Marshal(map[string][]cached{"discharges": all})
	if err != nil {
		return err
	}
	if err := atomicfile.Replace(path, append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	return nil
}

// find returns a discharge that is good for a while yet.
func (w *Wallet) find(id []byte, now time.Time) (*capability.Token, time.Time) {
	name := caveatName(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.kept {
		if c.Caveat == name && c.Expires.After(now.Add(margin)) {
			if t, err := capability.Parse(c.Discharge); err == nil {
				return t, c.Expires
			}
		}
	}
	return nil, time.Time{}
}

// keep remembers a discharge, drops those that have ended, and writes the file.
func (w *Wallet) keep(id []byte, r *api.AttestResponse, now time.Time) error {
	name := caveatName(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = slices.DeleteFunc(w.kept, func(c cached) bool { return c.Caveat == name || !c.Expires.After(now) })
	w.kept = append(w.kept, cached{name, r.Discharge, r.Expires})
	slices.SortStableFunc(w.kept, func(a, b cached) int { return a.Expires.Compare(b.Expires) })
	w.kept = slices.Clone(w.kept[max(0, len(w.kept)-maxCached):])
	if w.cfg.File == "" {
		return nil
	}
	return save(w.cfg.File, w.kept)
}

// drop forgets the discharge of a caveat, so that the next one is fresh.
func (w *Wallet) drop(id []byte) {
	name := caveatName(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = slices.DeleteFunc(w.kept, func(c cached) bool { return c.Caveat == name })
}
