package authority

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// TestNothingGrowsButTheAuditLog: what has ended goes, however much there is of
// it, and leaves neither records nor longer files behind.
func TestNothingGrowsButTheAuditLog(t *testing.T) {
	const records = 4200 // more than one command drops
	var ahead atomic.Int64
	cfg := testConfig(t)
	cfg.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	a, _ := openNode(t, cfg)
	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(cfg.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	snapshot := func() int64 {
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(cfg.Dir, "raft", "snapshots", "*.snap"))
		if err != nil || len(files) == 0 {
			t.Fatal("no snapshot", err)
		}
		info, err := os.Stat(files[len(files)-1])
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := a.Metrics()
	var file, empty int64
	for round := range 2 {
		fillWith(t, a, records)
		if m := a.Metrics(); m.Tokens < records || m.Revocations < records {
			t.Fatalf("round %d: %d tokens and %d revocations are live", round, m.Tokens, m.Revocations)
		}
		ahead.Add(int64(time.Hour))
		if err := a.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m := a.Metrics(); m.Tokens != before.Tokens || m.Revocations != before.Revocations {
			t.Errorf("round %d: %d tokens and %d revocations are left", round, m.Tokens-before.Tokens, m.Revocations-before.Revocations)
		}
		if s := snapshot(); round == 0 {
			empty = s
		} else if s > empty+1<<10 {
			t.Errorf("round %d: a snapshot of %d bytes, and of %d the first time", round, s, empty)
		}
		if s := size("state.db"); round == 0 {
			file = s
		} else if s > file*5/4 {
			t.Errorf("round %d: a state file of %d bytes, and of %d the first time", round, s, file)
		}
	}
	if m := a.Metrics(); m.AuditSize < 4*records {
		t.Errorf("%d records in the audit log", m.AuditSize)
	}
}

// fillWith issues so many tokens of a minute and revokes a branch of each.
func fillWith(t *testing.T, a *Authority, records int) {
	t.Helper()
	var next atomic.Int64
	var work sync.WaitGroup
	for range 128 {
		work.Go(func() {
			for next.Add(1) <= int64(records) {
				req := issueRequest("action read")
				req.TTLSeconds = 60
				issued, err := a.Issue(context.Background(), system(), req)
				if err != nil {
					t.Error(err)
					return
				}
				var branch capability.BranchID
				copy(branch[:], issued.ID[:])
				binary.BigEndian.PutUint64(branch[8:], issued.Index)
				if _, err := a.Revoke(context.Background(), system(), &api.RevokeRequest{
					Kind: api.RevokeBranch, Token: issued.ID.String(), Branch: branch.String(), Reason: "test",
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
