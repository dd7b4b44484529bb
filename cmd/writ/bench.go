package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

type benchOptions struct {
	each    time.Duration
	workers int
	dir     string
}

func newBench(a *app) *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "measure verifying, issuing, revoking and leasing on this machine",
		Long: `Measure verifying, issuing, revoking and leasing on this machine: a throw-away
authority over TLS on a loopback address, with its data where --dir says, so that it is
your disk's fsync that is measured. make bench compares with other token formats.`,
		Example: "  writ bench --each 200ms",
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.bench(cmd, &o) },
	}
	f := cmd.Flags()
	f.DurationVar(&o.each, "each", 2*time.Second, "`time` for each measurement, at most 1m")
	f.IntVar(&o.workers, "workers", 64, "how `many` call the authority at once, at most 1024")
	f.StringVar(&o.dir, "dir", "", "put the data in a directory of its own in this `directory` (default: the temporary one)")
	return cmd
}

// benchResult is one measurement; --output json prints them all.
type benchResult struct {
	Name      string  `json:"name"`
	Workers   int     `json:"workers"`
	Count     int     `json:"count"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	Max       float64 `json:"max_us"`
}

func (a *app) bench(cmd *cobra.Command, o *benchOptions) error {
	if o.each < time.Millisecond || o.each > time.Minute || o.workers < 1 || o.workers > 1024 {
		return usage(cmd, "--each is 1ms to 1m, and --workers 1 to 1024")
	}
	dir, err := os.MkdirTemp(o.dir, "writ-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	root, wait, err := a.benchAuthority(ctx, dir)
	if err != nil {
		return err
	}
	results, err := a.benchAll(ctx, o, root)
	cancel()
	if err := errors.Join(err, wait()); err != nil {
		return err
	}
	return a.emit(cmd, results, func(p *printer) {
		var rows [][]string
		for _, r := range results {
			rate := "-"
			if r.PerSecond > 0 {
				rate = fmt.Sprintf("%.0f", r.PerSecond)
			}
			rows = append(rows, []string{
				r.Name, fmt.Sprint(r.Workers), rate,
				micros(r.P50), micros(r.P99), micros(r.Max),
			})
		}
		p.table([]string{"WHAT", "AT ONCE", "PER SECOND", "MEDIAN", "99 %", "WORST"}, rows)
	})
}

func micros(us float64) string {
	d := time.Duration(us * float64(time.Microsecond))
	if d < time.Millisecond {
		return fmt.Sprintf("%.1f µs", us)
	}
	return fmt.Sprintf("%.1f ms", us/1000)
}

// benchAuthority starts a node that ends with ctx; wait returns when it has.
func (a *app) benchAuthority(ctx context.Context, dir string) (*client.Client, func() error, error) {
	c := defaultConfig()
	c.Node, c.DataDir, c.NodeKey, c.LogLevel = "bench", filepath.Join(dir, "data"), filepath.Join(dir, "node.key"), "error"
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	n, err := openNode(ctx, a, &c, c.logger(a.stderr), true)
	if err != nil {
		return nil, nil, errors.Join(err, ln.Close())
	}
	root, err := client.New(client.Config{Addrs: []string{ln.Addr().String()}, CAFingerprint: n.fingerprint(), Token: n.formed.RootToken})
	if err != nil {
		return nil, nil, errors.Join(err, ln.Close(), n.Close())
	}
	done := make(chan error, 1)
	go func() { done <- n.serve(ctx, ln, nil) }()
	return root, func() error { return <-done }, nil
}

const benchAudience = "bench"

// The call that bench verifies.
var (
	benchResource = []string{"files", "q3"}
	benchClient   = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

func (a *app) benchAll(ctx context.Context, o *benchOptions, root *client.Client) ([]benchResult, error) {
	var out []benchResult
	measure := func(name string, workers, batch int, f func(worker int) error) error {
		r, err := measureFor(ctx, o.each, workers, batch, f)
		if err != nil {
			return fail(name, err)
		}
		r.Name = name
		out = append(out, r)
		return nil
	}
	request := api.IssueRequest{
		Audience: benchAudience, Subject: "agent-42", Owner: "owner@corp.example", Purpose: "bench", TTLSeconds: 900,
		Caveats: []string{"action read", "resource files/**", "client-ip 127.0.0.0/8"},
	}
	issued, err := root.Issue(ctx, request)
	if err != nil {
		return nil, err
	}
	r, err := replica.Open(ctx, replica.Config{Client: root, Audiences: []string{benchAudience}})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for _, verify := range []struct {
		name string
		opts []capability.Option
	}{
		{"verify, 5 caveats", nil},
		{"verify again, prefix cache", []capability.Option{capability.WithPrefixCache(1 << 12)}},
	} {
		for _, workers := range slices.Compact([]int{1, runtime.GOMAXPROCS(0)}) {
			f, err := a.benchVerify(r, issued.Token, workers, verify.opts...)
			if err != nil {
				return nil, err
			}
			if err := measure(verify.name, workers, 256, f); err != nil {
				return nil, err
			}
		}
	}
	for _, workers := range slices.Compact([]int{1, o.workers}) {
		if err := measure("issue", workers, 1, func(int) error {
			_, err := root.Issue(ctx, request)
			return err
		}); err != nil {
			return nil, err
		}
	}
	if err := measure("lease a call", o.workers, 1, benchLease(ctx, root, request, o.workers)); err != nil {
		return nil, err
	}
	if err := measure("revoke a branch", o.workers, 1, benchRevoke(ctx, root, issued.Token)); err != nil {
		return nil, err
	}
	latency, err := a.benchReach(ctx, o, root, r, request)
	if err != nil {
		return nil, fail("revoke to refusal", err)
	}
	return append(out, latency), nil
}

// benchVerify verifies a token with two caveats added, as a service would.
func (a *app) benchVerify(r *replica.Replica, token string, workers int, opts ...capability.Option) (func(int) error, error) {
	checker, err := caveats.Standard()
	if err != nil {
		return nil, err
	}
	v, err := r.Verifier(checker, opts...)
	if err != nil {
		return nil, err
	}
	t, err := capability.Parse(token)
	if err != nil {
		return nil, err
	}
	if t, err = t.Attenuate("resource files/q3"); err != nil {
		return nil, err
	}
	text := t.Text()
	grants, requests := make([]capability.Grant, workers), make([]capability.Request, workers)
	return func(w int) error {
		requests[w] = capability.Request{Now: a.now(), Action: "read", Resource: benchResource, Client: benchClient}
		return v.VerifyText(context.Background(), &grants[w], text, &requests[w])
	}, nil
}

// benchLease leases single calls, each worker from a budget of its own.
func benchLease(ctx context.Context, root *client.Client, request api.IssueRequest, workers int) func(int) error {
	request.Caveats = []string{"max-calls 1000000000"}
	macaroons := make([][]byte, workers)
	return func(w int) error {
		if macaroons[w] == nil {
			issued, err := root.Issue(ctx, request)
			if err != nil {
				return err
			}
			t, err := capability.Parse(issued.Token)
			if err != nil {
				return err
			}
			macaroons[w] = t.Bytes()
		}
		_, err := root.Lease(ctx, api.LeaseRequest{Macaroon: macaroons[w], Want: 1})
		return err
	}
}

// benchRevoke revokes fresh branches of one token.
func benchRevoke(ctx context.Context, root *client.Client, token string) func(int) error {
	return func(int) error {
		t, err := capability.Parse(token)
		if err != nil {
			return err
		}
		if t, err = t.Attenuate("action read"); err != nil { // a fresh branch each time
			return err
		}
		_, err = root.RevokeSelf(ctx, api.SelfRevokeRequest{Token: t.Text(), Reason: "bench"})
		return err
	}
}

// benchReach measures how long after the acknowledgement of a revocation a
// service still accepts.
func (a *app) benchReach(ctx context.Context, o *benchOptions, root *client.Client, r *replica.Replica, request api.IssueRequest) (benchResult, error) {
	checker, err := caveats.Standard()
	if err != nil {
		return benchResult{}, err
	}
	v, err := r.Verifier(checker)
	if err != nil {
		return benchResult{}, err
	}
	var took []time.Duration
	for end := time.Now().Add(o.each); len(took) == 0 || time.Now().Before(end); {
		issued, err := root.Issue(ctx, request)
		if err != nil {
			return benchResult{}, err
		}
		if _, err := root.RevokeSelf(ctx, api.SelfRevokeRequest{Token: issued.Token, Reason: "bench"}); err != nil {
			return benchResult{}, err
		}
		start := time.Now()
		var g capability.Grant
		for {
			err := v.VerifyText(ctx, &g, issued.Token, &capability.Request{Now: a.now(), Action: "read", Resource: benchResource, Client: benchClient})
			if errors.Is(err, capability.CodeRevoked) {
				break
			}
			if err != nil {
				return benchResult{}, err
			}
			if time.Since(start) > 10*time.Second {
				return benchResult{}, errors.New("still accepted after 10 s")
			}
			runtime.Gosched()
		}
		took = append(took, time.Since(start))
	}
	out := summarize(took, 1, 0, 1)
	out.Name = "acknowledged revocation to refusal"
	return out, nil
}

// measureFor calls f from workers goroutines for a while. Each sample is the
// mean of batch calls.
func measureFor(ctx context.Context, each time.Duration, workers, batch int, f func(worker int) error) (benchResult, error) {
	samples, errs := make([][]time.Duration, workers), make([]error, workers)
	var wg sync.WaitGroup
	start := time.Now()
	end := start.Add(each)
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil && ctx.Err() == nil && time.Now().Before(end) {
				began := time.Now()
				for range batch {
					if errs[w] = f(w); errs[w] != nil {
						return
					}
				}
				samples[w] = append(samples[w], time.Since(began)/time.Duration(batch))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	for _, err := range append(errs, ctx.Err()) {
		if err != nil {
			return benchResult{}, err
		}
	}
	return summarize(slices.Concat(samples...), workers, elapsed, batch), nil
}

func summarize(took []time.Duration, workers int, elapsed time.Duration, batch int) benchResult {
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Nanoseconds()) / 1000
	}
	r := benchResult{Workers: workers, Count: len(took) * batch, P50: at(0.5), P99: at(0.99), Max: at(1)}
	if elapsed > 0 {
		r.PerSecond = float64(r.Count) / elapsed.Seconds()
	}
	return r
}
