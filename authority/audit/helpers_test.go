package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const testOrigin = "writ/audit/test/1"

func testSigner(t testing.TB, origin string) *Signer {
	t.Helper()
	s, err := NewSigner(origin, slices.Repeat([]byte{7}, SeedSize))
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func openLog(t testing.TB, dir string, options ...Option) *Log {
	t.Helper()
	l, err := Open(dir, testOrigin, options...)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func record(n int) []byte { return fmt.Appendf(nil, `{"n":%d,"what":"issue"}`, n) }

// fill appends batches of 1, 2, 3, 1, 2, 3… records at Raft indexes 10, 20, 30… until the log has the size.
func fill(t testing.TB, l *Log, size int) {
	t.Helper()
	index := l.LastIndex()
	for n := int(l.Size()); n < size; {
		index += 10
		batch := [][]byte{}
		for range min(1+int(index/10-1)%3, size-n) {
			batch = append(batch, record(n))
			n++
		}
		must(t, l.Append(index, batch...))
	}
}

// files reads every file of a directory.
func files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		all[e.Name()] = b
	}
	return all
}

// lay writes files into a directory that then holds nothing else.
func lay(t testing.TB, dir string, all map[string][]byte) {
	t.Helper()
	must(t, os.RemoveAll(dir))
	must(t, os.MkdirAll(dir, 0o700))
	for name, b := range all {
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
}

func writeFile(dir, name string, b []byte) error {
	return os.WriteFile(filepath.Join(dir, name), b, 0o600)
}
