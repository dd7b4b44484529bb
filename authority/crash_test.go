package authority

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

const crashEnv = "WRIT_CRASH_CONFIG"

// crashConfig is what the child that will be killed is told.
type crashConfig struct{ Dir, KeyFile string }

// acknowledged is a line of the child's: something that a caller was told is done.
type acknowledged struct {
	Root    string `json:",omitempty"`
	Token   string `json:",omitempty"` // issued
	Revoked string `json:",omitempty"` // id
	Spent   uint64 `json:",omitempty"` // leased from the shared budget
	Budget  string `json:",omitempty"` // the token with it
}

func TestMain(m *testing.M) {
	if c := os.Getenv(crashEnv); c != "" {
		crashChild(c)
	}
	os.Exit(m.Run())
}

// crashChild opens the node and loads it until it is killed. It says what was
// acknowledged, one line a write, after it was.
func crashChild(text string) {
	var c crashConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	ctx := context.Background()
	a, formed, err := Open(ctx, Config{
		Dir: c.Dir, KeyFile: c.KeyFile, NodeID: "n1", Bootstrap: true, SnapshotThreshold: 256,
	})
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	say := func(line acknowledged) {
		b, _ := json.Marshal(line)
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.Write(append(b, '\n'))
	}
	token := os.Getenv(crashEnv + "_ROOT")
	if formed != nil {
		token = formed.RootToken
		say(acknowledged{Root: token})
	}
	var g capability.Grant
	if err := a.AdminVerifier().VerifyText(ctx, &g, token, &capability.Request{Now: time.Now()}); err != nil {
		panic(err)
	}
	root := Call{Caller: Caller{Name: g.Subject(), Token: g.ID(), Branches: g.AppendBranches(nil), Audience: g.Audience()}}
	issue := func(caveats ...string) *api.TokenResponse {
		r, err := a.Issue(ctx, root, issueRequest(caveats...))
		if err != nil {
			panic(err)
		}
		return r
	}
	shared := issue("max-calls 1000000000")
	say(acknowledged{Budget: shared.Token})
	macaroon, err := capability.Parse(shared.Token)
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := 1; ; n++ {
				// Now and then a snapshot, so that a restart begins from one.
				if i == 1 && n%20 == 0 {
					if err := a.store.Snapshot(ctx); err != nil && !errors.Is(err, raftstore.ErrNothingNew) {
						panic(err)
					}
				}
				switch i % 3 {
				case 0:
					say(acknowledged{Token: issue("action read").Token})
				case 1:
					r := issue("action read")
					if _, err := a.Revoke(ctx, root, &api.RevokeRequest{Kind: api.RevokeToken, Token: r.ID.String(), Reason: "crash"}); err != nil {
						panic(err)
					}
					say(acknowledged{Revoked: r.ID.String()})
				case 2:
					l, err := a.Lease(ctx, root, &api.LeaseRequest{Macaroon: macaroon.Bytes(), Want: 3})
					if err != nil {
						panic(err)
					}
					say(acknowledged{Spent: l.Granted})
				}
			}
		})
	}
	wg.Wait()
}

// TestKillNine kills a node in the middle of load, several times over, and
// looks for everything that was acknowledged.
func TestKillNine(t *testing.T) {
	cfg := testConfig(t)
	c, err := json.Marshal(crashConfig{cfg.Dir, cfg.KeyFile})
	if err != nil {
		t.Fatal(err)
	}
	var all []acknowledged
	root := ""
	for round := range 3 {
		lines := runAndKill(t, string(c), root, 300+200*round)
		all = append(all, lines...)
		if root == "" {
			root = lines[0].Root
		}
	}
	a, _ := openNode(t, cfg)
	if a.store.Status().SnapshotIndex == 0 {
		t.Error("no restart began from a snapshot")
	}
	counts := map[string]int{}
	spent := map[string]uint64{}
	budget := ""
	for _, line := range all {
		switch {
		case line.Budget != "":
			budget = line.Budget
		case line.Spent != 0:
			spent[budget] += line.Spent
			counts["leases"]++
		case line.Token != "":
			in, err := parse(t, line.Token).Inspect()
			if err != nil {
				t.Fatal(err)
			}
			if tail, _, ok := a.machine.Registered(in.Identifier.ID); !ok || tail != in.Branch {
				t.Fatalf("token %v was acknowledged and is gone", in.Identifier.ID)
			}
			counts["tokens"]++
		case line.Revoked != "":
			id, err := capability.ParseTokenID(line.Revoked)
			if err != nil {
				t.Fatal(err)
			}
			if !a.machine.IsRevoked(id, nil) {
				t.Fatalf("the revocation of %v was acknowledged and is gone", id)
			}
			counts["revocations"]++
		}
	}
	for text, n := range spent {
		in, err := parse(t, text).Inspect()
		if err != nil {
			t.Fatal(err)
		}
		b, err := a.machine.Budgets(in.Identifier.ID)
		if err != nil || len(b) != 1 {
			t.Fatal(b, err)
		}
		if gone := b[0].Limit - b[0].Remaining; gone < n {
			t.Errorf("%d calls were leased, and the budget says %d", n, gone)
		}
	}
	if counts["tokens"] < 50 || counts["revocations"] < 50 || counts["leases"] < 50 {
		t.Errorf("too little was acknowledged to tell: %v", counts)
	}
	t.Logf("all there: %v", counts)
	// The audit trail has the lot too, and proves it.
	callerOf(t, a, root)
	if err := a.saveCheckpoint(); err != nil {
		t.Fatal(err)
	}
	_, s, err := a.signer()
	if err != nil {
		t.Fatal(err)
	}
	size := a.Metrics().AuditSize
	closeNode(t, a)
	report, err := audit.VerifyDir(cfg.Dir+"/audit/1", s.Verifier())
	if err != nil || report.Size != size || report.Signed != size {
		t.Errorf("%+v, %v; the state has %d", report, err, size)
	}
}

// runAndKill runs the child until it has said n lines, and kills it.
func runAndKill(t *testing.T, config, root string, n int) (lines []acknowledged) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashEnv+"="+config, crashEnv+"_ROOT="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	r := bufio.NewReader(out)
	for {
		b, err := r.ReadBytes('\n')
		if err == io.EOF {
			break // killed; a line that was cut was not acknowledged
		}
		if err != nil {
			t.Fatal(err)
		}
		var line acknowledged
		if err := json.Unmarshal(b, &line); err != nil {
			t.Fatal(fmt.Errorf("%q: %w", b, err))
		}
		lines = append(lines, line)
		if len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // it was killed
	if len(lines) < n {
		t.Fatalf("the child ended by itself after %d lines", len(lines))
	}
	return lines
}
