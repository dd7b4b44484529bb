package server_test

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/server"
)

const (
	metricsPage  = "../../docs/metrics.md"
	metricsBegin = "<!-- metrics: made by go test ./authority/server -run TestMetricsPage -update -->\n"
	metricsEnd   = "<!-- end -->\n"
)

// family is what a scrape says about one metric.
type family struct {
	kind, help string
	labels     map[string]bool
}

var label = regexp.MustCompile(`([a-z_]+)="`)

// families reads Prometheus' text format.
func families(t *testing.T, page []byte) map[string]*family {
	t.Helper()
	all := map[string]*family{}
	for s := bufio.NewScanner(bytes.NewReader(page)); s.Scan(); {
		line := s.Text()
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			all[name] = &family{help: help, labels: map[string]bool{}}
		} else if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			if all[name] == nil {
				t.Fatalf("%s has no help", name)
			}
			all[name].kind = kind
		} else if series, labels, ok := strings.Cut(line, "{"); ok {
			for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
				if f := all[strings.TrimSuffix(series, suffix)]; f != nil {
					for _, m := range label.FindAllStringSubmatch(labels, -1) {
						if m[1] != "le" {
							f.labels[m[1]] = true
						}
					}
				}
			}
		}
	}
	return all
}

// The page tells every metric of a node that has been called, and no other.
func TestMetricsPage(t *testing.T) {
	r := start(t, server.Limits{})
	r.Mint(t, "corp", "a")
	all := families(t, r.do("GET", "/metrics", "", "").body)
	table := "| name | type | labels | meaning |\n|---|---|---|---|\n"
	ours := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if f := all[name]; strings.HasPrefix(name, "writ_") {
			ours++
			table += fmt.Sprintf("| `%s` | %s | %s | %s |\n", name, f.kind, strings.Join(slices.Sorted(maps.Keys(f.labels)), ", "), f.help)
		} else if !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("%s is of no family that the page names", name)
		}
	}
	if ours < 20 {
		t.Fatalf("a node has %d metrics of its own: the scrape is wrong", ours)
	}
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), metricsBegin)
	had, after, ok2 := strings.Cut(rest, metricsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", metricsPage)
	}
	if had == table {
		return
	}
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(metricsPage, []byte(before+metricsBegin+table+metricsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s does not say what a node says; go test ./authority/server -run TestMetricsPage -update\nnode:\n%spage:\n%s", metricsPage, table, had)
}
