package state

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
	"github.com/writ-dev/writ/raftstore"
)

// ErrStamp is the result of a command whose stamp is behind the state's: its
// proposer stamps it again, not before Stamp.
var ErrStamp = errors.New("state: stamp is behind the state's")

// AuditSink takes the records of the audit trail. It is called from the
// goroutine that applies, but for Sync. An error ends the node.
type AuditSink interface {
	// Open is called when the log's origin becomes known or changes: at Init, at
	// Reincarnate, and after a snapshot was restored, with the edge that the
	// state has.
	Open(origin string, edge audit.Edge) error
	// Append appends the records of one Raft entry. An index that was appended
	// before is a replay.
	Append(index uint64, records ...[]byte) error
	// Sync makes everything appended durable. It runs beside Append.
	Sync() error
}

// Config says how to open a Machine.
type Config struct {
	Path   string       // of the state file, which is removed first
	Audit  AuditSink    // nil: no trail beside the state
	Events int          // how many events the feed keeps; 0: 65,536
	Logger *slog.Logger // nil discards
}

// Result is what one command came to: Value as the command's documentation
// says, or Err. Err is ErrStamp or a *capability.Refusal, and then nothing has
// changed.
type Result struct {
	Value any
	Err   error
}

// Machine is the authority's state machine. It implements
// raftstore.StateMachine; what it answers for an entry is a []Result, one for
// each command. Its read methods are safe for concurrent use.
type Machine struct {
	cfg     Config
	db      atomic.Pointer[bolt.DB]
	applied atomic.Uint64

	set *revocation.Set // has its own lock

	mu      sync.RWMutex
	mem     *memory       // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced after a batch
	news    chan struct{} // the same, after one with news
}

// memory is the index over the state file. The applying goroutine alone
// changes it, under the Machine's lock.
type memory struct {
	meta        meta
	edge        audit.Edge
	tokens      tokenIndex
	derived     [][2]capability.TokenID // while loading: ids, each with its parent's
	revoked     revoked
	services    map[string]*ServiceRecord
	keys        map[keyName]SealedKey
	epochs      []EpochRecord // by epoch
	generations map[string][]GenerationRecord
	leases      int
	budgets     int
	events      events
	hashes      hashRing
	cluster     cluster
	set         *revocation.Set // of what is revoked, for verifiers
}

type keyName struct {
	purpose string
	epoch   uint32
}

