package authority

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// ErrUnfinished: a restore or a recovery began in this directory and did not
// finish. Do it again; the node does not start before.
var ErrUnfinished = errors.New("authority: a restore or a recovery is not finished")

// unfinishedName marks a directory while a new incarnation is being made in it.
const unfinishedName = "UNFINISHED"

// Rebirth says how an authority begins a new incarnation.
type Rebirth struct {
	// Config is of the node that begins it. Dir, NodeID, KeyFile and Passphrase
	// count; a KeyFile that does not exist is made, which needs Recovery. Peers
	// is not used, but for Raft and API.
	Config Config

	// Recovery opens the old cluster key instead of KeyFile. Optional.
	Recovery *seal.Identity

	// KeepEpochs are epochs of the master key whose tokens go on. What of theirs
	// was revoked since the backup is not revoked any more. Usually none.
	KeepEpochs []uint32

	// Checkpoint is a signed checkpoint of the audit log that is newer than what
	// is restored, kept elsewhere. Optional.
	Checkpoint []byte

	// Raft and API are where peers and clients will reach the node, host:port.
	// With Raft the node can have peers.
	Raft, API string
}

// Reborn is what came of it.
type Reborn struct {
	Bootstrapped
	Cluster     string
	Incarnation uint64
	Before      uint64   // the incarnation before
	Index       uint64   // of the last change that there is
	Ended       []uint32 // epochs that were ended
	Services    []string // to be added again
}

// Restore makes a new authority of one node out of a backup, in an empty
// directory: a new incarnation, with new keys, in which nothing that was revoked
// or spent since comes back to life (see state.Revive). The CA stays, so what
// clients pin is good. Errors: ErrConfig, ErrBackup, ErrKeyFile, raftstore's.
func Restore(ctx context.Context, r Rebirth, backup *BackupFile) (*Reborn, error) {
	cfg, err := r.Config.withDefaults()
	if err != nil {
		return nil, err
	}
	r.Config = cfg
	if err := r.emptyDir(); err != nil {
		return nil, err
	}
	opener, err := r.opener()
	if err != nil {
		return nil, err
	}
	key, err := backup.unwrap(opener)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	// All of it once, before anything is written.
	if _, err := backup.read(key, func(export io.Reader) error { _, err := raftstore.InspectSnapshot(export); return err }); err != nil {
		return nil, err
	}
	identity, err := openIdentity(cfg, true)
	if err != nil {
		return nil, err
	}
	defer identity.Destroy()
	if err := r.begin(); err != nil {
		return nil, err
	}
	address := r.Raft
	if address == "" {
		address = cfg.NodeID
	}
	_, err = backup.read(key, func(export io.Reader) error {
		// The old cluster's nodes may go on: they are no members in the new
		// incarnation, and refused by their keys.
		_, err := raftstore.Restore(raftstore.RestoreConfig{
			Dir: filepath.Join(cfg.Dir, "raft"), NodeID: cfg.NodeID, Address: address, AllowMember: true,
		}, export)
		return err
	})
	if err != nil {
		return nil, err
	}
	origin, err := audit.Origin(backup.Header.Cluster, backup.Header.Incarnation)
	if err != nil {
		return nil, err
	}
	reason := fmt.Sprintf("restored from the backup of %s by %s", backup.Header.Saved.Format(time.RFC3339), backup.Header.Node)
	return r.revive(ctx, identity, reason, origin, func(m *state.Machine) (*seal.ClusterKey, error) {
		if id := m.Cluster().ID; id != backup.Header.Cluster {
			return nil, fmt.Errorf("%w: its header is of another cluster", ErrBackup)
		}
		return backup.unwrap(opener)
	})
}

