package authority

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

func pageSize(limit int) (int, error) {
	if limit == 0 {
		return state.DefaultPage, nil
	}
	if limit < 0 || limit > state.MaxPage {
		return 0, invalid(fmt.Sprintf("limit: 1 to %d", state.MaxPage))
	}
	return limit, nil
}

func encodeCursor(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func decodeCursor(cursor string) (string, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) > 512 {
		return "", invalid("cursor: not one of this list's")
	}
	return string(b), nil
}

// Token returns what the registry knows of a token.
func (a *Authority) Token(ctx context.Context, id capability.TokenID) (*api.TokenInfo, error) {
	r, err := a.machine.Token(id)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil {
		return nil, &Error{Code: api.CodeNotFound, Detail: "no such token, or it ended long ago"}
	}
	info, err := a.tokenInfo(r)
	if err != nil {
		return nil, serviceError(err)
	}
	if info.Budgets, err = a.machine.Budgets(id); err != nil {
		return nil, serviceError(err)
	}
	return info, nil
}

func (a *Authority) tokenInfo(r *state.TokenRecord) (*api.TokenInfo, error) {
	info := &api.TokenInfo{
		ID: r.ID, Audience: r.Audience, Subject: r.Subject, Owner: r.Owner, Purpose: r.Purpose, Auditor: r.Auditor,
		IssuedBy: r.IssuedBy, Issued: r.ID.Time(), NotAfter: time.UnixMilli(r.NotAfter).UTC(), Epoch: r.Epoch, Generation: r.Generation,
		Caveats: []string{}, Branch: r.Tail, Actors: r.Actors, Revoked: a.machine.IsRevoked(r.ID, []capability.BranchID{r.Tail}),
	}
	if r.Parent != nil {
		info.Parent = &r.Parent.Token
	}
	if len(r.Agent) > 0 {
		info.Agent = new(api.Agent)
		if err := json.Unmarshal(r.Agent, info.Agent); err != nil {
			return nil, err
		}
	}
	t, err := capability.Remint(a.nobody, r.Unsigned) // to be read, and good for nothing else
	if err != nil {
		return nil, err
	}
	in, err := t.Inspect()
	if err != nil {
		return nil, err
	}
	for _, c := range in.Caveats {
		if c.ThirdParty {
			info.Caveats = append(info.Caveats, "third-party "+c.Location)
		} else {
			info.Caveats = append(info.Caveats, c.Condition)
		}
	}
	return info, nil
}

// TokenQuery selects tokens; empty fields select all.
type TokenQuery struct {
	Audience, Subject, Owner string
	Cursor                   string // TokenList.Next of the page before
	Limit                    int    // 1 to 500; 0: 100
}

// Tokens lists tokens, newest first. A page may be short, or empty, and yet
// have a next.
func (a *Authority) Tokens(ctx context.Context, q TokenQuery) (*api.TokenList, error) {
	limit, err := pageSize(q.Limit)
	if err != nil {
		return nil, err
	}
	var cursor capability.TokenID
	if q.Cursor != "" {
		if cursor, err = capability.ParseTokenID(q.Cursor); err != nil {
			return nil, invalid("cursor: not one of this list's")
		}
	}
	list := &api.TokenList{AsOf: a.machine.AppliedIndex()}
	page, next, err := a.machine.Tokens(state.TokenQuery{Audience: q.Audience, Subject: q.Subject, Owner: q.Owner}, cursor, limit)
	if err != nil {
		return nil, serviceError(err)
	}
	list.Tokens = make([]api.TokenInfo, len(page))
	for i, r := range page {
		info, err := a.tokenInfo(r)
		if err != nil {
			return nil, serviceError(err)
		}
		list.Tokens[i] = *info
	}
	if next != (capability.TokenID{}) {
		list.Next = next.String()
	}
	return list, nil
}

// signer returns the signer of the audit log's checkpoints.
func (a *Authority) signer() (note.Signer, *audit.Signer, error) {
	seed, err := a.keys.secret(state.PurposeAudit, 1)
	if err != nil {
		return nil, nil, err
	}
	b, err := seed.Expose()
	if err != nil {
		return nil, nil, err
	}
	defer clear(b)
	s, err := audit.NewSigner(a.machine.Cluster().Origin, b)
	return s, s, err
}

// checkpoint signs the audit log's checkpoint.
func (a *Authority) checkpoint() (signed []byte, size int64, err error) {
	log, err := a.trail.get()
	if err != nil {
		return nil, 0, err
	}
	s, _, err := a.signer()
	if err != nil {
		return nil, 0, err
	}
	if signed, err = log.Checkpoint(s); err != nil {
		return nil, 0, err
	}
	c, err := audit.ReadUnverified(signed)
	return signed, c.Size, err
}

// AuditCheckpoint signs the audit log's checkpoint.
func (a *Authority) AuditCheckpoint(ctx context.Context) (*api.CheckpointResponse, error) {
	signed, _, err := a.checkpoint()
	if err != nil {
		return nil, serviceError(err)
	}
	_, s, err := a.signer()
	if err != nil {
		return nil, serviceError(err)
	}
	return &api.CheckpointResponse{Checkpoint: string(signed), VerifierKey: s.VerifierKey()}, nil
}

const (
	defaultRecords = 100
	maxRecords     = 1000
	maxRecordBytes = 4 << 20 // of one answer
)

