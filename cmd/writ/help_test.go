package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/caveats"
)

// everyCommand walks the tree of commands, hidden ones left out.
func everyCommand(t *testing.T) []*cobra.Command {
	t.Helper()
	root := newRoot(newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}, func(string) string { return "" }))
	var all []*cobra.Command
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		all = append(all, c)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	if len(all) < 30 {
		t.Fatalf("found %d commands: the walk is wrong", len(all))
	}
	return all
}

// TestHelpReadsAlike lints the help texts.
func TestHelpReadsAlike(t *testing.T) {
	for _, c := range everyCommand(t) {
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Short[:1] != strings.ToLower(c.Short[:1]) {
			t.Errorf("%s: short help %q is not lower case without a full stop", path, c.Short)
		}
		if c.Long == "" || c.Long[:1] != strings.ToUpper(c.Long[:1]) && c.HasParent() {
			t.Errorf("%s: long help is not sentences", path)
		}
		for _, line := range strings.Split(c.Long+"\n"+c.Example, "\n") {
			if len([]rune(line)) > 100 {
				t.Errorf("%s: a line of %d characters: %s", path, len([]rune(line)), line)
			}
		}
		var out bytes.Buffer
		c.SetOut(&out)
		if err := c.Help(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if c.Runnable() && !c.HasSubCommands() && !strings.HasSuffix(out.String(), "Examples:\n"+c.Example+"\n") {
			t.Errorf("%s: help does not end with an example:\n%s", path, out.String())
		}
	}
}

var topicCondition = regexp.MustCompile(`(?m)^  (\S.*?)(?:  .*)?$`)

// TestVocabularyReads: every condition that the topic caveats shows can be read.
func TestVocabularyReads(t *testing.T) {
	read := 0
	for _, topic := range topics {
		if topic.name != "caveats" {
			continue
		}
		for _, m := range topicCondition.FindAllStringSubmatch(topic.text, -1) {
			condition := strings.TrimSpace(m[1])
			if strings.Contains(condition, "…") || strings.HasPrefix(condition, "writ ") {
				continue
			}
			read++
			if _, err := caveats.Complete(rand.Reader, condition); err != nil {
				t.Errorf("%q: %v", condition, err)
			}
		}
	}
	if read < 14 {
		t.Errorf("found %d conditions in the topic, not at least 14", read)
	}
}

// examples are the shell lines that the help of a command or topic shows, by
// its path.
func examples(t *testing.T) map[string]string {
	out := map[string]string{}
	for _, c := range everyCommand(t) {
		switch {
		case c.Example != "":
			out[c.CommandPath()] = c.Example
		case c.IsAdditionalHelpTopicCommand():
			// The last paragraph of a topic.
			text := c.Long[strings.LastIndex(c.Long, "\n\n")+2:]
			if !strings.HasPrefix(text, "  writ ") {
				t.Errorf("topic %s does not end with an example", c.Name())
			}
			out["topic "+c.Name()] = text
		case c.Runnable() && !c.HasSubCommands():
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
	return out
}

// shell runs a script with writ in its path, ends all that it started, and
// returns what it printed and its exit code.
func shell(t *testing.T, binDir, dir string, env []string, script string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-e", "-u", "-c", script)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + binDir + ":" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + os.TempDir()}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// devEnv starts a throw-away authority for the test.
func devEnv(t *testing.T, binDir string) []string {
	t.Helper()
	out, err := exec.Command(filepath.Join(binDir, "writ"), "dev", "--detach", "--tpm", "--for", "3m", "--output", "json").Output()
	if err != nil {
		t.Fatalf("writ dev: %v", err)
	}
	var r devReady
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if stopped, err := stopDev(ctx, r.Dir); err != nil || !stopped {
			t.Errorf("writ dev did not stop: %v", err)
		}
		if _, err := os.Stat(r.Dir); err == nil {
			t.Errorf("writ dev left %s behind", r.Dir)
		}
	})
	return []string{
		"WRIT_ADDR=" + r.Addr, "WRIT_CA_FINGERPRINT=" + r.CAFingerprint, "WRIT_TOKEN_FILE=" + r.TokenFile,
		"WRIT_TPM=" + r.TPM, "WRIT_TPM_DIR=" + r.TPMDir,
	}
}

// TestExamplesWork runs every example of every help text as it stands, but for
// those that TestClusterExamples runs.
func TestExamplesWork(t *testing.T) {
	binDir := bin(t)
	env := devEnv(t, binDir)
	for name, example := range examples(t) {
		if slices.Contains(clusterExamples, name) {
			continue
		}
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			dir := t.TempDir()
			setup := "writ mint --audience corp --subject s --owner o --purpose p > t 2>/dev/null; : > writ.toml\n"
			// What an example leaves running is ended by its own means.
			teardown := "\nif test -n \"${WRIT_DEV_DIR-}\" && test -d \"$WRIT_DEV_DIR\"; then writ dev --stop; fi\n"
			if out, code := shell(t, binDir, dir, env, setup+example+teardown); code != 0 {
				t.Errorf("exit code %d\n%s\n%s", code, example, out)
			}
		})
	}
}

var (
	tourBlock  = regexp.MustCompile("(?s)## The tour\n\n```\n(.*?)```")
	tourExpect = regexp.MustCompile(`# (\d)(?: ([a-z_]+))?`)
)

// TestTour runs the tour of the README, line by line, as it is printed there.
func TestTour(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	m := tourBlock.FindSubmatch(readme)
	if m == nil {
		t.Fatal("the README has no tour")
	}
	tour := strings.ReplaceAll(string(m[1]), "\\\n", " ")
	var script strings.Builder
	expected := 0
	for _, line := range strings.Split(strings.TrimSpace(tour), "\n") {
		if strings.HasPrefix(line, "make build") {
			continue // this test is the binary
		}
		expect := tourExpect.FindStringSubmatch(line)
		if expect == nil {
			fmt.Fprintf(&script, "%s\n", line)
			continue
		}
		expected++
		command := line[:strings.Index(line, "# ")]
		fmt.Fprintf(&script, "code=0; %s > out || code=$?; cat out\n", strings.TrimSpace(command))
		fmt.Fprintf(&script, "test $code = %s || { echo 'exit code' $code: %s; exit 1; }\n", expect[1], shellQuote(line))
		if expect[2] != "" {
			fmt.Fprintf(&script, "grep -q %s out || { echo no %s: %s; exit 1; }\n", expect[2], expect[2], shellQuote(line))
		}
	}
	if expected < 4 {
		t.Fatalf("the tour expects %d outcomes, not at least 4", expected)
	}
	binDir := bin(t)
	// Whatever happens, the authority goes.
	out, code := shell(t, binDir, t.TempDir(), nil, "trap 'test -z \"${WRIT_DEV_DIR-}\" || test ! -d \"$WRIT_DEV_DIR\" || writ dev --stop' EXIT\n"+script.String())
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for _, want := range []string{"action_denied", "revoked", "allow", "ok: "} {
		if !strings.Contains(out, want) {
			t.Errorf("the tour printed no %q:\n%s", want, out)
		}
	}
}
