package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/writ-dev/writ"

// layers lists each package tree and the trees of this module that it may
// import. The longest prefix counts.
var layers = map[string][]string{
	"capability":              {"capability"},
	"capability/guard":        {"capability", "caveats", "capability/guard"},
	"caveats":                 {"capability", "caveats"},
	"raftstore":               {"raftstore"},
	"authority":               {"capability", "caveats", "authority", "raftstore"},
	"authority/api":           {"capability", "authority/api"},
	"authority/audit":         {"authority/audit"},
	"authority/seal":          {"authority/seal"},
	"authority/client":        {"capability", "caveats", "authority/api", "authority/client"},
	"authority/replica":       {"capability", "caveats", "authority/api", "authority/client", "authority/replica", "authority/audit"},
	"authority/authoritytest": {"capability", "caveats", "authority", "raftstore"},
	"cmd":                     {"capability", "caveats", "authority", "raftstore", "capability/guard", "cmd"},
	"testdata":                {"capability", "caveats", "testdata"},
}

// serviceImports are what a service imports; heavy is what must not come with it.
var (
	serviceImports = []string{"capability", "capability/guard", "caveats", "caveats/attest", "caveats/pop", "authority/client", "authority/replica"}
	heavy          = []string{
		"github.com/hashicorp/raft", "go.etcd.io/bbolt", "github.com/spf13/cobra", "github.com/google/go-tpm",
		"google.golang.org/grpc", "github.com/modelcontextprotocol/go-sdk", "github.com/prometheus/client_golang",
		"go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/exporters", "go.opentelemetry.io/proto",
	}
)

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, patterns...)...)
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// layerOf is the longest key of layers that path is in.
func layerOf(path string) string {
	best := ""
	for l := range layers {
		if (path == l || strings.HasPrefix(path, l+"/")) && len(l) > len(best) {
			best = l
		}
	}
	return best
}

// allowed says whether a package in layer from may import path. A layer that is
// named allows the layers beneath it too, unless they are in the table
// themselves and not named.
func allowed(from, path string) bool {
	to := layerOf(path)
	for _, ok := range layers[from] {
		if to == ok || from != "capability" && from != "caveats" && strings.HasPrefix(to, ok+"/") && to != "capability/guard" {
			return true
		}
	}
	return false
}

