package authority

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/raftstore"
)

// ErrBackup: a file is no whole backup, or not one that this version reads.
var ErrBackup = errors.New("authority: unreadable backup")

// A backup is a file:
//
//	"writ backup 1\n" ‖ length (4 bytes, big-endian) ‖ BackupHeader as JSON ‖ sealed stream ‖ SHA-256 of all before
//
// The stream (seal.ClusterKey.SealStream) is under the cluster key of its time, with everything before it as context: length (4 bytes)
// ‖ BackupSummary as JSON ‖ what raftstore's Export wrote. The header carries the cluster key as it was wrapped then, for each node and
// for recovery, so that any of these identities opens the file by itself; and nothing else does.
const (
	backupMagic   = "writ backup 1\n"
	maxBackupHead = 1 << 20 // bytes of a header, and of a summary
	backupPurpose = "backup"
)

// BackupHeader is what anyone can read of a backup. It is authenticated only by
// opening the rest.
type BackupHeader struct {
	Cluster     string            `json:"cluster"`
	Incarnation uint64            `json:"incarnation"`
	Node        string            `json:"node"` // that wrote it
	Saved       time.Time         `json:"saved"`
	Program     string            `json:"program,omitempty"` // version that wrote it
	Wraps       []state.SealedKey `json:"wraps"`             // the cluster key, for whom it is wrapped
}

// Recipients names whose identities open the backup: nodes, and "recovery".
func (h *BackupHeader) Recipients() (names []string) {
	for _, w := range h.Wraps {
		names = append(names, strings.TrimPrefix(w.Purpose, state.PurposeWrap))
	}
	return names
}

// BackupSummary says what is in a backup. What was done while it was being
// written may be in it without being counted here.
type BackupSummary struct {
	Index         uint64   `json:"index"` // of the last change, at least
	Tokens        int      `json:"tokens"`
	Revocations   int      `json:"revocations"`
	Services      []string `json:"services"`
	Members       []string `json:"members,omitempty"`
	Epochs        []uint32 `json:"epochs"` // that verify
	AuditRecords  int64    `json:"audit_records"`
	CAFingerprint string   `json:"ca_fingerprint"` // SHA-256, hex: what clients pin
}

