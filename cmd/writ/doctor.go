package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

type doctorOptions struct {
	conn  connection
	node  configFlags
	ready string
}

func newDoctor(a *app) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "look for what is wrong between here and the authority",
		Long: `Look for what is wrong between here and the authority: configuration, credential,
reachability, the pinned certificate and when it ends, the clock, and in a cluster the
other nodes and their clocks. With --config or --data-dir, look at the node of this
machine: its configuration, the modes of its files, the space on its disk, who listens
on its ports, whether it reaches its peers, and whether its clock is kept in time; then
at the authority only if WRIT_ADDR or --addr names it. It changes nothing.

With --ready, only ask the node at an address whether it is ready, whoever it is:
for health checks of containers.

Exit code 1 says that something failed.`,
		Example: "  writ doctor",
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd, &o) },
	}
	o.conn.add(cmd)
	o.node.addSome(cmd, "data_dir", "node_key", "listen", "peer_listen")
	cmd.Flags().StringVar(&o.ready, "ready", "", "only ask the node at `HOST:PORT` whether it is ready")
	return cmd
}

// finding is the outcome of one check.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn or fail
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// findings collects them.
type findings []finding

func (f *findings) ok(check, format string, args ...any) {
	*f = append(*f, finding{Check: check, Result: "ok", Detail: fmt.Sprintf(format, args...)})
}

func (f *findings) warn(check, hint, format string, args ...any) {
	*f = append(*f, finding{Check: check, Result: "warn", Detail: fmt.Sprintf(format, args...), Hint: hint})
}

func (f *findings) fail(check string, err error) {
	e := explain(err)
	*f = append(*f, finding{Check: check, Result: "fail", Detail: e.Message, Hint: e.Hint})
}

func (a *app) doctor(cmd *cobra.Command, o *doctorOptions) error {
	var f findings
	here := o.node.file != "" || cmd.Flags().Changed("data-dir")
	if o.ready != "" {
		checkReady(cmd.Context(), "ready", o.ready, &f)
	} else if !here || len(o.conn.addrs) > 0 || a.getenv(client.EnvAddr) != "" {
		a.checkAuthority(cmd.Context(), o, &f)
	}
	if here {
		a.checkHere(cmd, o, &f)
	}
	bad := 0
	for _, x := range f {
		if x.Result == "fail" {
			bad++
		}
	}
	err := a.emit(cmd, f, func(p *printer) {
		for _, x := range f {
			p.line("%-4s  %-12s %s", x.Result, x.Check, x.Detail)
			if x.Hint != "" {
				p.line("%-4s  %-12s hint: %s", "", "", x.Hint)
			}
		}
	})
	if err == nil && bad > 0 {
		err = &failure{Code: "unwell", Message: fmt.Sprintf("%d of %d checks failed", bad, len(f))}
	}
	return err
}

func (a *app) checkAuthority(ctx context.Context, o *doctorOptions, f *findings) {
	cfg, err := o.conn.config(a)
	if err != nil {
		f.fail("config", err)
		return
	}
	f.ok("config", "%d address(es), CA pinned", len(cfg.Addrs))
	a.checkCredential(&cfg, f)
	for _, addr := range cfg.Addrs {
		one := cfg
		one.Addrs, one.Attempts = []string{addr}, 1
		c, err := client.New(one)
		if err != nil {
			f.fail("address", err)
			continue
		}
		a.checkNode(ctx, addr, c, f)
		c.Close()
	}
}

func (a *app) checkCredential(cfg *client.Config, f *findings) {
	text := cfg.Token
	if cfg.TokenFile != "" {
		info, err := os.Stat(cfg.TokenFile)
		if err != nil {
			f.fail("credential", err)
			return
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			f.warn("credential", "chmod 600 "+cfg.TokenFile, "%s has mode %04o: others can read it", cfg.TokenFile, mode)
		}
		b, err := os.ReadFile(cfg.TokenFile)
		if err != nil {
			f.fail("credential", err)
			return
		}
		text = string(b)
	}
	if text == "" {
		f.warn("credential", "set WRIT_TOKEN_FILE", "none: only what needs no credential works")
		return
	}
	token, err := parseSet(strings.Fields(text))
	if err != nil {
		f.fail("credential", err)
		return
	}
	ins, err := token.Inspect()
	if err != nil {
		f.fail("credential", err)
		return
	}
	id := ins.Identifier
	switch left := id.NotAfter.Sub(a.now()); {
	case id.Audience != api.AdminAudience:
		f.fail("credential", &failure{Message: fmt.Sprintf("it is for the audience %s, not %s", id.Audience, api.AdminAudience), Hint: problemHints[api.CodeUnauthorized]})
	case left < 0:
		f.fail("credential", capability.CodeExpired)
	case left < 72*time.Hour && left < id.NotAfter.Sub(id.ID.Time())/3:
		f.warn("credential", "a service renews its own; an operator mints the next one with this one", "%s ends %s", id.Subject, a.when(id.NotAfter))
	default:
		f.ok("credential", "%s, not after %s (unverified)", id.Subject, a.when(id.NotAfter))
	}
}

