package state

import (
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mapRanges are the functions that may walk a map, since they sort what they
// have found before anything comes of it, or only count or delete.
var mapRanges = map[string]bool{"sortedKeys": true, "withChildren": true, "expireRevocations": true, "SealedKeys": true, "due": true}

// TestNothingButTheCommandDecides holds the package to its rule: no clock, no
// randomness, no goroutine, and no map walked where its order could show.
func TestNothingButTheCommandDecides(t *testing.T) {
	fset := token.NewFileSet()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		// Of files that stand for each other under build tags, the one of a plain build.
		if in, err := build.Default.MatchFile(".", p); err != nil {
			t.Fatal(err)
		} else if !in {
			continue
		}
		f, err := parser.ParseFile(fset, p, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		for _, imp := range f.Imports {
			switch path := strings.Trim(imp.Path.Value, `"`); path {
			case "math/rand", "math/rand/v2", "crypto/rand", "os/exec", "net", "net/http":
				t.Errorf("%s imports %s", p, path)
			}
		}
	}
	if len(files) < 10 {
		t.Fatalf("only %d files were looked at", len(files))
	}
	info := &types.Info{Types: make(map[ast.Expr]types.TypeAndValue), Uses: make(map[*ast.Ident]types.Object)}
	conf := types.Config{Importer: exportImporter(t, fset)}
	if _, err := conf.Check("state", fset, files, info); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, f := range files {
		for _, decl := range f.Decls {
			name := ""
			if fn, ok := decl.(*ast.FuncDecl); ok {
				name = fn.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%v: a goroutine", fset.Position(n.Pos()))
				case *ast.SelectStmt:
					t.Errorf("%v: a select", fset.Position(n.Pos()))
				case *ast.RangeStmt:
					if _, ok := info.TypeOf(n.X).Underlying().(*types.Map); ok {
						if seen[name] = true; !mapRanges[name] {
							t.Errorf("%v: %s walks a map", fset.Position(n.Pos()), name)
						}
					}
				case *ast.SelectorExpr:
					if obj := info.Uses[n.Sel]; obj != nil && obj.Pkg() != nil && obj.Pkg().Path() == "time" {
						switch obj.Name() {
						case "Now", "Since", "Until", "After", "Sleep", "Tick", "NewTimer", "NewTicker", "AfterFunc":
							t.Errorf("%v: time.%s", fset.Position(n.Pos()), obj.Name())
						}
					}
				}
				return true
			})
		}
	}
	for name := range mapRanges {
		if !seen[name] {
			t.Errorf("%s no longer walks a map: strike it from the list", name)
		}
	}
}

// exportImporter reads the export data that the build has cached.
func exportImporter(t *testing.T, fset *token.FileSet) types.Importer {
	t.Helper()
	out, err := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	exports := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[path] = file
	}
	return importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
}
