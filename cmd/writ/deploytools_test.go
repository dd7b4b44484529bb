package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tool runs a program that make setup has brought, and returns what it printed.
func tool(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = filepath.Abs("../../bin/" + name); err == nil {
			_, err = os.Stat(path)
		}
	}
	if err != nil {
		t.Fatalf("%s is missing: make setup installs it", name)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Prometheus takes the rules, and each alert fires when it should and then only.
func TestAlertsFire(t *testing.T) {
	dir := deployDir + "prometheus"
	if out, err := tool(t, dir, "promtool", "check", "rules", "alerts.yml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := tool(t, dir, "promtool", "test", "rules", "alerts_test.yml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	cases := string(readDeploy(t, "prometheus/alerts_test.yml"))
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(readDeploy(t, "prometheus/alerts.yml")), -1) {
		if !strings.Contains(cases, `alertname="`+m[1]+`"`) {
			t.Errorf("nothing makes %s fire", m[1])
		}
	}
}

// systemd takes the unit, and finds that it leaves the process little.
func TestUnit(t *testing.T) {
	unit := strings.ReplaceAll(string(readDeploy(t, "systemd/writ.service")), "/usr/local/bin/writ", filepath.Join(bin(t), "writ"))
	path := filepath.Join(t.TempDir(), "writ.service")
	if err := os.WriteFile(path, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := tool(t, ".", "systemd-analyze", "verify", "--man=no", path); err != nil || strings.Contains(out, "writ.service") {
		t.Errorf("%v\n%s", err, out)
	}
	// The exposure, in tenths of 10: 96 for a unit that asks for nothing.
	if out, err := tool(t, ".", "systemd-analyze", "security", "--offline=true", "--threshold=20", path); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// instruction is one of a Dockerfile's, in one line.
type instruction struct{ name, rest string }

func instructions(text string) (all []instruction) {
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all = append(all, instruction{name, strings.TrimSpace(rest)})
		}
	}
	return all
}

// What the image copies is there, what it runs it has copied, and the directories
// that a node writes to are made for the user that it runs as.
func TestDockerfile(t *testing.T) {
	stages, wants := map[string]string{}, map[string]string{}
	stage, binary, entry, user := "", "", "", ""
	var ran, volumes, exposed string
	for _, i := range instructions(string(readDeploy(t, "Dockerfile"))) {
		words := strings.Fields(i.rest)
		switch i.name {
		case "FROM":
			stage = ""
			if len(words) == 3 && words[1] == "AS" {
				stage = words[2]
			}
			if !regexp.MustCompile(`^[a-z]+:[0-9.]+$`).MatchString(words[0]) {
				t.Errorf("the base %s names no version", words[0])
			}
			ran, user = "", ""
		case "COPY":
			if from, ok := strings.CutPrefix(words[0], "--from="); ok {
				if !strings.Contains(stages[from], "-o "+words[1]+" ") {
					t.Errorf("stage %s does not make %s", from, words[1])
				}
				binary = words[2]
				continue
			}
			for _, source := range words[:len(words)-1] {
				if _, err := os.Stat("../../" + source); err != nil {
					t.Errorf("COPY: %v", err)
				}
			}
		case "RUN":
			ran += " " + i.rest
			stages[stage] += " " + i.rest + " "
		case "USER":
			user = i.rest
		case "ENV":
			for _, w := range words {
				k, v, _ := strings.Cut(w, "=")
				wants[k] = v
			}
		case "VOLUME":
			volumes = i.rest
		case "EXPOSE":
			exposed = i.rest
		case "ENTRYPOINT":
			entry = strings.Trim(i.rest, `[]"`)
		}
	}
	if binary == "" || entry != binary {
		t.Errorf("it runs %q, and copies %q", entry, binary)
	}
	if user == "" || strings.HasPrefix(user, "0") || !strings.Contains(ran, "-u "+strings.Split(user, ":")[0]+" ") {
		t.Errorf("it runs as %q, whom it does not make", user)
	}
	for _, key := range []string{"WRIT_DATA_DIR", "WRIT_NODE_KEY"} {
		dir := filepath.Dir(wants[key])
		if !strings.Contains(ran+" ", " "+dir+" ") || !strings.Contains(volumes, `"`+dir+`"`) {
			t.Errorf("%s is in %s, which is not made or no volume", key, dir)
		}
	}
	if _, port, _ := strings.Cut(wants["WRIT_LISTEN"], ":"); !slices.Contains(strings.Fields(exposed), port) {
		t.Errorf("it listens on %s and exposes %s", port, exposed)
	}
	gomod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(gomod)
	if version == nil || !strings.Contains(string(readDeploy(t, "Dockerfile")), "FROM golang:"+string(version[1])+" ") {
		t.Errorf("it does not build with the Go of go.mod (%s)", version)
	}
}
