package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds on a policy document.
const (
	MaxPolicy   = 64 << 10 // bytes of JSON
	MaxPCRSets  = 64
	MaxListed   = 512 // entries of each list
	MaxLifetime = 15 * time.Minute
	MinLifetime = 10 * time.Second

	policyFormat = 1
)

// Kind is a kind of endorsement key, by its TCG template (EK Credential
// Profile 2.5, annex B).
type Kind string

// The kinds that are understood.
const (
	RSA2048 Kind = "rsa-2048" // L-1, certificate at NV 0x01c00002
	ECCP256 Kind = "ecc-p256" // L-2, certificate at NV 0x01c0000a
	ECCP384 Kind = "ecc-p384" // H-3, certificate at NV 0x01c00016
)

// Kinds lists them, in the order in which a holder prefers them.
func Kinds() []Kind { return []Kind{ECCP384, ECCP256, RSA2048} }

// Policy is what "attested NAME" demands. A document is JSON, strict: an unknown
// member refuses it. Lists that are empty demand nothing, unless said otherwise.
type Policy struct {
	Format  int    `json:"format"`            // 1
	Name    string `json:"name"`              // see ValidName
	Version uint64 `json:"version,omitempty"` // set by the authority that stores it, from 1

	EKRoots []string `json:"ek_roots"`           // names of bundles of roots, at least one
	EKKinds []Kind   `json:"ek_kinds"`           // accepted, at least one. A TPM is a device for each: one that is revoked comes back as another
	EKAllow []Digest `json:"ek_allow,omitempty"` // SHA-256 of the endorsement key's SPKI, which is the device id; empty: every one
	EKDeny  []Digest `json:"ek_deny,omitempty"`

	PCRs    []int    `json:"pcrs"`     // SHA-256 bank, ascending, at least one: exactly these are quoted
	PCRSets []PCRSet `json:"pcr_sets"` // any one has to match whole; at least one

	MinFirmware Firmware    `json:"min_firmware,omitempty"` // what the TPM says of itself when it quotes
	Agents      []Software  `json:"agents,omitempty"`       // the posture's agent and version
	OS          []Software  `json:"os,omitempty"`           // the posture's OS and patch level
	Processes   []Digest    `json:"processes,omitempty"`    // the posture's process hash
	SessionKeys bool        `json:"session_keys,omitempty"` // a short-lived key in memory may prove in place of the TPM's
	Lifetime    Duration    `json:"lifetime"`               // of a discharge: 10 s to 15 m
	OnFailure   FailureRule `json:"on_failure,omitempty"`
}

// PCRSet is one accepted state of the machine.
type PCRSet struct {
	Name   string            `json:"name"`
	Values map[string]Digest `json:"values"` // by decimal index: exactly the policy's PCRs
}

// Software is a name, and the versions of it that will do.
type Software struct {
	Name     string   `json:"name"`
	Versions []string `json:"versions,omitempty"` // any of these; empty: every one that Minimum allows
	Minimum  string   `json:"minimum,omitempty"`  // dotted decimal, compared as numbers
}

// FailureRule is what happens to a device that was attested once and whose own
// AK then signs what the policy does not accept.
type FailureRule string

// The rules. The zero value refuses the discharge and nothing else.
const (
	RefuseOnly FailureRule = ""
	Revoke     FailureRule = "revoke" // revoke the device, and so all that is bound to it
)

// Firmware is a TPM's firmwareVersion, in text 16 lower-case hexadecimal digits.
type Firmware uint64

// String returns the hexadecimal form.
func (f Firmware) String() string {
	s := strconv.FormatUint(uint64(f), 16)
	return strings.Repeat("0", 16-len(s)) + s
}

// MarshalText returns the hexadecimal form.
func (f Firmware) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText accepts 16 lower-case hexadecimal digits. Errors: *Refusal.
func (f *Firmware) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || Firmware(n).String() != string(text) {
		return refuse(ReasonMalformed, "a firmware version is 16 lower-case hexadecimal digits")
	}
	*f = Firmware(n)
	return nil
}

// Duration is a time.Duration, in text such as "5m".
type Duration time.Duration

// MarshalText returns the text form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText is time.ParseDuration. Errors: *Refusal.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return refuse(ReasonMalformed, "%q is no duration", text)
	}
	*d = Duration(v)
	return nil
}

// ParsePolicy reads a document of at most MaxPolicy bytes and checks it.
// Errors: *Refusal, which says what is wrong.
func ParsePolicy(document []byte) (*Policy, error) {
	p := new(Policy)
	if err := decode(document, MaxPolicy, p); err != nil {
		return nil, err
	}
	return p, p.Check()
}

