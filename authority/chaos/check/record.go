// Package check judges what the clients and guards of a fault campaign were told.
//
// Whoever does something writes a [Record] of it to a [Log]: in memory, or as lines
// of JSON, so that many processes can feed one check. [Check] then holds the
// records against each other and says what cannot have been:
//
//   - issuing, revoking, leasing, giving back and linearizable reads of each token
//     form a linearizable history;
//   - of each call budget, nested ones too, accepted + unspent + forfeited is the
//     limit;
//   - no revoked credential is accepted later than the bound after its revocation
//     was acknowledged, and none is refused as revoked that nobody revoked;
//   - a guard that can reach a node of a quorum is never stale;
//   - everything acknowledged is on every node at the end, the nodes agree about
//     their state, and their audit logs are prefixes of one.
//
// A check that had too little to judge says so, and fails: see [Least].
//
// All times are nanoseconds on one clock that no fault touches: that of the one
// process, or CLOCK_MONOTONIC of the one machine.
package check

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Op is what a Record is of. The comments say which fields each needs besides Op,
// Client, Begun and Ended.
type Op string

const (
	// OpIssue is a token that was asked for: Name, and Limits of its budgets.
	OpIssue Op = "issue"
	// OpNarrow is a credential derived offline from the one that its Name begins
	// with: Name, Limits of the budgets it adds. Begun and Ended do not count.
	OpNarrow Op = "narrow"
	// OpRevoke is a revocation that was asked for, of Name and all derived from it.
	OpRevoke Op = "revoke"
	// OpLease is a lease of one call that was asked for, on a token with one budget,
	// of which no guard leases: Name, Lease when granted, or Code.
	OpLease Op = "lease"
	// OpReturn gives the call of a Lease back: Name, Lease, and Calls credited.
	OpReturn Op = "return"
	// OpRead is a linearizable read: Name, Seen, and Left when the token has one
	// budget; Left counts where there is an OpLease of the name.
	OpRead Op = "read"
	// OpVerdict is what guard Client said of credential Name: Code, empty if it
	// accepted. It is recorded before the guard answers.
	OpVerdict Op = "verdict"
	// OpAccount is what the authority says at the end of one budget, after every
	// guard that lives has given back what it held: Name, Budget (its place in
	// Limits), Left, and Calls that may lie in leases that are still open.
	OpAccount Op = "account"
	// OpFault is a fault: Code is its kind.
	OpFault Op = "fault"
	// OpCut is a time in which guard Client, or every one where that is empty, had
	// no way to any node of a quorum.
	OpCut Op = "cut"
	// OpRepeat is a request that was made a second time under its id, and answered.
	OpRepeat Op = "repeat"
	// OpRestore is a new incarnation, which there is one of: Begun is when the one
	// before had ended. No token from before is good any more; or, where Backup says
	// when the backup was asked for, they go on as they were then, without their budgets.
	OpRestore Op = "restore"
	// OpNode is one node at the end: Client is its name, then Index and Hash, or
	// Audit, or Seen of one Name. It has as many records as it needs. What one told
	// before a restore (Ended) does not count.
	OpNode Op = "node"
)

// Presence is what is seen of a token.
type Presence string

const (
	Absent  Presence = "absent"
	Live    Presence = "live"
	Revoked Presence = "revoked"
	Twice   Presence = "twice" // made twice: never right
)

// Record is one thing that was done, or seen.
type Record struct {
	Op     Op     `json:"op"`
	Client string `json:"client,omitempty"` // who does it, one thing at a time
	Begun  int64  `json:"begun,omitempty"`
	Ended  int64  `json:"ended,omitempty"`
	// Unknown has the outcome open: it may have been done, or be done yet. A lease
	// that was refused for a reason, and a return that was, are known.
	Unknown bool `json:"unknown,omitempty"`
	// Name is unique for each credential, and known before it has an id. One that
	// was derived from another is named after it: a, a/b, a/b/c.
	Name   string   `json:"name,omitempty"`
	Code   string   `json:"code,omitempty"`
	Limits []uint64 `json:"limits,omitempty"`
	Lease  string   `json:"lease,omitempty"`
	Calls  uint64   `json:"calls,omitempty"`
	Seen   Presence `json:"seen,omitempty"`
	Left   uint64   `json:"left,omitempty"`
	Budget int      `json:"budget,omitempty"`
	Backup int64    `json:"backup,omitempty"`
	Index  uint64   `json:"index,omitempty"`
	Hash   string   `json:"hash,omitempty"`
	Audit  [][]byte `json:"audit,omitempty"`
}

// Log collects records. Its methods are safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	records []Record  // guarded by mu
	out     io.Writer // guarded by mu; nil: none
}

// NewLog returns an empty log, which also writes each record as a line to out
// before Add returns. out may be nil.
func NewLog(out io.Writer) *Log { return &Log{out: out} }

// Add adds a record.
func (l *Log) Add(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out != nil {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if _, err := l.out.Write(append(b, '\n')); err != nil {
			return err
		}
	}
	l.records = append(l.records, r)
	return nil
}

// Records returns what was added so far.
func (l *Log) Records() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.records)
}

// maxLine bounds one line of a log, in bytes.
const maxLine = 64 << 20

// Read reads lines that a Log has written. A last line that was cut off, by a kill
// of whoever wrote it, is left out.
func Read(r io.Reader) ([]Record, error) {
	var records []Record
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var bad error
	for n := 1; lines.Scan(); n++ {
		if bad != nil {
			return nil, bad // there is one after it
		}
		var rec Record
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
			bad = fmt.Errorf("check: line %d: %w", n, err)
			continue
		}
		records = append(records, rec)
	}
	return records, lines.Err()
}