// AuditRecords returns up to limit records (1 to 1000; 0: 100) from number from.
func (a *Authority) AuditRecords(ctx context.Context, from int64, limit int) (*api.AuditRecords, error) {
	if limit == 0 {
		limit = defaultRecords
	}
	if limit < 0 || limit > maxRecords {
		return nil, invalid(fmt.Sprintf("limit: 1 to %d", maxRecords))
	}
	log, err := a.trail.get()
	if err != nil {
		return nil, serviceError(err)
	}
	answer := &api.AuditRecords{From: from, Records: [][]byte{}, Size: log.Size()}
	if from < 0 || from > answer.Size {
		return nil, serviceError(audit.ErrRange)
	}
	bytes := 0
	for e, err := range log.Records(from, min(answer.Size, from+int64(limit))) {
		if err != nil {
			return nil, serviceError(err)
		}
		if bytes += len(e.Record); bytes > maxRecordBytes {
			break
		}
		answer.Records = append(answer.Records, e.Record)
	}
	return answer, nil
}

// AuditInclusion proves that record n is in the log of this size.
func (a *Authority) AuditInclusion(ctx context.Context, size, n int64) (*api.Proof, error) {
	log, err := a.trail.get()
	if err != nil {
		return nil, serviceError(err)
	}
	return proof(log.ProveInclusion(size, n))
}

// AuditConsistency proves that the log of size older is the start of that of size newer.
func (a *Authority) AuditConsistency(ctx context.Context, older, newer int64) (*api.Proof, error) {
	log, err := a.trail.get()
	if err != nil {
		return nil, serviceError(err)
	}
	return proof(log.ProveConsistency(older, newer))
}

func proof(hashes []audit.Hash, err error) (*api.Proof, error) {
	if err != nil {
		return nil, serviceError(err)
	}
	p := &api.Proof{Hashes: make([][]byte, len(hashes))}
	for i := range hashes {
		p.Hashes[i] = hashes[i][:]
	}
	return p, nil
}

// Status is what the node says of itself.
func (a *Authority) Status() *api.Status {
	counts, cluster, raft := a.machine.Counts(), a.machine.Cluster(), a.store.Status()
	epoch := uint32(0)
	for _, e := range a.machine.Epochs() {
		if e.MintsFrom <= a.now() && !e.Revoked {
			epoch = e.Epoch
		}
	}
	return &api.Status{
		Node: a.cfg.NodeID, Cluster: cluster.ID, Version: a.cfg.Version, Incarnation: cluster.Incarnation,
		Leader: raft.Ready, Term: raft.Term, Applied: a.machine.AppliedIndex(),
		Tokens: counts.Tokens, Revocations: counts.Revocations, Services: counts.Services,
		Epoch: epoch, AuditSize: counts.Audit, Started: a.started.UTC(),
	}
}

// Ready returns nil if the node can serve, or an error that says why not.
func (a *Authority) Ready(ctx context.Context) error {
	raft := a.store.Status()
	switch {
	case raft.Err != nil:
		return &Error{Code: capability.CodeUnavailable, Detail: "the node has failed", Err: raft.Err}
	case raft.DiskFull:
		return &Error{Code: api.CodeDiskFull, Detail: "the disk is full"}
	case a.proposer.hasSpace(laneIssue) != nil:
		return &Error{Code: api.CodeDiskFull, Detail: "short of disk space"}
	case a.fresh.age() > a.fresh.bound:
		return &Error{Code: capability.CodeStaleRevocations, Detail: "no quorum has confirmed this node's state within the bound"}
	case !raft.Ready && raft.Leader == "":
		return &Error{Code: api.CodeNotLeader, Detail: "the cluster has no leader"}
	}
	return nil
}

// Metrics is a snapshot of what is worth graphing.
type Metrics struct {
	Applied, CommitIndex, Term           uint64
	Leader, DiskFull                     bool
	Tokens, Revocations, Services        int
	Leases, Budgets                      int
	AuditSize                            int64
	Streams                              int // feeds open
	Pings, Pongs, ReadIndexes            uint64
	QueueRevoke, QueueLease, QueueIssue  int // waiting for the proposer
	Proposals, ProposedEntries, Refusals uint64
	Age                                  time.Duration     // since the quorum read that confirmed this node's state was begun
	FreeBytes                            uint64            // on the data directory's file system; 0 where it cannot be told
	Failed                               bool              // the node has met what it cannot go on after
	Attestations                         map[string]uint64 // "accepted", or the reason of a refusal
}

// Metrics returns the node's numbers.
func (a *Authority) Metrics() Metrics {
	counts, raft, p := a.machine.Counts(), a.store.Status(), a.proposer
	free, _ := p.free()
	return Metrics{
		Age: a.fresh.age(), FreeBytes: free, Failed: raft.Err != nil,
		Applied: a.machine.AppliedIndex(), CommitIndex: raft.CommitIndex, Term: raft.Term, Leader: raft.Ready, DiskFull: raft.DiskFull,
		Tokens: counts.Tokens, Revocations: counts.Revocations, Services: counts.Services, Leases: counts.Leases, Budgets: counts.Budgets,
		AuditSize: counts.Audit, Streams: a.feeds.count(),
		Pings: a.feeds.pings.Load(), Pongs: a.feeds.pongs.Load(), ReadIndexes: a.fresh.reads.Load(),
		QueueRevoke: len(p.queues[laneRevoke]), QueueLease: len(p.queues[laneLease]), QueueIssue: len(p.queues[laneIssue]),
		Proposals: p.proposals.Load(), ProposedEntries: p.entries.Load(), Refusals: p.refusals.Load(),
		Attestations: a.attestation.outcomes(),
	}
}
