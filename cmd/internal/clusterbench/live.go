package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// liveRecords measures nodes that have many tokens and revocations. They are made
// in a node of its own, through the authority but not over HTTPS: what counts here
// is what they take.
func (b *bench) liveRecords(ctx context.Context) error {
	c := &cluster{b: b, dir: b.dir + "/live"}
	for i := range 3 {
		if err := c.add(i + 1); err != nil {
			return err
		}
	}
	defer c.stop()
	first := c.nodes[0]
	s, err := b.seed(ctx, first)
	if err != nil {
		return err
	}
	c.fingerprint, c.token = s.Fingerprint, s.Token
	began := time.Now()
	if err := c.serve(ctx, first); err != nil {
		return err
	}
	start := time.Since(began)
	began = time.Now()
	for _, n := range c.nodes[1:] {
		if err := c.join(ctx, n); err != nil {
			return fmt.Errorf("joining %s: %w", n.name, err)
		}
	}
	if err := c.wait(ctx); err != nil {
		return err
	}
	joined := time.Since(began) / 2
	tokens, err := first.metric(ctx, "writ_tokens")
	if err != nil {
		return err
	}
	revocations, err := first.metric(ctx, "writ_revocations")
	if err != nil {
		return err
	}
	if int(tokens) < s.Live || int(revocations) < s.Live {
		return fmt.Errorf("%d tokens and %d revocations are live, not %d", tokens, revocations, s.Live)
	}
	wait.For(ctx, 5*time.Second)
	var resident, most, bare, whole int64
	for _, n := range c.nodes {
		u, err := n.usage()
		if err != nil {
			return err
		}
		peak, err := n.peak()
		if err != nil {
			return err
		}
		all, err := disk(n.dir)
		if err != nil {
			return err
		}
		rest, err := disk(n.dir, "audit")
		if err != nil {
			return err
		}
		b.say("%s: resident %s, of that %s of files, %s at most; disk %s, without the audit log %s",
			n.name, mebibytes(u.resident), mebibytes(u.mapped), mebibytes(peak), mebibytes(all), mebibytes(rest))
		resident, most, whole, bare = max(resident, u.resident), max(most, peak), max(whole, all), max(bare, rest)
	}
	const gib = 1 << 30
	what := fmt.Sprintf("%d live tokens and as many revocations", s.Live)
	if s.Live < b.live {
		what += fmt.Sprintf(" (%d could not be made in %v)", b.live, seedMost)
	}
	b.table.judge(what+": resident memory of a node", "1024 MiB", resident <= gib, "%s", mebibytes(resident))
	b.table.report("… at most, while it starts or joins", "%s", mebibytes(most))
	b.table.judge("… disk of a node", "1024 MiB", bare <= gib, "%s, and the audit log %s", mebibytes(bare), mebibytes(whole-bare))
	b.table.report("… start to serving", "%.1f s", start.Seconds())
	b.table.report("… snapshot", "%.1f s", s.Snapshot.Seconds())
	b.table.report("… a node joins, by snapshot, to voting", "%.1f s", joined.Seconds())
	return nil
}

// peak is the most memory that the process has had resident, in bytes.
func (n *node) peak() (int64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(n.cmd.Process.Pid), "status"))
	if err != nil {
		return 0, err
	}
	return field(string(status), "VmHWM:") << 10, nil
}

// seeded is what the seeding process has come to.
type seeded struct {
	Token       string        `json:"token"`
	Fingerprint string        `json:"fingerprint"`
	Snapshot    time.Duration `json:"snapshot"`
	Live        int           `json:"live"`
}

// seedOrder is what it is to do.
type seedOrder struct {
	Name, Dir, Key, Peer, API string
	Live                      int
	Most                      time.Duration // that making them may take
}

// seedMost keeps the whole run within its time on a slow disk: what is measured
// then is as many records as there are, and the table says so.
const seedMost = 4 * time.Minute

func (b *bench) seed(ctx context.Context, n *node) (*seeded, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	order, err := json.Marshal(seedOrder{n.name, n.dir, n.key, n.peer, n.api, b.live, seedMost})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	cmd := exec.CommandContext(ctx, self, "seed", string(order))
	cmd.Stderr = b.log
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("seeding: %w", err)
	}
	b.say("seeded in %s", time.Since(began).Round(time.Second))
	s := new(seeded)
	return s, json.Unmarshal(out, s)
}

// seedMain forms a cluster and fills it.
func seedMain(args []string) error {
	var o seedOrder
	if len(args) != 1 {
		return errors.New("seed ORDER")
	}
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	ctx := context.Background()
	ln, err := net.Listen("tcp", o.Peer)
	if err != nil {
		return err
	}
	a, formed, err := authority.Open(ctx, authority.Config{
		Dir: o.Dir, NodeID: o.Name, KeyFile: o.Key, Bootstrap: true, Bound: 2 * time.Second,
		Peers: &authority.PeerConfig{Listener: ln, API: o.API},
	})
	if err != nil {
		return err
	}
	live, err := fill(ctx, a, o.Live, o.Most)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	began := time.Now()
	if err := a.Compact(ctx); err != nil {
		return errors.Join(fmt.Errorf("snapshot: %w", err), a.Close())
	}
	s := seeded{Token: formed.RootToken, Fingerprint: fmt.Sprintf("%x", formed.CAFingerprint), Snapshot: time.Since(began), Live: live}
	if err := a.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// fillers is how many call at once.
const fillers = 512

// fill issues so many tokens and revokes a branch of each, or as many as it can
// in the time.
func fill(ctx context.Context, a *authority.Authority, live int, most time.Duration) (int, error) {
	end := time.Now().Add(most)
	call := authority.Call{Caller: authority.Caller{Name: state.SystemActor}}
	request := plainRequest()
	var next, made atomic.Int64
	errs := make([]error, fillers)
	var wg sync.WaitGroup
	for w := range fillers {
		wg.Go(func() {
			for errs[w] == nil && time.Now().Before(end) {
				if next.Add(1) > int64(live) {
					return
				}
				if errs[w] = fillOne(ctx, a, call, &request); errs[w] == nil {
					made.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int(made.Load()), errors.Join(errs...)
}

func fillOne(ctx context.Context, a *authority.Authority, call authority.Call, request *api.IssueRequest) error {
	issued, err := a.Issue(ctx, call, request)
	if err != nil {
		return err
	}
	var branch capability.BranchID
	binary.BigEndian.PutUint64(branch[:], uint64(issued.Index))
	copy(branch[8:], issued.ID[8:])
	_, err = a.Revoke(ctx, call, &api.RevokeRequest{
		Kind: api.RevokeBranch, Token: issued.ID.String(), Branch: branch.String(), Reason: "bench",
	})
	return err
}