// Open returns an empty machine.
func Open(cfg Config) (*Machine, error) {
	if cfg.Events == 0 {
		cfg.Events = 1 << 16
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	db, err := openFile(cfg.Path)
	if err != nil {
		return nil, err
	}
	set := revocation.New()
	m := &Machine{cfg: cfg, set: set, mem: newMemory(cfg.Events, set), changed: make(chan struct{}), news: make(chan struct{})}
	m.db.Store(db)
	return m, nil
}

// Close closes the state file.
func (m *Machine) Close() error { return m.db.Load().Close() }

func newMemory(events int, set *revocation.Set) *memory {
	return &memory{
		set:    set,
		tokens: newTokenIndex(), revoked: newRevoked(), services: make(map[string]*ServiceRecord),
		keys: make(map[keyName]SealedKey), generations: make(map[string][]GenerationRecord),
		events: newEvents(events), cluster: newCluster(),
	}
}

// applier applies one entry after the other within one batch.
type applier struct {
	*memory
	w       writer
	sink    AuditSink
	index   uint64
	records [][]byte // of the entry, for the audit trail
}

// Apply applies entries. It panics, and so ends the node, on a command that it
// cannot read (ErrUnknownCommand), on corrupt state, and when the state file
// or the audit trail fails.
func (m *Machine) Apply(batch []raftstore.Entry) []any {
	results := make([]any, len(batch))
	if len(batch) == 0 {
		return results
	}
	tx, err := m.db.Load().Begin(true)
	check(err)
	defer tx.Rollback()
	before := m.told()
	m.applyBatch(tx, batch, results)
	check(tx.Commit())
	m.applied.Store(batch[len(batch)-1].Index)
	m.announce(m.told() != before)
	return results
}

func (m *Machine) applyBatch(tx *bolt.Tx, batch []raftstore.Entry, results []any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := &applier{memory: m.mem, sink: m.cfg.Audit}
	a.w = writer{tx, &a.meta.Content}
	for i, e := range batch {
		results[i] = a.entry(e)
	}
	edge, err := a.edge.MarshalBinary()
	check(err)
	a.meta.Edge = edge
	check(tx.Bucket(bucketMeta).Put(keyMeta, encoded(&a.meta)))
}

// announce wakes whoever waits for a change, or for news.
func (m *Machine) announce(news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
	if news {
		close(m.news)
		m.news = make(chan struct{})
	}
}

func (a *applier) entry(e raftstore.Entry) []Result {
	commands, err := DecodeEntry(e.Command)
	if err != nil {
		panic(fmt.Errorf("index %d: %w", e.Index, err))
	}
	a.index, a.records = e.Index, a.records[:0]
	results := make([]Result, len(commands))
	for i, c := range commands {
		h, body, err := DecodeCommand(c)
		if err != nil {
			panic(fmt.Errorf("index %d: %w", e.Index, err))
		}
		results[i].Value, results[i].Err = a.command(&h, body)
	}
	a.flushAudit()
	a.meta.Applied = e.Index
	a.events.through = e.Index
	a.hashes.add(e.Index, a.stateHash())
	return results
}

// flushAudit hands the entry's records to the trail.
func (a *applier) flushAudit() {
	if len(a.records) > 0 && a.sink != nil {
		if err := a.sink.Append(a.index, a.records...); err != nil {
			panic(fmt.Errorf("audit trail: %w", err))
		}
	}
	a.records = a.records[:0]
}

// command applies one command. Every handler decides first and writes then, so
// that a refused command changes nothing.
func (a *applier) command(h *Header, body any) (any, error) {
	if h.Stamp <= 0 || h.Stamp < a.meta.MinStamp {
		return nil, ErrStamp
	}
	if init, ok := body.(*Init); ok {
		return a.init(h, init)
	}
	if a.meta.Cluster == "" {
		return nil, refuse(capability.CodeUnavailable, "no cluster has been formed")
	}
	a.meta.MinStamp = h.Stamp
	// First the credential: what an earlier request made is not for one that
	// was revoked since.
	if err := a.checkActor(h, body); err != nil {
		return nil, err
	}
	earlier, err := a.earlier(h, body)
	if earlier != nil || err != nil {
		return earlier, err
	}
	result, err := a.dispatch(h, body)
	if err != nil {
		return nil, err
	}
	a.remember(h, result)
	return result, nil
}

func (a *applier) dispatch(h *Header, body any) (any, error) {
	switch b := body.(type) {
	case *Issue:
		return result(a.issue(h, &b.Record, b.Caveats))
	case *Revoke:
		return result(a.revoke(h, b))
	case *Lease:
		return result(a.lease(h, b))
	case *Return:
		return result(a.giveBack(h, b))
	case *Expire:
		return result(a.expire(h, b))
	case *AddEpoch:
		return result(a.addEpoch(h, b))
	case *Rekey:
		return result(a.rekey(h, b))
	case *AddService:
		return result(a.addService(h, b))
	case *JoinService:
		return result(a.joinService(h, b))
	case *RemoveService:
		return result(a.removeService(h, b))
	case *SetKey:
		return result(a.setKey(h, b))
	case *CheckHash:
		return nil, a.checkHash(b)
	case *Reincarnate:
		return nil, a.reincarnate(h, b)
	}
	if value, ok, err := a.dispatchAttest(h, body); ok {
		return value, err
	}
	if value, ok, err := a.dispatchMembers(h, body); ok {
		return value, err
	}
	if value, ok, err := a.dispatchRevive(h, body); ok {
		return value, err
	}
	panic(fmt.Errorf("%w: %T", ErrUnknownCommand, body))
}

// result keeps a nil pointer from becoming an any that is not nil.
func result[T any](v *T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// refuse makes the error of a command that is refused.
func refuse(code api.Code, detail string) error {
	return &capability.Refusal{Code: code, Detail: detail}
}

// checkActor checks that the credential behind a command is still good at the
// command's stamp.
func (a *applier) checkActor(h *Header, body any) error {
	if h.Actor.Token == (capability.TokenID{}) {
		j, joins := body.(*JoinService)
		if joins && j.Hash != (Digest{}) && h.Actor.Name == ServicePrefix+j.Name {
			return nil // the join secret is the authorization
		}
		if h.Actor.Name != SystemActor {
			return refuse(api.CodeUnauthorized, "no credential")
		}
		return nil
	}
	e := a.tokens.find(h.Actor.Token)
	switch {
	case e == nil || e.subject != nameHash(h.Actor.Name) || e.audience != nameHash(h.Actor.Audience):
		return refuse(capability.CodeUnregistered, "the credential is not registered")
	case e.notAfter <= h.Stamp:
		return refuse(capability.CodeExpired, "the credential has expired")
	}
	if r, ok := body.(*Revoke); ok && r.Token == h.Actor.Token {
		return nil // who may be revoked already may still revoke himself
	}
	if a.isRevoked(e, h.Actor.Branches) || e.holders && a.allHoldersRevoked(a.record(e.id)) {
		return refuse(capability.CodeRevoked, "the credential was revoked")
	}
	return nil
}

// record reads a registered token's record.
func (a *applier) record(id capability.TokenID) *TokenRecord {
	b := a.w.get(bucketTokens, id[:])
	if b == nil {
		panic("state: corrupt: a registered token has no record")
	}
	r := new(TokenRecord)
	mustDecode(b, r)
	return r
}

// init forms the cluster.
func (a *applier) init(h *Header, b *Init) (any, error) {
	if a.meta.Cluster != "" {
		return nil, refuse(api.CodeConflict, "the cluster has been formed already")
	}
	if b.Cluster == "" || b.Origin == "" || b.Incarnation == 0 || b.BoundMillis <= 0 {
		return nil, refuse(api.CodeInvalid, "a field of init is missing")
	}
	a.meta.MinStamp = h.Stamp
	a.meta.Cluster, a.meta.Incarnation, a.meta.BoundMillis, a.meta.Origin = b.Cluster, b.Incarnation, b.BoundMillis, b.Origin
	if a.sink != nil {
		if err := a.sink.Open(b.Origin, a.edge); err != nil {
			panic(fmt.Errorf("audit trail: %w", err))
		}
	}
	for _, k := range b.Keys {
		a.putKey(k)
	}
	a.putEpoch(EpochRecord{Epoch: 1, Published: h.Stamp, MintsFrom: h.Stamp})
	a.audit(h, auditRecord{Action: "init", Detail: b.Cluster})
	return nil, nil
}

// reincarnate starts a new incarnation.
func (a *applier) reincarnate(h *Header, b *Reincarnate) error {
	if h.Actor.Name != SystemActor || b.Incarnation <= a.meta.Incarnation || b.Origin == "" || b.Origin == a.meta.Origin {
		return refuse(api.CodeInvalid, "an incarnation rises and has an origin of its own")
	}
	// What came before in this entry belongs to the trail that ends here.
	a.flushAudit()
	previous := audit.Checkpoint{Origin: a.meta.Origin, Size: a.edge.Size(), Root: a.edge.Root()}
	a.meta.Incarnation, a.meta.Origin = b.Incarnation, b.Origin
	a.edge = audit.Edge{}
	a.events.reset(a.index)
	if a.sink != nil {
		if err := a.sink.Open(b.Origin, a.edge); err != nil {
			panic(fmt.Errorf("audit trail: %w", err))
		}
	}
	a.audit(h, auditRecord{Action: "reincarnate", Detail: previous.Text()})
	return nil
}

func sortedIDs(ids []capability.TokenID) []capability.TokenID {
	slices.SortFunc(ids, func(x, y capability.TokenID) int { return bytes.Compare(x[:], y[:]) })
	return ids
}

// sortedKeys is the one way in which this package walks a map where the order
// could show.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
