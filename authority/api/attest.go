package api

import "time"

// Codes of attestation.
const (
	// CodeAttestation: 403: the evidence, or what was asked for, was refused. The
	// operator's log says why, under the reference.
	CodeAttestation Code = "attestation_refused"
	// CodeChallenge: 409: the challenge is unknown, used or expired: begin again.
	CodeChallenge Code = "challenge_refused"
)

// AttestResponse answers evidence that was accepted.
type AttestResponse struct {
	Discharge string    `json:"discharge,omitempty"` // text form; absent for an enrolment
	Expires   time.Time `json:"expires,omitzero"`    // of the discharge
	Device    string    `json:"device"`              // SHA-256 of the endorsement key's SPKI
	Holder    string    `json:"holder"`              // jkt:…, what a holder caveat names
}

// PolicyRequest stores the next version of an attestation policy.
type PolicyRequest struct {
	Document string `json:"document"` // JSON, see package caveats/attest; it names itself
}

// PolicyInfo is a version of an attestation policy.
type PolicyInfo struct {
	Name     string    `json:"name"`
	Version  uint64    `json:"version"`
	Document string    `json:"document,omitempty"` // JSON; absent in lists
	By       string    `json:"by"`
	At       time.Time `json:"at"`
}

// PolicyList lists the newest version of each policy, by name.
type PolicyList struct {
	Policies []PolicyInfo `json:"policies"`
}

// RootsRequest stores a bundle of roots that certify endorsement keys.
type RootsRequest struct {
	PEM string `json:"pem"` // certificates
}

// RootsInfo is a bundle of roots.
type RootsInfo struct {
	Name         string     `json:"name"`
	Certificates []RootInfo `json:"certificates"`
	PEM          string     `json:"pem,omitempty"` // absent in lists
	By           string     `json:"by"`
	At           time.Time  `json:"at"`
}

// RootInfo is a certificate of a bundle.
type RootInfo struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the DER, in hexadecimal
	NotAfter    time.Time `json:"not_after"`
}

// RootsList lists the bundles of roots, by name.
type RootsList struct {
	Bundles []RootsInfo `json:"bundles"`
}

// DeviceInfo is what is known of a device: of its last good evidence.
type DeviceInfo struct {
	Device        string    `json:"device"` // device id
	EK            string    `json:"ek"`     // kind of endorsement key
	AKs           []string  `json:"aks"`
	Holder        string    `json:"holder"`
	Reset         uint32    `json:"reset"`
	Restart       uint32    `json:"restart"`
	Clock         uint64    `json:"clock_ms"`
	Firmware      string    `json:"firmware"`
	Policy        string    `json:"policy"`
	PolicyVersion uint64    `json:"policy_version"`
	PCRSet        string    `json:"pcr_set"`
	Posture       string    `json:"posture,omitempty"` // JSON: the holder's own word
	Enrolled      time.Time `json:"enrolled"`
	EnrolledBy    string    `json:"enrolled_by,omitempty"`
	Attested      time.Time `json:"attested"`
	Count         uint64    `json:"count"`
	Revoked       time.Time `json:"revoked,omitzero"`
	Reason        string    `json:"reason,omitempty"` // of the revocation
}

// DeviceList is a page of devices, by id.
type DeviceList struct {
	Devices []DeviceInfo `json:"devices"`
	Next    string       `json:"next,omitempty"` // the cursor of the next page
}

// ForgetDeviceRequest asks to forget a device, so that it can enroll anew.
type ForgetDeviceRequest struct {
	Reason string `json:"reason"`
}

// ForgetDeviceResponse says until when the device remains revoked, if it was.
type ForgetDeviceResponse struct {
	RevokedUntil time.Time `json:"revoked_until,omitzero"`
}
