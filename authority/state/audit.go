package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"github.com/writ-dev/writ/authority/audit"
)

// auditRecord is one record of the audit trail, as JSON in the order of these
// fields: what is done to what, by whom, when, at whose request. It holds no
// secret. Fields are permanent: append, never reorder.
type auditRecord struct {
	Version    int             `json:"v"`
	Index      uint64          `json:"index"` // of the Raft log
	At         int64           `json:"at"`    // stamp, Unix ms
	Action     string          `json:"action"`
	Actor      string          `json:"actor"`
	ActorToken string          `json:"actor_token,omitempty"`
	ActorPoint string          `json:"actor_branch,omitempty"` // the last branch of its chain
	Request    string          `json:"request,omitempty"`
	Token      string          `json:"token,omitempty"`
	Branch     string          `json:"branch,omitempty"`
	Audience   string          `json:"audience,omitempty"`
	Subject    string          `json:"subject,omitempty"`
	Owner      string          `json:"owner,omitempty"`
	Purpose    string          `json:"purpose,omitempty"`
	Auditor    string          `json:"auditor,omitempty"`
	Agent      json.RawMessage `json:"agent,omitempty"`
	NotAfter   int64           `json:"not_after,omitempty"` // Unix ms
	Caveats    []string        `json:"caveats,omitempty"`
	Parent     string          `json:"parent,omitempty"`
	Actors     []string        `json:"actors,omitempty"`
	Kind       string          `json:"kind,omitempty"` // of a revocation
	Holder     string          `json:"holder,omitempty"`
	Device     string          `json:"device,omitempty"`
	Epoch      uint32          `json:"epoch,omitempty"`
	Generation uint32          `json:"generation,omitempty"`
	MintsFrom  int64           `json:"mints_from,omitempty"` // Unix ms
	Reason     string          `json:"reason,omitempty"`
	Reached    []string        `json:"reached,omitempty"` // tokens that a revocation reached
	ReachedAll int             `json:"reached_count,omitempty"`
	Lease      string          `json:"lease,omitempty"`
	Calls      uint64          `json:"calls,omitempty"` // leased, or given back
	Service    string          `json:"service,omitempty"`
	Audiences  []string        `json:"audiences,omitempty"`
	Derive     []string        `json:"derive,omitempty"`
	Keyless    bool            `json:"keyless,omitempty"`
	Expired    *expiredCounts  `json:"expired,omitempty"`
	Detail     string          `json:"detail,omitempty"`

	// Of attestation.
	Policy        string          `json:"policy,omitempty"`
	PolicyVersion uint64          `json:"policy_version,omitempty"`
	Posture       json.RawMessage `json:"posture,omitempty"`
	Evidence      json.RawMessage `json:"evidence,omitempty"`
	Document      string          `json:"document,omitempty"` // SHA-256 of a policy, or of a bundle of roots
}

type expiredCounts struct {
	Tokens      int `json:"tokens"`
	Revocations int `json:"revocations"`
	Leases      int `json:"leases"`
	Services    int `json:"services"`
	Requests    int `json:"requests"`
}

// maxReached bounds the ids that one record lists; the count is whole.
const maxReached = 256

// audit appends a record to the trail.
func (a *applier) audit(h *Header, r auditRecord) {
	r.Version, r.Index, r.At, r.Actor = 1, a.index, h.Stamp, h.Actor.Name
	r.ActorToken, r.Request = textOf(h.Actor.Token), textOf(h.Request)
	if n := len(h.Actor.Branches); n > 0 {
		r.ActorPoint = h.Actor.Branches[n-1].String()
	}
	r.ReachedAll = len(r.Reached)
	r.Reached = r.Reached[:min(len(r.Reached), maxReached)]
	b := auditJSON(&r)
	if len(b) > audit.MaxRecord {
		// Every field is bounded, so this is for one that somebody adds: a
		// record that the trail refuses would stop every node.
		sum := sha256.Sum256(b)
		b = auditJSON(&auditRecord{
			Version: r.Version, Index: r.Index, At: r.At, Action: r.Action, Actor: r.Actor, ActorToken: r.ActorToken,
			Token: r.Token, Detail: "too large to record; SHA-256 " + hex.EncodeToString(sum[:]),
		})
	}
	a.edge.Append(audit.RecordHash(b))
	a.records = append(a.records, b)
}

// auditJSON encodes a record without escaping for HTML, which makes one byte six.
func auditJSON(r *auditRecord) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		panic("state: encoding: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
