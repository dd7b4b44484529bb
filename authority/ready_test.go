package authority_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/raftstore/raftstoretest"
)

// get asks a node what it tells anybody.
func get(t *testing.T, addr, path string) (status int, body []byte) {
	t.Helper()
	probe := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := probe.Get("https://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// metric is the value of a metric that has no labels.
func metric(t *testing.T, addr, name string) float64 {
	t.Helper()
	_, page := get(t, addr, "/metrics")
	m := regexp.MustCompile(`(?m)^` + name + ` (.*)$`).FindSubmatch(page)
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// readyz is what a probe is told: the status, and the problem's detail.
func readyz(t *testing.T, addr string) (status int, detail string) {
	t.Helper()
	status, body := get(t, addr, "/readyz")
	if status == http.StatusOK {
		return status, ""
	}
	var p api.Problem
	if err := api.Decode(body, &p); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return status, p.Detail
}

// reasons are what docs/operations.md says that /readyz says.
func reasons(t *testing.T) map[string]bool {
	t.Helper()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "| detail | what it means | what to do |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| (.+?) \|`).FindAllStringSubmatch(table, -1) {
		known[m[1]] = true
	}
	if !ok || len(known) < 5 {
		t.Fatalf("the page was read wrongly: %v", known)
	}
	return known
}

// TestReadinessSaysWhyNot: each reason for which a node is not ready is told in
// the words of docs/operations.md, with nothing of its files or of a stack, every
// reason on the page is one that can be met, and the metrics that the alerts look
// at say so too.
func TestReadinessSaysWhyNot(t *testing.T) {
	known := reasons(t)
	says := func(addr, want string) {
		t.Helper()
		var status int
		var detail string
		until(t, "not ready: "+want, func() bool {
			status, detail = readyz(t, addr)
			return strings.Contains(detail, want)
		})
		if status != http.StatusServiceUnavailable || !known[detail] {
			t.Errorf("%d %q is not on the page", status, detail)
		}
		delete(known, detail)
		if ready := metric(t, addr, "writ_ready"); ready != 0 {
			t.Errorf("%s: writ_ready %v", detail, ready)
		}
	}
	flags := func(addr string, want map[string]float64) {
		t.Helper()
		for name, v := range want {
			if got := metric(t, addr, name); got != v {
				t.Errorf("%s %v, not %v", name, got, v)
			}
		}
	}
	alone := func(faults *raftstoretest.Disk) *authoritytest.Node {
		return authoritytest.Start(t, authoritytest.Options{Authority: func(cfg *authority.Config) { cfg.Faults, cfg.OnFatal = faults, func(error) {} }})
	}
	issue := func(n *authoritytest.Node) {
		t.Helper()
		root := n.Root()
		defer root.Close()
		if _, err := root.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "a", Owner: "o", Purpose: "p"}); err == nil {
			t.Error("issued all the same")
		}
	}
	disk := new(raftstoretest.Disk)
	n := alone(disk)
	if status, _ := readyz(t, n.Addr); status != http.StatusOK {
		t.Errorf("in order: %d", status)
	}
	flags(n.Addr, map[string]float64{"writ_ready": 1, "writ_raft_disk_full": 0, "writ_raft_failed": 0, "writ_raft_leader": 1})
	disk.Full()
	issue(n)
	says(n.Addr, "the disk is full")
	flags(n.Addr, map[string]float64{"writ_raft_disk_full": 1, "writ_raft_failed": 0})
	disk.Heal()
	until(t, "it is ready again", func() bool { status, _ := readyz(t, n.Addr); return status == http.StatusOK })
	n.Authority.SetFree(func() (uint64, error) { return authority.MinFree - 1, nil })
	says(n.Addr, "short of disk space")
	flags(n.Addr, map[string]float64{"writ_disk_free_bytes": authority.MinFree - 1, "writ_raft_disk_full": 0})
	n.Authority.SetFree(func() (uint64, error) { return authority.MinFree, nil })
	disk.Fail()
	issue(n)
	says(n.Addr, "the node has failed")
	flags(n.Addr, map[string]float64{"writ_raft_failed": 1})

	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Isolate(followers[0].Name)
	says(followers[0].Addr, "no quorum has confirmed this node's state within the bound")
	if age := metric(t, followers[0].Addr, "writ_state_age_seconds"); age <= authoritytest.ClusterBound.Seconds() {
		t.Errorf("writ_state_age_seconds %v", age)
	}
	c.Heal()

	c = authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: time.Minute})
	if followers, err = c.Followers(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Isolate(followers[0].Name)
	says(followers[0].Addr, "the cluster has no leader")
	flags(followers[0].Addr, map[string]float64{"writ_raft_leader": 0})
	c.Heal()

	for detail := range known {
		t.Errorf("nothing brings a node to say %q", detail)
	}
}
