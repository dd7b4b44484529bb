package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

// journal knows what was written to Raft's logs and not synced yet. It is told by
// package os and syscall, as they are in the campaign's own binary; in any other
// nothing is known, and no power fails in a write.
type journal struct {
	told bool

	mu    sync.Mutex
	names map[int]string        // of open files, by descriptor; guarded by mu
	files map[string][]unsynced // by path; guarded by mu
	armed map[string]*trap      // by path; guarded by mu
}

// unsynced is a write that a power failure may undo.
type unsynced struct {
	at     int64
	before []byte
}

// trap springs when a file is about to be synced.
type trap struct {
	after  int // so many syncs
	spring func()
}

var disks = &journal{names: make(map[int]string), files: make(map[string][]unsynced), armed: make(map[string]*trap)}

// toldToDisks are the changes to the standard library, for a file beside it that has
// disks be told.
var toldToDisks = []change{
	{"os/file.go", "func (f *File) WriteAt(b []byte, off int64) (n int, err error) {\n",
		"var ChaosWrite func(f *File, at int64, n int)\n\nfunc (f *File) WriteAt(b []byte, off int64) (n int, err error) {\n\tif ChaosWrite != nil { ChaosWrite(f, off, len(b)) }\n"},
	{"syscall/zsyscall_linux_" + runtime.GOARCH + ".go", "func Fdatasync(fd int) (err error) {\n", `var ChaosSync func(fd int, sync func() error) error

func Fdatasync(fd int) error {
	if ChaosSync == nil { return chaosFdatasync(fd) }
	return ChaosSync(fd, func() error { return chaosFdatasync(fd) })
}

func chaosFdatasync(fd int) (err error) {
`},
}

const told = `package chaos

import (
	"os"
	"syscall"
)

func init() {
	os.ChaosWrite, syscall.ChaosSync, disks.told = disks.Write, disks.Sync, true
	// One that goes astray collects no garbage: it is ended before it takes the
	// machine's memory.
	const data, most = 2, 8 << 30 // RLIMIT_DATA, bytes: twice what the longest runs take
	if err := syscall.Setrlimit(data, &syscall.Rlimit{Cur: most, Max: most}); err != nil {
		panic(err)
	}
}
`

// Write notes what a write is about to replace.
func (j *journal) Write(f *os.File, at int64, n int) {
	name := f.Name()
	if filepath.Base(name) != "raft.db" {
		return
	}
	before := make([]byte, n)
	_, _ = f.ReadAt(before, at) // what is past the end is zero
	j.mu.Lock()
	defer j.mu.Unlock()
	j.names[int(f.Fd())] = name
	j.files[name] = append(j.files[name], unsynced{at, before})
}

// Sync syncs, unless the power fails first.
func (j *journal) Sync(fd int, sync func() error) error {
	j.mu.Lock()
	name := j.names[fd]
	t := j.armed[name]
	if t != nil {
		if t.after--; t.after >= 0 {
			t = nil
		} else {
			delete(j.armed, name)
		}
	}
	j.mu.Unlock()
	if t != nil {
		t.spring()
	}
	if err := sync(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.files, name)
	return nil
}

// of is what a power failure now may undo of a file.
func (j *journal) of(path string) []unsynced {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.files[path]
}

// arm sets a trap, or takes it away.
func (j *journal) arm(path string, t *trap) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.armed, path)
	if t != nil {
		j.armed[path] = t
	}
}

func (n *node) raftLog() string { return filepath.Join(n.dir, "data", "raft", "raft.db") }

// sector is what a disk writes all of or nothing.
const sector = 512

// failInWrite has the power fail while a node appends to its log, or to its meta page
// after that: of what it wrote since it last synced, any sectors may be there.
func failInWrite(s *sim, _ context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
	if !disks.told {
		return nothing, nil, errNotMade
	}
	n.mu.Lock()
	host := n.host
	n.mu.Unlock()
	path, failed := n.raftLog(), make(chan error, 1)
	var lost []unsynced
	disks.arm(path, &trap{after: r.IntN(2), spring: func() {
		host.Kill()
		lost = disks.of(path)
		failed <- n.leave()
	}})
	timeout := time.NewTimer(5 * time.Second)
	defer timeout.Stop()
	select {
	case err := <-failed:
		if err != nil {
			return nil, nil, err
		}
	case <-timeout.C:
		disks.arm(path, nil)
		return nil, nil, fmt.Errorf("vacuous: %s wrote nothing", n.name)
	}
	n.bury()
	undone, all, err := undo(n.raftLog(), lost, r)
	if err == nil {
		err = n.losePower(r)
	}
	s.event("the power of %s fails in a write: %d of %d sectors are lost", n.name, undone, all)
	if all == 0 {
		err = errors.Join(err, errors.New("vacuous: nothing was unsynced"))
	}
	return func() error { return s.restart(n) }, nil, err
}

// undo takes back any sectors of what was not synced, or all of them.
func undo(path string, lost []unsynced, r *rand.Rand) (undone, all int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	everything := r.IntN(3) == 0
	for i := len(lost) - 1; i >= 0; i-- {
		for from := 0; from < len(lost[i].before); from += sector {
			all++
			if everything || r.IntN(2) == 0 {
				undone++
				part := lost[i].before[from:min(from+sector, len(lost[i].before))]
				if _, err := f.WriteAt(part, lost[i].at+int64(from)); err != nil {
					return 0, 0, err
				}
			}
		}
	}
	return undone, all, nil
}
