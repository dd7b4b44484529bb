package api

import "time"

// BackupType is the media type of a backup.
const BackupType = "application/octet-stream"

// RecoveryRequest names the offline identity that the cluster key is to be
// wrapped for.
type RecoveryRequest struct {
	Recipient string `json:"recipient"` // "writ-recipient-…"
}

// RecipientList says for whom the cluster key is wrapped.
type RecipientList struct {
	Number     uint32          `json:"number"` // of the cluster key; it rises with every rotation
	Recipients []RecipientInfo `json:"recipients"`
}

// RecipientInfo is one whose identity opens the cluster key.
type RecipientInfo struct {
	Name      string `json:"name"` // of a node, or "recovery"
	Recipient string `json:"recipient"`
}

// CARequest asks for another CA of the cluster.
type CARequest struct {
	// AtOnce ends the CA before now: clients that pin it are refused. Else it
	// vouches for the new one, and pins of either are good until it is retired.
	AtOnce bool `json:"at_once,omitempty"`
}

// CAInfo tells by which fingerprint clients know the cluster.
type CAInfo struct {
	CAFingerprint string    `json:"ca_fingerprint"` // SHA-256, hex: what clients are to pin
	NotAfter      time.Time `json:"not_after"`
	Retiring      string    `json:"retiring,omitempty"` // fingerprint of the CA before, while pins of it are good
}

// ExpelRequest removes a node that was compromised.
type ExpelRequest struct {
	Reason string `json:"reason"`          // for the audit log
	Force  bool   `json:"force,omitempty"` // even if the rest may lose its majority
}

// ExpelResponse is what comes after a compromised node. Every credential of
// before has ended, the caller's too: writ keys root makes the next.
type ExpelResponse struct {
	Node          string   `json:"node"`
	Incarnation   uint64   `json:"incarnation"`
	CAFingerprint string   `json:"ca_fingerprint"` // of the new CA, which clients are to pin
	Services      []string `json:"services"`       // to be added again
}