func (a *app) checkNode(ctx context.Context, addr string, c *client.Client, f *findings) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	start := time.Now()
	if err := c.Ready(ctx); err != nil {
		f.fail("reach", fail(addr, err))
		// A certificate out of its time may be a clock out of order.
		if errors.Is(err, client.ErrFingerprint) {
			a.checkClock(ctx, c.Addrs()[0], f)
		}
		return
	}
	f.ok("reach", "%s is ready, certificate as pinned, %s", addr, time.Since(start).Round(100*time.Microsecond))
	a.checkClock(ctx, c.Addrs()[0], f)
	status, err := c.Status(ctx)
	if err != nil {
		f.fail("status", fail(addr, err))
		return
	}
	role := "follower"
	if status.Leader {
		role = "leader"
	}
	f.ok("status", "node %s of %s, %s, %s, index %d, epoch %d", status.Node, status.Cluster, status.Version, role, status.Applied, status.Epoch)
	a.checkMembers(ctx, c, f)
}

// checkMembers looks at the other nodes of a cluster, as this one sees them.
// Whose credential does not allow it has nothing to look at.
func (a *app) checkMembers(ctx context.Context, c *client.Client, f *findings) {
	s, err := c.Cluster(ctx)
	if err != nil || len(s.Nodes) < 2 {
		return
	}
	bad := len(*f)
	for i := range s.Nodes {
		switch n := &s.Nodes[i]; {
		case n.State == "removed" || n.Node == s.Node:
		case !n.Answers:
			f.warn("nodes", "is its port for peers open to the others, "+n.Raft+"?", "%s does not answer %s", n.Node, s.Node)
		case n.DiskFull:
			f.warn("nodes", "free some space on it", "the disk of %s is full", n.Node)
		case time.Duration(n.SkewMs)*time.Millisecond > nodeSkew || time.Duration(n.SkewMs)*time.Millisecond < -nodeSkew:
			f.warn("nodes", "is time synchronized there? timedatectl tells; with 1s it cannot lead", "the clock of %s is %dms off", n.Node, n.SkewMs)
		}
	}
	if len(*f) == bad {
		f.ok("nodes", "%d answer %s", len(s.Nodes), s.Node)
	}
}

// anyone asks whoever answers at url, without looking at the certificate: what
// comes back is good for a diagnosis and nothing else.
func anyone(ctx context.Context, url string) (*http.Response, error) {
	t := &http.Transport{
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(req)
}

const (
	// maxSkew is how far apart the clocks may be before it is worth a word.
	maxSkew = 2 * time.Second
	// nodeSkew is the same between nodes, of which none leads that is 1 s off.
	nodeSkew = 500 * time.Millisecond
	// certificateLeft is how long a node's certificate is still good at least when
	// the node renews it as it should, at two thirds of its 90 days.
	certificateLeft = 20 * 24 * time.Hour
)

// checkCertificate looks at when a node's certificate ends.
func (a *app) checkCertificate(s *tls.ConnectionState, f *findings) {
	if s == nil || len(s.PeerCertificates) == 0 {
		return
	}
	const hint = "a node renews its certificate by itself: look at its log and at its clock"
	ends := s.PeerCertificates[0].NotAfter
	switch left := ends.Sub(a.now()); {
	case left < 0:
		f.warn("certificate", hint, "it ended %s", a.when(ends))
	case left < certificateLeft:
		f.warn("certificate", hint, "it ends %s", a.when(ends))
	default:
		f.ok("certificate", "good until %s", a.when(ends))
	}
}

// checkClock compares the clocks by the Date of an answer, which has a
// resolution of a second. That the server is the right one was checked before;
// here a stranger could at most mislead about the time.
func (a *app) checkClock(ctx context.Context, base string, f *findings) {
	resp, err := anyone(ctx, base+"/livez")
	if err != nil {
		f.fail("clock", err)
		return
	}
	resp.Body.Close()
	a.checkCertificate(resp.TLS, f)
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		f.warn("clock", "", "the authority does not say what time it is")
		return
	}
	if skew := a.now().Sub(theirs).Abs(); skew > maxSkew {
		f.warn("clock", "is time synchronized here and there? timedatectl tells", "this clock and the authority's differ by %s", skew.Round(time.Second))
		return
	}
	f.ok("clock", "within %s of the authority's", maxSkew)
}
