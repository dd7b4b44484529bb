package raftstoretest

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Disk makes the disk of one node misbehave: give it to raftstore.Config.Faults.
// The zero value leaves the disk alone. Safe for concurrent use.
type Disk struct {
	mu     sync.Mutex
	mode   string
	slow   time.Duration
	change chan struct{} // closed when the mode changes; nil until somebody waits
	hits   int
}

// Slow delays every durable write.
func (d *Disk) Slow(by time.Duration) { d.set("slow", by) }

// Hang holds every durable write up until Heal, like a disk that no longer
// answers.
func (d *Disk) Hang() { d.set("hang", 0) }

// Fail lets every durable write happen and then reports an I/O error, like an
// fsync that fails: whether it is on the disk, nobody knows. It ends a node.
func (d *Disk) Fail() { d.set("fail", 0) }

// Full refuses every durable write for want of space.
func (d *Disk) Full() { d.set("full", 0) }

// Heal leaves the disk alone again, and lets go of what hangs.
func (d *Disk) Heal() { d.set("", 0) }

// Set does what a line of text says: slow 50ms, hang, fail, full or heal. For
// test builds of a whole process, which get their faults from outside.
func (d *Disk) Set(line string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "slow":
		by, err := time.ParseDuration(rest)
		if err != nil {
			return fmt.Errorf("raftstoretest: %q: %w", line, err)
		}
		d.Slow(by)
	case "hang":
		d.Hang()
	case "fail":
		d.Fail()
	case "full":
		d.Full()
	case "heal":
		d.Heal()
	default:
		return fmt.Errorf("raftstoretest: no disk fault %q", line)
	}
	return nil
}

// Hits is how many writes met a fault so far.
func (d *Disk) Hits() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hits
}

func (d *Disk) set(mode string, slow time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mode, d.slow = mode, slow
	if d.change != nil {
		close(d.change)
		d.change = nil
	}
}

// Write implements raftstore.Faults.
func (d *Disk) Write(write func() error) error {
	for counted := false; ; counted = true {
		d.mu.Lock()
		mode, slow := d.mode, d.slow
		if d.change == nil {
			d.change = make(chan struct{})
		}
		change := d.change
		if mode != "" && !counted {
			d.hits++
		}
		d.mu.Unlock()
		switch mode {
		case "slow":
			time.Sleep(slow)
		case "hang":
			<-change
			continue
		case "fail":
			if err := write(); err != nil {
				return err
			}
			return fmt.Errorf("fsync: %w", syscall.EIO)
		case "full":
			return fmt.Errorf("write: %w", syscall.ENOSPC)
		}
		return write()
	}
}
