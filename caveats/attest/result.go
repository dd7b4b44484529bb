package attest

import (
	"crypto/ecdsa"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// Result is what accepted evidence proves.
type Result struct {
	Device      capability.DeviceID // SHA-256 of the endorsement key's SPKI
	Kind        Kind
	AKName      Name
	Activated   bool // the AK was activated now; otherwise it was enrolled before
	Holder      capability.HolderKey
	HolderKey   *ecdsa.PublicKey
	Counters    Counters
	Firmware    Firmware
	PCRSet      string // the policy's set that the quote matches
	Posture     Posture
	Policy      string
	Version     uint64 // of the policy
	SessionKeys bool   // the policy lets a session key prove in place of the holder key
	Lifetime    time.Duration
}

// The facts that a discharge declares.
const (
	FactDevice   = "attest.device"
	FactAK       = "attest.ak"
	FactPolicy   = "attest.policy" // NAME@VERSION
	FactPCRs     = "attest.pcrs"   // the name of the PCR set
	FactReset    = "attest.reset"
	FactRestart  = "attest.restart"
	FactSessions = "attest.sessions" // allowed or forbidden
)

// Conditions are the caveats of a discharge made at now: its end (that of the
// policy's lifetime, or notAfter if that is earlier), the holder key, the
// device, the facts, and, where the policy forbids session keys, that the
// holder key proves itself. capability.OpenedCaveat.Discharge adds bound.
func (r *Result) Conditions(now, notAfter time.Time) ([]string, error) {
	end := now.Add(r.Lifetime)
	if end.After(notAfter) {
		end = notAfter
	}
	if !end.After(now) {
		return nil, fmt.Errorf("a discharge that ended %v ago", now.Sub(end))
	}
	holder, err := caveats.Holder(r.Holder)
	if err != nil {
		return nil, err
	}
	sessions := "allowed"
	out := []string{caveats.TimeBefore(end), holder, caveats.Device(r.Device)}
	if !r.SessionKeys {
		sessions = "forbidden"
		out = append(out, "context pop is direct")
	}
	for _, f := range [][2]string{
		{FactDevice, r.Device.String()},
		{FactAK, hex.EncodeToString(r.AKName)},
		{FactPolicy, r.Policy + "@" + strconv.FormatUint(r.Version, 10)},
		{FactPCRs, r.PCRSet},
		{FactReset, strconv.FormatUint(uint64(r.Counters.Reset), 10)},
		{FactRestart, strconv.FormatUint(uint64(r.Counters.Restart), 10)},
		{FactSessions, sessions},
	} {
		c, err := caveats.Declare(f[0], f[1])
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
