package raftstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
)

func TestCompress(t *testing.T) {
	for name, plain := range map[string][]byte{
		"nothing": {},
		"a byte":  {7},
		"zeros":   make([]byte, 10*stateWindow),
		"records": bytes.Join(newRegistry(20_000).records, nil),
	} {
		var file bytes.Buffer
		if err := compress(&file, func(w io.Writer) error { _, err := w.Write(plain); return err }); err != nil {
			t.Fatal(name, err)
		}
		if len(plain) > 100 && file.Len() > len(plain)*3/5 {
			t.Errorf("%s: %d bytes became %d", name, len(plain), file.Len())
		}
		var got []byte
		if err := decompress(bytes.NewReader(file.Bytes()), func(r io.Reader) (err error) {
			got, err = io.ReadAll(r)
			return err
		}); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes came back, of %d, %v", name, len(got), len(plain), err)
		}
		cut := file.Bytes()[:max(file.Len()-5, 0)]
		if err := decompress(bytes.NewReader(cut), func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		}); err == nil && len(plain) > 0 {
			t.Errorf("%s: one that was cut is read to its end", name)
		}
	}
	failed := errors.New("failed")
	if err := compress(io.Discard, func(io.Writer) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a state that cannot be written: %v", err)
	}
	if err := compress(failingWriter{}, func(w io.Writer) error {
		_, _ = w.Write(make([]byte, 10)) // too little to go further at once
		return nil
	}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a file that cannot be written: %v", err)
	}
	if err := decompress(errReader{failed}, func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}); !errors.Is(err, failed) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

// TestDecompressTakesLittleMemory, whatever the file asks for.
func TestDecompressTakesLittleMemory(t *testing.T) {
	var file bytes.Buffer
	z, err := zstd.NewWriter(&file, zstd.WithWindowSize(stateWindow*2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(make([]byte, 3*stateWindow)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := decompress(&file, func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}); !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("a window that is too large: %v", err)
	}
}

// TestSnapshotIsCompressed in the file, on its way to a follower and in an
// export.
func TestSnapshotIsCompressed(t *testing.T) {
	const needle = "a command that anybody would find in the log"
	c, connect := newCluster(t, func(cfg *Config) { cfg.TrailingLogs = 2 })
	n1, n3 := c.nodes["n1"], c.nodes["n3"]
	c.caughtUp(n1, "n2", "n3")
	connect("n3", true)
	for range 200 {
		propose(t, n1.store, needle)
	}
	var out bytes.Buffer
	meta, err := n1.store.Export(testContext(t), &out)
	if err != nil {
		t.Fatal(err)
	}
	connect("n3", false)
	c.caughtUp(n1, "n3")
	if !reflect.DeepEqual(n3.sm.commands(), n1.sm.commands()) {
		t.Error("the follower has other commands")
	}
	whole := int64(200 * len(needle))
	if meta.Size > whole/10 || int64(out.Len()) > whole/5 {
		t.Errorf("an export of %d bytes, %d of them state", out.Len(), meta.Size)
	}
	_, r, err := n3.store.snaps.Open(latest(t, n3.store).ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	received, err := io.ReadAll(r)
	if err != nil || int64(len(received)) != meta.Size || !bytes.Contains(out.Bytes(), received) {
		t.Errorf("the follower was sent %d bytes, and not the %d of the file, %v", len(received), meta.Size, err)
	}
}

// latest is the newest of a node's snapshots.
func latest(t *testing.T, s *Store) *raft.SnapshotMeta {
	t.Helper()
	list, err := s.snaps.List()
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return list[0]
}

// TestOlderSnapshotFormatIsRefused clearly, in a node's directory and as an
// export.
func TestOlderSnapshotFormatIsRefused(t *testing.T) {
	cfg := closedNode(t)
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	file, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	file = file[:len(file)-sha256.Size]
	file[11] = 1
	sum := sha256.Sum256(file)
	file = append(file, sum[:]...)
	if err := os.WriteFile(files[0], file, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"open":    func() error { _, err := Open(cfg, &ledger{}); return err }(),
		"inspect": func() error { _, err := InspectSnapshot(bytes.NewReader(file)); return err }(),
	} {
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "unknown snapshot version 1") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestNewerSnapshotStays where an older one is complete after it, and one of the
// same index, written beside it, is as good.
func TestNewerSnapshotStays(t *testing.T) {
	dir := t.TempDir()
	snaps, err := openSnapshots(dir, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	begin := func(index uint64) raft.SnapshotSink {
		t.Helper()
		sink, err := snaps.Create(1, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(sink, "state at %d", index); err != nil {
			t.Fatal(err)
		}
		return sink
	}
	kept := func(want uint64) {
		t.Helper()
		again, err := openSnapshots(dir, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*snapshots{snaps, again} {
			if len(s.metas) != 1 || s.metas[0].Index != want {
				t.Fatalf("kept %v, want %d", s.metas, want)
			}
			_, r, err := s.Open(s.metas[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil || string(b) != fmt.Sprintf("state at %d", want) {
				t.Errorf("%q, %v", b, err)
			}
		}
	}
	complete := func(sink raft.SnapshotSink) {
		t.Helper()
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
	}
	complete(begin(5))
	late, one, other := begin(7), begin(10), begin(10)
	complete(one)
	complete(other)
	if err := late.Close(); !errors.Is(err, ErrNothingNew) {
		t.Errorf("older: %v", err)
	}
	kept(10)
	complete(begin(12))
	kept(12)
}