// Backup writes a backup of everything that was acknowledged anywhere before the
// call. The node goes on meanwhile. Errors: those of the quorum read, of
// raftstore's Export and of w.
func (a *Authority) Backup(ctx context.Context, w io.Writer) error {
	if _, err := a.store.ReadIndex(ctx); err != nil {
		return serviceError(err)
	}
	key, under, err := a.keys.sealer()
	if err != nil {
		return serviceError(err)
	}
	cluster := a.machine.Cluster()
	header := BackupHeader{
		Cluster: cluster.ID, Incarnation: cluster.Incarnation, Node: a.cfg.NodeID, Saved: a.cfg.Clock().UTC().Truncate(time.Millisecond),
		Program: a.cfg.Version,
	}
	keys, _ := a.machine.SealedState()
	for _, k := range keys {
		if strings.HasPrefix(k.Purpose, state.PurposeWrap) && k.Under == under {
			header.Wraps = append(header.Wraps, k)
		}
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	head, err := json.Marshal(header)
	if err != nil {
		return err
	}
	context := appendField([]byte(backupMagic), head)
	if _, err := out.Write(context); err != nil {
		return err
	}
	stream, err := key.SealStream(a.cfg.Rand, out, header.label(), context)
	if err != nil {
		return err
	}
	summary, err := json.Marshal(a.backupSummary())
	if err != nil {
		return err
	}
	if _, err := stream.Write(appendField(nil, summary)); err != nil {
		return err
	}
	if _, err := a.store.Export(ctx, stream); err != nil {
		return serviceError(err)
	}
	if err := stream.Close(); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

func (h *BackupHeader) label() seal.Label {
	return seal.Label{Cluster: h.Cluster, Incarnation: h.Incarnation, Purpose: backupPurpose}
}

func appendField(b, field []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
}

func readField(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("%w: cut off", ErrBackup)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxBackupHead {
		return nil, fmt.Errorf("%w: a field of %d bytes", ErrBackup, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("%w: cut off", ErrBackup)
	}
	return b, nil
}

func (a *Authority) backupSummary() *BackupSummary {
	counts, fingerprint := a.machine.Counts(), a.CAFingerprint()
	s := &BackupSummary{
		Index: a.machine.AppliedIndex(), Tokens: counts.Tokens, Revocations: counts.Revocations, AuditRecords: counts.Audit,
		CAFingerprint: hex.EncodeToString(fingerprint[:]), Services: []string{},
	}
	for _, r := range a.machine.Services() {
		s.Services = append(s.Services, r.Name)
	}
	for _, r := range a.machine.Members() {
		if r.State == state.MemberActive {
			s.Members = append(s.Members, r.ID)
		}
	}
	for _, e := range a.machine.Epochs() {
		if !e.Revoked {
			s.Epochs = append(s.Epochs, e.Epoch)
		}
	}
	return s
}

// BackupFile is a backup on disk.
type BackupFile struct {
	Header BackupHeader

	file    io.ReaderAt
	size    int64  // without the checksum
	context []byte // magic and header
}

// OpenBackup reads a backup's header, and all of it once, for its checksum:
// that it is whole, not that it is genuine. Errors: ErrBackup, and those of the file.
func OpenBackup(file io.ReaderAt, size int64) (*BackupFile, error) {
	f := &BackupFile{file: file, size: size - sha256.Size}
	if f.size < int64(len(backupMagic)) {
		return nil, fmt.Errorf("%w: too short", ErrBackup)
	}
	magic := make([]byte, len(backupMagic))
	r := io.NewSectionReader(file, 0, f.size)
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, err
	}
	if string(magic) != backupMagic {
		if bytes.HasPrefix(magic, []byte("writ backup ")) {
			return nil, fmt.Errorf("%w: in another version's format (%q)", ErrBackup, bytes.TrimSpace(magic))
		}
		return nil, fmt.Errorf("%w: not a backup", ErrBackup)
	}
	head, err := readField(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, f.size)); err != nil {
		return nil, err
	}
	want := make([]byte, sha256.Size)
	if _, err := file.ReadAt(want, f.size); err != nil && err != io.EOF {
		return nil, err
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return nil, fmt.Errorf("%w: damaged or cut off: its checksum is wrong", ErrBackup)
	}
	if err := json.Unmarshal(head, &f.Header); err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrBackup, err)
	}
	f.context = appendField([]byte(backupMagic), head)
	return f, nil
}

// unwrap opens the cluster key of the backup's time with an identity.
func (f *BackupFile) unwrap(identity *seal.Identity) (*seal.ClusterKey, error) {
	recipient := identity.Recipient().Bytes()
	for i := range f.Header.Wraps {
		w := &f.Header.Wraps[i]
		if !bytes.Equal(w.Public, recipient) {
			continue
		}
		if key, err := identity.Unwrap(label(f.Header.Cluster, w), w.Sealed); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: the backup is sealed for %s, and the identity is of none of them", ErrKeyFile, strings.Join(f.Header.Recipients(), ", "))
}

// read opens the sealed part with a cluster key, and has take read the export.
func (f *BackupFile) read(key *seal.ClusterKey, take func(export io.Reader) error) (*BackupSummary, error) {
	start := int64(len(f.context))
	stream, err := key.OpenStream(io.NewSectionReader(f.file, start, f.size-start), f.Header.label(), f.context)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	b, err := readField(stream)
	if err != nil {
		return nil, err
	}
	summary := new(BackupSummary)
	if err := json.Unmarshal(b, summary); err != nil {
		return nil, fmt.Errorf("%w: summary: %w", ErrBackup, err)
	}
	if err := take(stream); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return summary, nil
}

// Inspect opens the backup with a node's identity, or the recovery identity, and
// checks all of it. Errors: ErrBackup, ErrKeyFile, raftstore.ErrCorrupt.
func (f *BackupFile) Inspect(identity *seal.Identity) (*BackupSummary, raftstore.SnapshotMeta, error) {
	var meta raftstore.SnapshotMeta
	key, err := f.unwrap(identity)
	if err != nil {
		return nil, meta, err
	}
	defer key.Destroy()
	summary, err := f.read(key, func(export io.Reader) (err error) {
		meta, err = raftstore.InspectSnapshot(export)
		return err
	})
	return summary, meta, err
}