// Recover makes a cluster that has lost its quorum for good into one of this
// node alone, from its own directory, while it is stopped. Writes that only the
// lost nodes acknowledged are lost: so this, too, begins a new incarnation. No
// other node of the cluster may ever run again on its old directory. Errors as
// Restore's, but for ErrBackup.
func Recover(ctx context.Context, r Rebirth) (*Reborn, error) {
	cfg, err := r.Config.withDefaults()
	if err != nil {
		return nil, err
	}
	r.Config = cfg
	formed, err := exists(filepath.Join(cfg.Dir, "raft", "raft.db"))
	if err != nil {
		return nil, err
	}
	if !formed {
		return nil, fmt.Errorf("%w: %s", ErrNotFormed, cfg.Dir)
	}
	mark := filepath.Join(cfg.Dir, unfinishedName)
	half, err := os.ReadFile(mark)
	if err == nil && strings.TrimSpace(string(half)) != "recover" {
		return nil, fmt.Errorf("%w: restore it", ErrUnfinished)
	}
	opener, err := r.opener()
	if err != nil {
		return nil, err
	}
	identity, err := openIdentity(cfg, r.Recovery != nil)
	if err != nil {
		return nil, err
	}
	defer identity.Destroy()
	address := r.Raft
	if address == "" {
		address = cfg.NodeID // as a node that is alone has it
	}
	if err := os.WriteFile(mark, []byte("recover\n"), 0o600); err != nil {
		return nil, err
	}
	if err := recoverStore(cfg, address); err != nil {
		if half == nil && errors.Is(err, raftstore.ErrLocked) {
			err = errors.Join(err, os.Remove(mark)) // the node runs, and nothing was touched
		}
		return nil, err
	}
	return r.revive(ctx, identity, "recovered without a quorum", "", func(m *state.Machine) (*seal.ClusterKey, error) {
		return unwrapFor(m, opener)
	})
}

// recoverStore makes this node the only one of its Raft configuration.
func recoverStore(cfg Config, address string) (err error) {
	t := &trail{dir: filepath.Join(cfg.Dir, "audit")}
	m, err := state.Open(state.Config{Path: filepath.Join(cfg.Dir, "state.db"), Audit: t, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close(), m.Close()) }()
	_, err = raftstore.Recover(raftstore.Config{
		Dir: filepath.Join(cfg.Dir, "raft"), NodeID: cfg.NodeID, OnFatal: cfg.OnFatal, Logger: cfg.Logger,
	}, []raftstore.Server{{ID: cfg.NodeID, Address: address, Voter: true}}, releasing{m})
	return err
}

// releasing releases its snapshots by itself: hashicorp/raft's recovery does not,
// and a state file cannot be closed before.
type releasing struct{ *state.Machine }

// Snapshot implements raftstore.StateMachine.
func (m releasing) Snapshot() (raftstore.Snapshot, error) {
	s, err := m.Machine.Snapshot()
	return persisted{s}, err
}

type persisted struct{ raftstore.Snapshot }

// Persist implements raftstore.Snapshot.
func (s persisted) Persist(w io.Writer) error {
	defer s.Snapshot.Release()
	return s.Snapshot.Persist(w)
}

// Release implements raftstore.Snapshot.
func (persisted) Release() {}

// unwrapFor opens the cluster key that a state has wrapped for an identity.
func unwrapFor(m *state.Machine, identity *seal.Identity) (*seal.ClusterKey, error) {
	cluster := m.Cluster()
	keys, _ := m.SealedState()
	f := &BackupFile{Header: BackupHeader{Cluster: cluster.ID}}
	for _, k := range keys {
		if strings.HasPrefix(k.Purpose, state.PurposeWrap) {
			f.Header.Wraps = append(f.Header.Wraps, k)
		}
	}
	return f.unwrap(identity)
}

// opener is the identity that opens the old cluster key.
func (r *Rebirth) opener() (*seal.Identity, error) {
	if r.Recovery != nil {
		return r.Recovery, nil
	}
	return openIdentity(r.Config, false)
}

// emptyDir refuses a directory that holds anything but what a restore that did
// not finish has left, which goes.
func (r *Rebirth) emptyDir() error {
	dir := r.Config.Dir
	if b, err := os.ReadFile(filepath.Join(dir, unfinishedName)); err == nil && strings.TrimSpace(string(b)) == "restore" {
		for _, name := range []string{"raft", "audit", "state.db", nodeFileName} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: %s is not empty", raftstore.ErrNotEmpty, dir)
	}
	return nil
}