// Check says what is wrong with a policy. Version may be zero: it is set later.
// Errors: *Refusal.
func (p *Policy) Check() error {
	bad := func(format string, args ...any) error { return refuse(ReasonMalformed, format, args...) }
	switch {
	case p.Format != policyFormat:
		return bad("format %d: this is format %d", p.Format, policyFormat)
	case !ValidName(p.Name):
		return bad("a policy's name is 1 to 64 of a-z, 0-9, '.', '_' and '-'")
	case len(p.EKRoots) == 0 || len(p.EKRoots) > 16:
		return bad("ek_roots names 1 to 16 bundles")
	case !slices.ContainsFunc([]FailureRule{RefuseOnly, Revoke}, func(r FailureRule) bool { return r == p.OnFailure }):
		return bad("on_failure is %q or absent", Revoke)
	case p.Lifetime < Duration(MinLifetime) || p.Lifetime > Duration(MaxLifetime):
		return bad("lifetime is %v to %v", MinLifetime, MaxLifetime)
	case len(p.PCRSets) == 0 || len(p.PCRSets) > MaxPCRSets:
		return bad("pcr_sets has 1 to %d sets", MaxPCRSets)
	case max(len(p.EKAllow), len(p.EKDeny), len(p.Processes), len(p.Agents), len(p.OS)) > MaxListed:
		return bad("a list has more than %d entries", MaxListed)
	}
	for _, r := range p.EKRoots {
		if !ValidName(r) {
			return bad("%q is no name of a bundle", r)
		}
	}
	if len(p.EKKinds) == 0 {
		return bad("no ek_kinds: name the kind of endorsement key that is accepted, best of all one (%v)", Kinds())
	}
	for _, k := range p.EKKinds {
		if !slices.Contains(Kinds(), k) {
			return bad("%q is no kind of endorsement key", k)
		}
	}
	if err := checkSelection(p.PCRs); err != nil {
		return err
	}
	names := make(map[string]bool)
	for _, s := range p.PCRSets {
		if !ValidName(s.Name) || names[s.Name] {
			return bad("%q is no name of a PCR set, or names two", s.Name)
		}
		names[s.Name] = true
		if len(s.Values) != len(p.PCRs) {
			return bad("the PCR set %q has not exactly the PCRs of the policy", s.Name)
		}
		for _, i := range p.PCRs {
			if _, ok := s.Values[strconv.Itoa(i)]; !ok {
				return bad("the PCR set %q has no value for PCR %d", s.Name, i)
			}
		}
	}
	for _, s := range slices.Concat(p.Agents, p.OS) {
		if s.Name == "" || len(s.Name) > maxPostureField || len(s.Versions) > MaxListed {
			return bad("a name of software is 1 to %d bytes, with at most %d versions", maxPostureField, MaxListed)
		}
		if _, ok := parseVersion(s.Minimum); !ok && s.Minimum != "" {
			return bad("the minimum %q of %q is no dotted decimal number", s.Minimum, s.Name)
		}
	}
	return nil
}

// JudgeKey says whether the policy accepts an endorsement key that has a chain
// to its roots. id is the SHA-256 of the key's SPKI. Errors: *Refusal.
func (p *Policy) JudgeKey(kind Kind, id Digest) error {
	switch {
	case slices.Contains(p.EKDeny, id):
		return refuse(ReasonDenied, "the endorsement key %s is on the deny list", id)
	case len(p.EKAllow) > 0 && !slices.Contains(p.EKAllow, id):
		return refuse(ReasonDenied, "the endorsement key %s is not on the allow list", id)
	case !slices.Contains(p.EKKinds, kind):
		return refuse(ReasonEKType, "the policy does not accept endorsement keys of kind %s", kind)
	}
	return nil
}

// JudgePCRs returns the name of the first set that values, in the order of
// p.PCRs, match whole. Errors: *Refusal with ReasonPCRs, which names the PCRs
// that differ from the nearest set.
func (p *Policy) JudgePCRs(values [][]byte) (set string, err error) {
	if len(values) != len(p.PCRs) {
		return "", refuse(ReasonSelection, "%d PCR values, not %d", len(values), len(p.PCRs))
	}
	var nearest string
	var differ []int
	for _, s := range p.PCRSets {
		var d []int
		for n, i := range p.PCRs {
			want := s.Values[strconv.Itoa(i)]
			if len(values[n]) != sha256.Size || Digest(values[n]) != want {
				d = append(d, i)
			}
		}
		if len(d) == 0 {
			return s.Name, nil
		}
		if nearest == "" || len(d) < len(differ) {
			nearest, differ = s.Name, d
		}
	}
	var detail strings.Builder
	for _, i := range differ {
		detail.WriteString(" " + strconv.Itoa(i) + "=" + hex.EncodeToString(values[slices.Index(p.PCRs, i)]))
	}
	return "", refuse(ReasonPCRs, "no PCR set matches; the nearest, %q, differs in%s", nearest, detail.String())
}

// JudgeFirmware compares the firmware with the policy's minimum. Errors: *Refusal.
func (p *Policy) JudgeFirmware(f Firmware) error {
	if f < p.MinFirmware {
		return refuse(ReasonFirmware, "firmware %s is older than %s", f, p.MinFirmware)
	}
	return nil
}

// JudgePosture holds a statement against the policy. Errors: *Refusal with
// ReasonPosture.
func (p *Policy) JudgePosture(s *Posture) error {
	if len(p.Agents) > 0 && !accepts(p.Agents, s.Agent, s.Version) {
		return refuse(ReasonPosture, "agent %q of version %q", s.Agent, s.Version)
	}
	if len(p.OS) > 0 && !accepts(p.OS, s.OS, s.Patch) {
		return refuse(ReasonPosture, "OS %q of patch level %q", s.OS, s.Patch)
	}
	if len(p.Processes) > 0 && (s.ProcessHash == nil || !slices.Contains(p.Processes, *s.ProcessHash)) {
		if s.ProcessHash == nil {
			return refuse(ReasonPosture, "no process hash is stated")
		}
		return refuse(ReasonPosture, "process hash %s", s.ProcessHash)
	}
	return nil
}

func accepts(list []Software, name, version string) bool {
	return slices.ContainsFunc(list, func(s Software) bool {
		if s.Name != name || len(s.Versions) > 0 && !slices.Contains(s.Versions, version) {
			return false
		}
		if s.Minimum == "" {
			return true
		}
		order, ok := compareVersions(version, s.Minimum)
		return ok && order >= 0
	})
}
