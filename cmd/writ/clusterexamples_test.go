package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// clusterExamples are the commands whose examples are about several machines, in
// the order in which they can be run: TestClusterExamples does so, on loopback.
var clusterExamples = []string{
	"writ cluster init", "writ cluster token", "writ cluster join", "writ cluster demote", "writ cluster promote",
	"writ cluster transfer-leader", "writ cluster clean-up", "writ cluster remove",
}

var (
	exampleNode    = regexp.MustCompile(`--node (n\d)`)
	exampleAddress = regexp.MustCompile(`10\.0\.0\.(\d):(\d+)`)
)

// TestClusterExamples runs the examples of the commands that are about several
// machines, one after the other, on one cluster. What is other than in the text:
// the machines' addresses, a directory for each, and that a command which runs a
// node goes into the background.
func TestClusterExamples(t *testing.T) {
	ports := map[string]string{}
	script := func(example string) (out string) {
		example = exampleAddress.ReplaceAllStringFunc(example, func(a string) string {
			if ports[a] == "" {
				_, ports[a], _ = strings.Cut(freePort(t), ":")
			}
			return "127.0.0." + exampleAddress.FindStringSubmatch(a)[1] + ":" + ports[a]
		})
		example = strings.ReplaceAll(strings.ReplaceAll(example, "\\\n", " "), "HEX", `"$WRIT_CA_FINGERPRINT"`)
		for line := range strings.Lines(example) {
			line = strings.TrimSpace(line)
			node := exampleNode.FindStringSubmatch(line)
			if node == nil {
				out += line + "\n"
				continue
			}
			n := node[1]
			line = strings.NewReplacer("./data", "./"+n+".data", "./node.key", "./"+n+".key").Replace(line)
			out += fmt.Sprintf("%s --peer-profile wan > %[2]s.up 2>> log & echo $! > %[2]s.pid\n", line, n)
			out += fmt.Sprintf("until test -s %[1]s.up; do kill -0 \"$(cat %[1]s.pid)\"; sleep 0.05; done\n", n)
			if strings.Contains(line, " init ") {
				out += ". ./" + n + ".up\n"
			}
		}
		return out
	}
	all := examples(t)
	text := "trap 'for p in *.pid; do kill -9 \"$(cat $p)\" 2>/dev/null || :; done' EXIT\n"
	for _, name := range clusterExamples {
		example := all[name]
		if !strings.Contains(example, name) {
			t.Errorf("%s has no example of its own", name)
		}
		if name == "writ cluster join" {
			// The machine of the example has joined with that of init.
			example = strings.NewReplacer("n2", "n3", "10.0.0.2", "10.0.0.3").Replace(example)
			text += "writ cluster token > join.token\n"
		}
		if name != "writ cluster init" {
			text += "writ cluster status --wait 50s > /dev/null\n"
		}
		text += script(example)
	}
	dir := t.TempDir()
	if out, code := shell(t, bin(t), dir, nil, text); code != 0 {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Errorf("exit code %d\n%s\n%s\nthe nodes' log:\n%s", code, text, out, log)
	}
}