// begin marks the directory, and says to whose cluster it belongs.
func (r *Rebirth) begin() error {
	if err := os.MkdirAll(r.Config.Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.Config.Dir, unfinishedName), []byte("restore\n"), 0o600)
}

// lateTrail is a trail that has nothing of the incarnation that ends: its files
// are where the old nodes were.
type lateTrail struct {
	*trail
	absent string // origin
}

// Open implements state.AuditSink.
func (t *lateTrail) Open(origin string, edge audit.Edge) error {
	if origin == t.absent {
		return nil
	}
	return t.trail.Open(origin, edge)
}

// revive opens what is in the directory, alone, and makes it a new incarnation.
func (r *Rebirth) revive(ctx context.Context, identity *seal.Identity, reason, absent string, unwrap func(*state.Machine) (*seal.ClusterKey, error)) (_ *Reborn, err error) {
	o, err := openAlone(ctx, r.Config, absent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	key, err := unwrap(o.machine)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	b, before := &state.Revive{Reason: reason, Keep: r.KeepEpochs}, o.machine.Cluster()
	b.Incarnation = nextIncarnation(before.Incarnation, r.Config.Clock())
	if b.Origin, err = audit.Origin(before.ID, b.Incarnation); err != nil {
		return nil, err
	}
	admin, err := r.newKeys(o.machine, key, identity, b)
	if err != nil {
		return nil, err
	}
	defer admin.Destroy()
	if b.Previous, err = r.lastCheckpoint(o.machine, key); err != nil {
		return nil, err
	}
	if own, ok := o.machine.Member(r.Config.NodeID); ok && absent == "" && r.Raft == "" {
		r.Raft, r.API = own.Raft, own.API // a member stays one
	}
	if err := r.begins(identity, b); err != nil {
		return nil, err
	}
	out := &Reborn{Cluster: before.ID, Incarnation: b.Incarnation, Before: before.Incarnation, Index: o.machine.AppliedIndex()}
	for _, s := range o.machine.Services() {
		out.Services = append(out.Services, s.Name)
	}
	for _, e := range o.machine.Epochs() {
		if !e.Revoked && !slices.Contains(r.KeepEpochs, e.Epoch) {
			out.Ended = append(out.Ended, e.Epoch)
		}
	}
	stamp := max(r.Config.Clock().UnixMilli(), o.machine.Stamp(), 1)
	if out.RootToken, err = o.reviveAs(ctx, r.Config, b, admin, stamp); err != nil {
		return nil, err
	}
	for _, k := range b.Keys {
		if k.Purpose == state.PurposeCA {
			out.CAFingerprint = caFingerprint(k.Public)
		}
	}
	if b.Member != nil {
		file := &nodeFile{Cluster: before.ID, Node: r.Config.NodeID}
		if err := file.write(r.Config.Dir); err != nil {
			return nil, err
		}
	}
	// From here on the node starts with the new incarnation alone.
	if err := o.store.Snapshot(ctx); err != nil {
		return nil, err
	}
	return out, os.Remove(filepath.Join(r.Config.Dir, unfinishedName))
}

// nextIncarnation numbers an incarnation by the time in seconds: two restores of
// one backup must not be taken for one.
func nextIncarnation(before uint64, now time.Time) uint64 {
	return max(before+1, uint64(max(now.Unix(), 0)))
}

// newKeys fills in the keys of a new incarnation under a new cluster key: a new
// master, admin and discharger key; the CA and the audit log's seed as they
// were, since others know these by heart; and the masters that are kept.
func (r *Rebirth) newKeys(m *state.Machine, old *seal.ClusterKey, identity *seal.Identity, b *state.Revive) (admin *seal.Secret, err error) {
	cluster, rand := m.Cluster(), r.Config.Rand
	key, err := seal.NewClusterKey(rand)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	keys, _ := m.SealedState()
	add := func(k state.SealedKey, plain []byte) error {
		defer clear(plain)
		k.Incarnation, k.Under = b.Incarnation, cluster.Key+1
		if k.Sealed, err = key.Seal(rand, label(cluster.ID, &k), plain); err != nil {
			return err
		}
		b.Keys = append(b.Keys, k)
		return nil
	}
	wraps := map[string][]byte{state.PurposeWrap + r.Config.NodeID: identity.Recipient().Bytes()}
	epochs := m.Epochs()
	next := epochs[len(epochs)-1].Epoch + 1
	for _, k := range keys {
		switch {
		case k.Purpose == state.PurposeWrap+"recovery":
			wraps[k.Purpose] = k.Public
			continue
		case strings.HasPrefix(k.Purpose, state.PurposeWrap), k.Purpose == state.PurposeAdmin, k.Purpose == state.PurposeDischarger:
			continue
		case k.Purpose == state.PurposeMaster && !slices.Contains(r.KeepEpochs, k.Epoch):
			continue
		}
		plain, err := old.Open(label(cluster.ID, &k), k.Sealed)
		if err != nil {
			return nil, fmt.Errorf("opening the %s key of epoch %d: %w", k.Purpose, k.Epoch, err)
		}
		if k.Purpose == state.PurposeAudit {
			signer, err := audit.NewSigner(b.Origin, plain)
			if err != nil {
				return nil, err
			}
			k.Public = []byte(signer.VerifierKey())
		}
		if err := add(k, plain); err != nil {
			return nil, err
		}
	}
	for _, k := range []state.SealedKey{
		{Purpose: state.PurposeMaster, Epoch: next}, {Purpose: state.PurposeAdmin, Epoch: newestKey(m, state.PurposeAdmin).Epoch},
		{Purpose: state.PurposeDischarger, Epoch: 1},
	} {
		secret, err := drawKey(r.Config, cluster.ID, b.Origin, &k)
		if err != nil {
			return nil, err
		}
		if k.Purpose == state.PurposeAdmin {
			if admin, err = seal.SecretFromBytes(secret); err != nil {
				return nil, err
			}
		}
		if err := add(k, secret); err != nil {
			return nil, err
		}
	}
	for _, purpose := range slices.Sorted(maps.Keys(wraps)) {
		k, err := wrapFor(cluster.ID, b.Incarnation, cluster.Key+1, purpose, wraps[purpose], key)
		if err != nil {
			return nil, err
		}
		b.Keys = append(b.Keys, k)
	}
	return admin, nil
}

// wrapFor wraps a cluster key for the recipient with this public key.
func wrapFor(cluster string, incarnation uint64, under uint32, purpose string, public []byte, key *seal.ClusterKey) (state.SealedKey, error) {
	k := state.SealedKey{Purpose: purpose, Incarnation: incarnation, Public: public, Under: under}
	to, err := seal.RecipientFromBytes(public)
	if err != nil {
		return k, err
	}
	k.Sealed, err = seal.Wrap(to, label(cluster, &k), key)
	return k, err
}

// lastCheckpoint is the newest checkpoint that is known of the audit log that
// ends, signed: the one that was given, or of what there is.
func (r *Rebirth) lastCheckpoint(m *state.Machine, key *seal.ClusterKey) ([]byte, error) {
	cluster := m.Cluster()
	k := m.SealedKey(state.PurposeAudit, 1)
	if k == nil {
		return nil, errors.New("authority: the cluster has no audit key")
	}
	seed, err := key.Open(label(cluster.ID, k), k.Sealed)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	signer, err := audit.NewSigner(cluster.Origin, seed)
	if err != nil {
		return nil, err
	}
	edge, _ := m.AuditEdge()
	if r.Checkpoint == nil {
		return audit.Checkpoint{Origin: cluster.Origin, Size: edge.Size(), Root: edge.Root()}.Sign(signer)
	}
	c, err := audit.VerifyCheckpoint(r.Checkpoint, signer.Verifier())
	if err != nil {
		return nil, fmt.Errorf("%w: the checkpoint is not of this audit log: %w", ErrConfig, err)
	}
	if c.Size < edge.Size() || c.Size == edge.Size() && c.Root != edge.Root() {
		return nil, fmt.Errorf("%w: the checkpoint (of %d records) is older than what there is (%d), or contradicts it", ErrConfig, c.Size, edge.Size())
	}
	return r.Checkpoint, nil
}

// begins makes the node the first member, if it is to have peers.
func (r *Rebirth) begins(identity *seal.Identity, b *state.Revive) error {
	if r.Raft == "" {
		return nil
	}
	key, err := identity.PeerKey()
	if err != nil {
		return err
	}
	b.Member = &state.MemberRecord{
		ID: r.Config.NodeID, Key: state.PeerKeyDigest(key.Public().(ed25519.PublicKey)), Recipient: identity.Recipient().Bytes(), Raft: r.Raft, API: r.API, Voter: true, State: state.MemberActive,
	}
	return nil
}

// alone is a node's state and log, open without anything that serves.
type alone struct {
	machine *state.Machine
	store   *raftstore.Store
	trail   *trail
}

// openAlone opens a stopped node that leads by itself. absent is the origin of
// an audit log whose files are not there.
func openAlone(ctx context.Context, cfg Config, absent string) (_ *alone, err error) {
	o := &alone{trail: &trail{dir: filepath.Join(cfg.Dir, "audit")}}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	o.machine, err = state.Open(state.Config{
		Path: filepath.Join(cfg.Dir, "state.db"), Audit: &lateTrail{o.trail, absent}, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	o.store, err = raftstore.Open(raftstore.Config{
		Dir: filepath.Join(cfg.Dir, "raft"), NodeID: cfg.NodeID, SnapshotThreshold: cfg.SnapshotThreshold, OnFatal: cfg.OnFatal, Logger: cfg.Logger,
	}, o.machine)
	if err != nil {
		return nil, err
	}
	if voters := o.store.Status().Voters; len(voters) > 1 {
		return nil, fmt.Errorf("%w: the node is one of %d voters, and cannot be changed alone", ErrConfig, len(voters))
	}
	if _, err := o.store.WaitLeader(ctx); err != nil {
		return nil, fmt.Errorf("waiting to lead: %w", err)
	}
	_, err = o.store.ReadIndex(ctx)
	return o, err
}

func (o *alone) close() (err error) {
	if o.store != nil {
		err = o.store.Close()
	}
	err = errors.Join(err, o.trail.close())
	if o.machine != nil {
		err = errors.Join(err, o.machine.Close())
	}
	return err
}

// command is one command of the node's own.
type command struct {
	kind  state.Kind
	stamp int64
	body  any
}

// do has a command applied.
func (o *alone) do(ctx context.Context, c command) error {
	b, err := state.EncodeCommand(state.Header{Kind: c.kind, Stamp: c.stamp, Actor: state.Actor{Name: state.SystemActor}}, c.body)
	if err != nil {
		return err
	}
	entry, err := state.EncodeEntry(b)
	if err != nil {
		return err
	}
	res, err := o.store.Propose(ctx, entry)
	if err != nil {
		return err
	}
	for _, r := range res.Value.([]state.Result) {
		if r.Err != nil {
			return serviceError(r.Err)
		}
	}
	return nil
}

// reviveAs begins the incarnation and then issues its root token: an incarnation
// that is refused must not have a token issued in the one before.
func (o *alone) reviveAs(ctx context.Context, cfg Config, b *state.Revive, admin *seal.Secret, stamp int64) (string, error) {
	m := rootMinting()
	if _, err := io.ReadFull(cfg.Rand, m.random[:]); err != nil {
		return "", err
	}
	epoch := newestKey(o.machine, state.PurposeAdmin).Epoch
	key := capability.NewRootKey(seal.AudienceKey(admin, epoch, 0, m.record.Audience))
	record, err := mintRoot(m, key, epoch, stamp+1)
	if err != nil {
		return "", err
	}
	if err := o.do(ctx, command{state.KindRevive, stamp, b}); err != nil {
		return "", err
	}
	if err := o.do(ctx, command{state.KindIssue, stamp + 1, &state.Issue{Record: *record}}); err != nil {
		return "", err
	}
	t, err := capability.Remint(key, record.Unsigned)
	if err != nil {
		return "", err
	}
	return t.Text(), nil
}
