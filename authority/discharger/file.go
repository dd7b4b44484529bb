package discharger

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/atomicfile"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// The bounds of a File.
const (
	maxDevices   = 4096
	maxStateFile = 16 << 20
)

// ErrState is wrapped by every error about a File's state.
var ErrState = errors.New("discharger: state file")

var errFull = fmt.Errorf("%w: it holds %d devices already", ErrState, maxDevices)

// File is the Store of a discharger on its own: policies and roots are files
// that an operator puts there (DIR/policies/NAME.json, DIR/roots/NAME.pem), read
// when they are asked for; devices and used challenges are in DIR/state.json,
// which is replaced in one step and synced before a discharge is handed out.
//
// A policy's version is what the document says, or 1: whoever edits a policy
// raises it. Several processes on one machine may have the File open: changes
// take turns (DIR/state.lock), and each sees those of the others. So an operator
// revokes and forgets devices while the discharger runs.
type File struct {
	dir string
	now func() time.Time

	mu    sync.Mutex
	state fileState   // guarded by mu
	read  os.FileInfo // of the file that state was read from, or nil; guarded by mu
}

type fileState struct {
	Devices []fileDevice `json:"devices"`
	Used    []fileUsed   `json:"used"`
}

// fileDevice is what is known of a device.
type fileDevice struct {
	Device    capability.DeviceID `json:"device"`
	AKs       []akName            `json:"aks"`
	Holder    string              `json:"holder"`
	Counters  attest.Counters     `json:"counters"`
	Policy    string              `json:"policy"`
	Version   uint64              `json:"policy_version,omitempty"`
	Attested  time.Time           `json:"attested"`
	Revoked   string              `json:"revoked,omitempty"` // why
	RevokedAt time.Time           `json:"revoked_at,omitzero"`
}

// akName is the TPM Name of an attestation key, in hexadecimal where it is text.
type akName []byte

// MarshalText implements encoding.TextMarshaler.
func (n akName) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *akName) UnmarshalText(text []byte) (err error) {
	*n, err = hex.AppendDecode(nil, text)
	return err
}

// fileUsed is a challenge that was answered.
type fileUsed struct {
	Challenge string    `json:"challenge"` // hexadecimal
	Expires   time.Time `json:"expires"`
}

// OpenFile opens the store in dir. Errors: ErrState.
func OpenFile(dir string, now func() time.Time) (*File, error) {
	f := &File{dir: dir, now: now}
	return f, f.refresh()
}