func TestImportDirection(t *testing.T) {
	packages := list(t, "./...")
	if len(packages) < 10 {
		t.Fatalf("found %d packages: the pattern is wrong", len(packages))
	}
	for _, p := range packages {
		path, ok := strings.CutPrefix(p.ImportPath, module+"/")
		from := layerOf(path)
		if !ok || from == "" {
			t.Errorf("%s is in no layer: add it to the table, and to ARCHITECTURE.md", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if to, ok := strings.CutPrefix(i, module+"/"); ok && !allowed(from, to) {
				t.Errorf("%s imports %s: against the direction capability, caveats, authority, cmd", path, to)
			}
		}
	}
}

// The rules themselves refuse what they are there to refuse.
func TestImportRules(t *testing.T) {
	for _, bad := range [][2]string{
		{"capability", "caveats"}, {"capability", "capability/guard"}, {"capability/revocation", "authority/api"},
		{"caveats", "authority/api"}, {"caveats", "capability/guard"}, {"raftstore", "capability"}, {"raftstore", "authority/state"},
		{"authority/client", "authority/state"}, {"authority/replica", "raftstore"}, {"authority/api", "caveats"},
		{"authority", "cmd/writ"}, {"authority/server", "capability/guard"}, {"capability/guard/grpcguard", "authority/client"},
	} {
		if allowed(layerOf(bad[0]), bad[1]) {
			t.Errorf("%s may import %s", bad[0], bad[1])
		}
	}
	for _, good := range [][2]string{
		{"caveats", "capability"}, {"capability/guard", "caveats"}, {"capability/guard/mcpguard", "capability/guard"},
		{"authority", "authority/state"}, {"authority/state", "capability/revocation"}, {"authority/replica", "capability/revocation"},
		{"authority", "raftstore"}, {"cmd/writ", "capability/guard"}, {"cmd/writ", "authority/server"},
	} {
		if !allowed(layerOf(good[0]), good[1]) {
			t.Errorf("%s may not import %s", good[0], good[1])
		}
	}
}

func TestServicesStayLight(t *testing.T) {
	var patterns []string
	for _, s := range serviceImports {
		patterns = append(patterns, "./"+s)
	}
	packages := list(t, patterns...)
	if len(packages) != len(serviceImports) {
		t.Fatalf("found %d of %d packages", len(packages), len(serviceImports))
	}
	for _, p := range packages {
		if len(p.Deps) == 0 {
			t.Errorf("%s has no dependencies: go list said nothing", p.ImportPath)
		}
		for _, d := range p.Deps {
			for _, h := range heavy {
				if d == h || strings.HasPrefix(d, h+"/") {
					t.Errorf("%s pulls in %s", p.ImportPath, d)
				}
			}
		}
	}
}

// maxLines is where a file wants to be two.
const maxLines = 800

// sleeps is allowed in the bubbles of testing/synctest, where it takes no time.
var sleeps = regexp.MustCompile(`\btime\.Sl` + `eep\(`)

// forbidden is what no Go file holds; each with the reason.
var forbidden = []struct {
	pattern  *regexp.Regexp
	testOnly bool
	why      string
}{
	{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`), false, "file an issue instead"},
	{regexp.MustCompile(`panic\("st` + `ub"\)`), false, "unfinished"},
	{regexp.MustCompile(`\b[tb]\.Skip(f|Now)?\(`), true, "a test that does not run passes for nothing"},
	{sleeps, true, "wait for the event, or use testing/synctest"},
}

func TestHouseRules(t *testing.T) {
	base := root(t)
	files := 0
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != base || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(base, path)
		if n := bytes.Count(b, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d", name, n, maxLines)
		}
		for i, line := range strings.Split(string(b), "\n") {
			for _, f := range forbidden {
				if f.pattern == sleeps && bytes.Contains(b, []byte("\"testing/synctest\"")) {
					continue
				}
				if f.pattern.MatchString(line) && (!f.testOnly || strings.HasSuffix(name, "_test.go")) {
					t.Errorf("%s:%d: %q: %s", name, i+1, f.pattern.FindString(line), f.why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 30 {
		t.Fatalf("looked at %d files: the walk is wrong", files)
	}
}

// maxSize is the most that a file of the repository has, in bytes, but for those
// of large.
const maxSize = 1 << 20

var large = map[string]bool{}

// magics begin what a compiler or a linker makes: ELF, Mach-O in its spellings, PE
// and WebAssembly.
var magics = []string{
	"\x7fELF", "\xfe\xed\xfa\xce", "\xfe\xed\xfa\xcf", "\xce\xfa\xed\xfe", "\xcf\xfa\xed\xfe", "\xca\xfe\xba\xbe", "MZ", "\x00asm",
}

// built reports whether a file is no source but what was made of it.
func built(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, 4)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return false, err
	}
	return slices.ContainsFunc(magics, func(m string) bool { return strings.HasPrefix(string(head[:n]), m) }), nil
}

// What is in the repository is source: no binary, and nothing that makes every
// clone of it larger for good.
func TestRepositoryHoldsSource(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if yes, err := built(self); !yes || err != nil {
		t.Errorf("this test's own binary is taken for source: %v", err)
	}
	base := root(t)
	out, err := exec.Command("git", "-C", base, "ls-files", "-z").Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if len(names) < 300 {
		t.Fatalf("git knows of %d files", len(names))
	}
	for _, name := range names {
		path := filepath.Join(base, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // about to go
		}
		if err != nil {
			t.Fatal(err)
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if info.Size() > maxSize && !large[name] {
			t.Errorf("%s has %d bytes, more than %d", name, info.Size(), maxSize)
		}
		yes, err := built(path)
		if err != nil {
			t.Fatal(err)
		}
		if yes {
			t.Errorf("%s is a built binary", name)
		}
	}
}

// The binary has no gRPC in it: only a service that serves gRPC links it.
func TestBinaryHasNoGRPC(t *testing.T) {
	for _, p := range list(t, "./cmd/writ") {
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "google.golang.org/grpc") {
				t.Errorf("%s comes with %s", p.ImportPath, dep)
			}
		}
	}
}
