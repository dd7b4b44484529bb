package authority

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/writ-dev/writ/authority/audit"
)

// trail is the audit log beside the state: a state.AuditSink that opens the
// files once the state knows whose they are. Each incarnation has a directory of
// its own, named by its number.
type trail struct {
	dir   string
	peers *peers // who have what is missing; nil: nobody

	mu  sync.Mutex
	log *audit.Log // guarded by mu; nil until the origin is known
}

// Open implements state.AuditSink.
func (t *trail) Open(origin string, edge audit.Edge) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.log != nil && t.log.Origin() != origin {
		err := errors.Join(t.log.Sync(), t.log.Close())
		t.log = nil
		if err != nil {
			return err
		}
	}
	if t.log == nil {
		log, err := audit.Open(filepath.Join(t.dir, originDir(origin)), origin)
		if err != nil {
			return err
		}
		t.log = log
	}
	err := t.log.Reconcile(edge)
	if errors.Is(err, audit.ErrBehind) && t.peers != nil {
		if err := t.peers.fetchRecords(t.log, edge); err != nil {
			return err
		}
		return t.log.Reconcile(edge)
	}
	return err
}

// originDir is the incarnation, the last element of an origin.
func originDir(origin string) string {
	incarnation := origin[strings.LastIndexByte(origin, '/')+1:]
	if _, err := strconv.ParseUint(incarnation, 10, 64); err != nil {
		return "0"
	}
	return incarnation
}

// get returns the open log.
func (t *trail) get() (*audit.Log, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.log == nil {
		return nil, audit.ErrClosed
	}
	return t.log, nil
}

// Append implements state.AuditSink.
func (t *trail) Append(index uint64, records ...[]byte) error {
	log, err := t.get()
	if err != nil {
		return err
	}
	return log.Append(index, records...)
}

// Sync implements state.AuditSink.
func (t *trail) Sync() error {
	log, err := t.get()
	if errors.Is(err, audit.ErrClosed) {
		return nil // nothing was appended
	}
	return log.Sync()
}

func (t *trail) close() error {
	log, err := t.get()
	if err != nil {
		return nil
	}
	return errors.Join(log.Sync(), log.Close())
}