// refresh reads the state, where it is not what was read last. It is for whoever
// holds mu, or has f alone.
func (f *File) refresh() error {
	info, err := os.Stat(f.path())
	if errors.Is(err, fs.ErrNotExist) {
		f.state, f.read = fileState{}, nil
		return nil
	}
	if err == nil && f.read != nil && os.SameFile(info, f.read) && info.ModTime().Equal(f.read.ModTime()) && info.Size() == f.read.Size() {
		return nil
	}
	var state fileState
	if err == nil {
		var b []byte
		if b, err = readBounded(f.path(), maxStateFile); err == nil {
			state, err = parseState(b)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	f.state, f.read = state, info
	return nil
}

// parseState refuses a state in which a device comes twice: one record would say
// that it is revoked, and the other be taken.
func parseState(b []byte) (state fileState, err error) {
	if err := api.Decode(b, &state); err != nil {
		return fileState{}, err
	}
	seen := make(map[capability.DeviceID]bool, len(state.Devices))
	for _, d := range state.Devices {
		if seen[d.Device] {
			return fileState{}, fmt.Errorf("device %s comes twice", d.Device)
		}
		seen[d.Device] = true
	}
	return state, nil
}

// change makes the next state, and puts it on disk before it returns. No other
// process changes it meanwhile.
func (f *File) change(next func(fileState) (fileState, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	unlock, err := lockFile(filepath.Join(f.dir, "state.lock"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	defer unlock()
	if err := f.refresh(); err != nil {
		return err
	}
	state, err := next(f.state)
	if err != nil {
		return err
	}
	b, err := state.text()
	if err == nil {
		err = atomicfile.Replace(f.path(), b)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return f.refresh()
}

// lockFile waits until no other process holds the lock file, and holds it.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func (f *File) path() string { return filepath.Join(f.dir, "state.json") }

func readBounded(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is over %d bytes", path, most)
	}
	return b, err
}

// Policy implements Store.
func (f *File) Policy(name string) (*attest.Policy, error) {
	if !attest.ValidName(name) {
		return nil, nil
	}
	b, err := readBounded(filepath.Join(f.dir, "policies", name+".json"), attest.MaxPolicy)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := attest.ParsePolicy(bytes.TrimSpace(b))
	if err != nil {
		return nil, fmt.Errorf("policy %q: %w", name, err)
	}
	if p.Name != name {
		return nil, fmt.Errorf("policy %q names itself %q", name, p.Name)
	}
	p.Version = max(p.Version, 1)
	return p, nil
}

// Roots implements Store.
func (f *File) Roots(bundle string) (*verifier.Roots, bool) {
	if !attest.ValidName(bundle) {
		return nil, false
	}
	b, err := readBounded(filepath.Join(f.dir, "roots", bundle+".pem"), verifier.MaxRootsBytes)
	if err != nil {
		return nil, false
	}
	roots, err := verifier.ParseRoots(b)
	return roots, err == nil
}

// Device implements Store.
func (f *File) Device(id capability.DeviceID) (*attest.Stored, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refresh(); err != nil {
		return nil, err
	}
	d := f.state.find(id)
	if d == nil {
		return nil, nil
	}
	return d.stored(), nil
}

// Devices lists what is known of each device, by id.
func (f *File) Devices() ([]api.DeviceInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refresh(); err != nil {
		return nil, err
	}
	list := make([]api.DeviceInfo, len(f.state.Devices))
	for i := range f.state.Devices {
		list[i] = f.state.Devices[i].info()
	}
	slices.SortFunc(list, func(a, b api.DeviceInfo) int { return strings.Compare(a.Device, b.Device) })
	return list, nil
}

// Revoke has a device, known or not, attested no more until Forget. Why is kept.
func (f *File) Revoke(id capability.DeviceID, why string) error {
	return f.change(func(s fileState) (fileState, error) {
		d := fileDevice{Device: id}
		if known := s.find(id); known != nil {
			d = *known
		} else if len(s.Devices) >= maxDevices {
			return s, errFull
		}
		if d.Revoked == "" {
			d.Revoked, d.RevokedAt = why, f.now().UTC()
		}
		return s.with(d), nil
	})
}

// Forget forgets a device, so that it can enroll anew. It reports false if
// there is none.
func (f *File) Forget(id capability.DeviceID) (known bool, err error) {
	err = f.change(func(s fileState) (fileState, error) {
		known = s.find(id) != nil
		return s.without(id), nil
	})
	return known, err
}

// text is the file's content, for parseState.
func (s *fileState) text() ([]byte, error) {
	b, err := json.MarshalIndent(s, "", "  ")
	return append(b, '\n'), err
}

func (s *fileState) find(id capability.DeviceID) *fileDevice {
	i := slices.IndexFunc(s.Devices, func(d fileDevice) bool { return d.Device == id })
	if i < 0 {
		return nil
	}
	return &s.Devices[i]
}

// without is the state but for a device.
func (s fileState) without(id capability.DeviceID) fileState {
	s.Devices = slices.DeleteFunc(slices.Clone(s.Devices), func(d fileDevice) bool { return d.Device == id })
	return s
}

// with is the state with a device as it is now.
func (s fileState) with(d fileDevice) fileState {
	s = s.without(d.Device)
	s.Devices = append(s.Devices, d)
	return s
}

// used is the state with a challenge that was answered, without those that
// nobody could answer any more. Errors: it was answered before, or has expired.
func (s fileState) used(challenge [attest.ChallengeIDSize]byte, expires, now time.Time) (fileState, error) {
	name := hex.EncodeToString(challenge[:])
	if !now.Before(expires) || slices.ContainsFunc(s.Used, func(u fileUsed) bool { return u.Challenge == name }) {
		return s, attest.Refuse(attest.ReasonChallenge, "it was used, or has expired")
	}
	s.Used = slices.DeleteFunc(slices.Clone(s.Used), func(u fileUsed) bool { return !now.Before(u.Expires) })
	s.Used = append(s.Used, fileUsed{name, expires})
	return s, nil
}

func (d *fileDevice) stored() *attest.Stored {
	s := &attest.Stored{Counters: d.Counters, Revoked: d.Revoked != "", Policy: d.Policy, PolicyVersion: d.Version}
	for _, name := range d.AKs {
		s.AKs = append(s.AKs, attest.Name(name))
	}
	return s
}

func (d *fileDevice) info() api.DeviceInfo {
	i := api.DeviceInfo{
		Device: d.Device.String(), Holder: d.Holder, Reset: d.Counters.Reset, Restart: d.Counters.Restart, Clock: d.Counters.Clock,
		Policy: d.Policy, PolicyVersion: d.Version, Attested: d.Attested, Revoked: d.RevokedAt, Reason: d.Revoked,
	}
	for _, name := range d.AKs {
		i.AKs = append(i.AKs, hex.EncodeToString(name))
	}
	return i
}

// Accept implements Store.
func (f *File) Accept(_ context.Context, e *Accepted) error {
	return f.change(func(s fileState) (fileState, error) {
		r := e.Result
		d := fileDevice{Device: r.Device}
		if known := s.find(r.Device); known != nil {
			d = *known
		} else if len(s.Devices) >= maxDevices {
			return s, errFull
		}
		stored := d.stored()
		switch {
		case stored.Revoked:
			return s, attest.Refuse(attest.ReasonRevoked, "device %s", r.Device)
		case !r.Activated && !stored.Enrolled(r.AKName):
			return s, attest.Refuse(attest.ReasonChallenge, "the device was forgotten meanwhile")
		case !d.Attested.IsZero() && r.Counters.After(d.Counters) != nil:
			return s, attest.Refuse(attest.ReasonChallenge, "newer evidence of this device came first")
		}
		if !stored.Enrolled(r.AKName) {
			d.AKs = append(slices.Clone(d.AKs), akName(r.AKName))
			d.AKs = d.AKs[max(0, len(d.AKs)-attest.MaxAKs):]
		}
		now := f.now()
		d.Holder, d.Counters, d.Policy, d.Version, d.Attested = r.Holder.String(), r.Counters, r.Policy, r.Version, now.UTC()
		return s.with(d).used(e.Challenge, e.Expires, now)
	})
}

// Fail implements Store.
func (f *File) Fail(_ context.Context, e *Failed) error {
	return f.change(func(s fileState) (fileState, error) {
		now := f.now()
		if known := s.find(e.Device); known != nil && e.Revoke && known.Revoked == "" {
			d := *known
			d.Revoked, d.RevokedAt = string(e.Refusal.Reason), now.UTC()
			s = s.with(d)
		}
		return s.used(e.Challenge, e.Expires, now)
	})
}
