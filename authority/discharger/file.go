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
	"sync"
	"time"

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

// File is the Store of a discharger on its own: policies and roots are files
// that an operator puts there (DIR/policies/NAME.json, DIR/roots/NAME.pem), read
// when they are asked for; devices and used challenges are in DIR/state.json,
// which is replaced in one step and synced before a discharge is handed out.
//
// A policy's version is what the document says, or 1: whoever edits a policy
// raises it. One process at a time has a File.
type File struct {
	dir string
	now func() time.Time

	mu    sync.Mutex
	state fileState // guarded by mu
}

type fileState struct {
	Devices []fileDevice `json:"devices"`
	Used    []fileUsed   `json:"used"`
}

// fileDevice is what is known of a device.
type fileDevice struct {
	Device   capability.DeviceID `json:"device"`
	AKs      []string            `json:"aks"` // TPM Names, hexadecimal
	Holder   string              `json:"holder"`
	Counters attest.Counters     `json:"counters"`
	Policy   string              `json:"policy"`
	Version  uint64              `json:"policy_version,omitempty"`
	Attested time.Time           `json:"attested"`
	Revoked  string              `json:"revoked,omitempty"` // why
}

// fileUsed is a challenge that was answered.
type fileUsed struct {
	Challenge string    `json:"challenge"` // hexadecimal
	Expires   time.Time `json:"expires"`
}

// OpenFile opens the store in dir. Errors: ErrState.
func OpenFile(dir string, now func() time.Time) (*File, error) {
	f := &File{dir: dir, now: now}
	b, err := readBounded(f.path(), maxStateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = api.Decode(b, &f.state)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return f, nil
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
	d := f.find(id)
	if d == nil {
		return nil, nil
	}
	return d.stored()
}

func (f *File) find(id capability.DeviceID) *fileDevice {
	i := slices.IndexFunc(f.state.Devices, func(d fileDevice) bool { return d.Device == id })
	if i < 0 {
		return nil
	}
	return &f.state.Devices[i]
}

func (d *fileDevice) stored() (*attest.Stored, error) {
	s := &attest.Stored{Counters: d.Counters, Revoked: d.Revoked != "", Policy: d.Policy, PolicyVersion: d.Version}
	for _, ak := range d.AKs {
		name, err := hex.DecodeString(ak)
		if err != nil {
			return nil, fmt.Errorf("%w: device %s: %w", ErrState, d.Device, err)
		}
		s.AKs = append(s.AKs, name)
	}
	return s, nil
}

// Accept implements Store.
func (f *File) Accept(_ context.Context, e *Accepted) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := e.Result
	d := fileDevice{Device: r.Device}
	if known := f.find(r.Device); known != nil {
		d = *known
	} else if len(f.state.Devices) >= maxDevices {
		return fmt.Errorf("%w: it holds %d devices already", ErrState, maxDevices)
	}
	stored, err := d.stored()
	switch {
	case err != nil:
		return err
	case stored.Revoked:
		return attest.Refuse(attest.ReasonRevoked, "device %s", r.Device)
	case !r.Activated && !stored.Enrolled(r.AKName):
		return attest.Refuse(attest.ReasonChallenge, "the device was forgotten meanwhile")
	case !d.Attested.IsZero() && r.Counters.After(d.Counters) != nil:
		return attest.Refuse(attest.ReasonChallenge, "newer evidence of this device came first")
	}
	if !stored.Enrolled(r.AKName) {
		d.AKs = append(slices.Clone(d.AKs), hex.EncodeToString(r.AKName))
		d.AKs = d.AKs[max(0, len(d.AKs)-attest.MaxAKs):]
	}
	d.Holder, d.Counters, d.Policy, d.Version, d.Attested = r.Holder.String(), r.Counters, r.Policy, r.Version, f.now().UTC()
	return f.store(e.Challenge, e.Expires, d)
}

// Fail implements Store.
func (f *File) Fail(_ context.Context, e *Failed) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.find(e.Device)
	if known == nil {
		return nil
	}
	d := *known
	if e.Revoke && d.Revoked == "" {
		d.Revoked = string(e.Refusal.Reason)
	}
	return f.store(e.Challenge, e.Expires, d)
}

// store consumes a challenge and puts a device, on disk first.
func (f *File) store(challenge [attest.ChallengeIDSize]byte, expires time.Time, d fileDevice) error {
	now := f.now()
	name := hex.EncodeToString(challenge[:])
	if !now.Before(expires) || slices.ContainsFunc(f.state.Used, func(u fileUsed) bool { return u.Challenge == name }) {
		return attest.Refuse(attest.ReasonChallenge, "it was used, or has expired")
	}
	next := fileState{
		Devices: slices.DeleteFunc(slices.Clone(f.state.Devices), func(o fileDevice) bool { return o.Device == d.Device }),
		Used:    slices.DeleteFunc(slices.Clone(f.state.Used), func(u fileUsed) bool { return !now.Before(u.Expires) }),
	}
	next.Devices = append(next.Devices, d)
	next.Used = append(next.Used, fileUsed{name, expires})
	b, err := json.MarshalIndent(&next, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Replace(f.path(), append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	f.state = next
	return nil
}
