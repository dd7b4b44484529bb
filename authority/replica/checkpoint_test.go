package replica

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
)

// testLog is an audit log in memory: its hashes, and checkpoints of any size.
type testLog struct {
	t      *testing.T
	signer *audit.Signer
	hashes []tlog.Hash
}

func (l *testLog) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, n := range at {
		out[i] = l.hashes[n]
	}
	return out, nil
}

// newTestLog has this many records, of which those from fork on are others.
func newTestLog(t *testing.T, seed byte, size, fork int64) *testLog {
	t.Helper()
	signer, err := audit.NewSigner("writ/audit/test/1", append(make([]byte, 31), seed))
	if err != nil {
		t.Fatal(err)
	}
	l := &testLog{t: t, signer: signer}
	for n := range size {
		record := []byte{byte(n)}
		if n >= fork {
			record = append(record, 'x')
		}
		hashes, err := tlog.StoredHashes(n, record, l)
		if err != nil {
			t.Fatal(err)
		}
		l.hashes = append(l.hashes, hashes...)
	}
	return l
}

func (l *testLog) checkpoint(size int64) string {
	l.t.Helper()
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		l.t.Fatal(err)
	}
	msg, err := audit.Checkpoint{Origin: "writ/audit/test/1", Size: size, Root: audit.Hash(root)}.Sign(l.signer)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(msg)
}

func (l *testLog) prove(_ context.Context, older, newer int64) (*api.Proof, error) {
	proof, err := tlog.ProveTree(newer, older, l)
	if err != nil {
		return nil, err
	}
	p := new(api.Proof)
	for _, h := range proof {
		p.Hashes = append(p.Hashes, h[:])
	}
	return p, nil
}

// TestCheckpointsAreHeldAgainstTheLast: a log that grew is followed, one that
// was changed is not, and with the log's key it ends everything.
func TestCheckpointsAreHeldAgainstTheLast(t *testing.T) {
	honest := newTestLog(t, 1, 40, 1000)
	forked := newTestLog(t, 1, 50, 20)
	stranger := newTestLog(t, 2, 50, 1000)
	o := newOffline(t)
	o.cfg.AuditKey = honest.signer.VerifierKey()
	o.consistency = honest.prove
	last := audit.Checkpoint{}
	for _, size := range []int64{0, 3, 17, 17, 9, 40} {
		next, err := o.holdAgainst(last, honest.checkpoint(size))
		if err != nil || next.Size != max(size, last.Size) {
			t.Fatalf("size %d after %d: %d, %v", size, last.Size, next.Size, err)
		}
		last = next
	}
	for _, c := range []struct {
		name string
		text string
		log  *testLog
		want error
	}{
		{"another root of the same size", forked.checkpoint(40), forked, ErrForked},
		{"a longer log that was changed", forked.checkpoint(50), forked, ErrForked},
		{"a shorter log that was changed", forked.checkpoint(30), honest, ErrForked},
		{"another key", stranger.checkpoint(45), honest, audit.ErrSignature},
		{"nonsense", "nonsense", honest, audit.ErrSignature},
	} {
		o.consistency = c.log.prove
		if _, err := o.holdAgainst(last, c.text); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// No answer is no evidence of anything.
	o.consistency = func(context.Context, int64, int64) (*api.Proof, error) { return nil, context.DeadlineExceeded }
	if next, err := o.holdAgainst(last, forked.checkpoint(50)); err == nil || errors.Is(err, ErrForked) || next != last {
		t.Errorf("no answer: %v, %v", next, err)
	}

	// A fork that is proven under the log's key ends everything; without the
	// key it is only said.
	for _, key := range []string{"", honest.signer.VerifierKey()} {
		o := newOffline(t)
		o.cfg.AuditKey = key
		o.cfg.CheckpointFile = filepath.Join(t.TempDir(), "checkpoint")
		o.consistency = forked.prove
		s := o.stream(0, 1)
		o.must(s, snapshot(at(1, 10))...)
		o.must(s, o.ping(s, at(1, 10)))
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.runCheckpoints(audit.Checkpoint{})
		}()
		changed := o.feed.wait()
		o.points <- honest.checkpoint(40)
		o.points <- forked.checkpoint(50)
		<-changed
		o.points <- "" // taken when the one before has been dealt with
		o.cancel()
		<-done
		if got := o.Within(o.Mark(), 0); got != (key == "") {
			t.Errorf("with key %q: fresh is %v after a fork", key, got)
		}
		b, err := os.ReadFile(o.cfg.CheckpointFile)
		if err != nil || string(b) != honest.checkpoint(40) {
			t.Errorf("kept %q, %v", b, err)
		}
		// The next run starts from what was kept; a file that was tampered with
		// is not taken for none.
		if c, err := o.loadCheckpoint(); err != nil || c.Size != 40 {
			t.Errorf("loaded %v, %v", c, err)
		}
		if err := os.WriteFile(o.cfg.CheckpointFile, b[1:], 0o600); err != nil {
			t.Fatal(err)
		}
		if key != "" {
			if _, err := o.loadCheckpoint(); !errors.Is(err, ErrConfig) {
				t.Errorf("a file that was tampered with: %v", err)
			}
		}
	}
}
