package layout

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// minSnippets is how many Go snippets the pages have at least: a test that
// found none would pass for nothing.
const minSnippets = 2

var fenced = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")

// snippets returns the Go snippets of a page.
func snippets(page string) []string {
	var out []string
	for _, m := range fenced.FindAllStringSubmatch(page, -1) {
		out = append(out, m[1])
	}
	return out
}

// TestSnippetsCompile builds every Go snippet of the pages as a service of
// someone else would: in a module of its own, with the replace that the README
// shows.
func TestSnippetsCompile(t *testing.T) {
	base, dir := root(t), t.TempDir()
	pages, err := filepath.Glob(filepath.Join(base, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	docs, err := filepath.Glob(filepath.Join(base, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, page := range append(pages, docs...) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, code := range snippets(string(b)) {
			n++
			if !strings.HasPrefix(code, "package ") {
				t.Errorf("%s: snippet %d has no package clause: it cannot be pasted", filepath.Base(page), n)
				continue
			}
			if strings.HasPrefix(code, "package main\n") && !strings.Contains(code, "func main()") {
				code += "\nfunc main() {}\n"
			}
			sub := filepath.Join(dir, fmt.Sprintf("%s%d", strings.ToLower(strings.TrimSuffix(filepath.Base(page), ".md")), n))
			write(t, filepath.Join(sub, "snippet.go"), code)
		}
	}
	if n < minSnippets {
		t.Fatalf("found %d snippets, not at least %d", n, minSnippets)
	}

	mod, err := os.ReadFile(filepath.Join(base, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	own := strings.Replace(string(mod), "module "+module, "module example.com/service", 1)
	own += fmt.Sprintf("\nrequire %s v0.0.0\n\nreplace %s => %s\n", module, module, base)
	write(t, filepath.Join(dir, "go.mod"), own)
	sum, err := os.ReadFile(filepath.Join(base, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "go.sum"), string(sum))

	cmd := exec.Command("go", "vet", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the pages' snippets do not compile: %v\n%s", err, out)
	}
}

func TestSnippetsFound(t *testing.T) {
	page := "text\n```go\npackage a\n```\n```\nsh\n```\n```go\npackage b\n\nvar x int\n```\n"
	if got := snippets(page); len(got) != 2 || got[0] != "package a\n" || got[1] != "package b\n\nvar x int\n" {
		t.Errorf("got %q", got)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
