package replica

import (
	"sync"
	"sync/atomic"
	"time"
)

// bootClock reads CLOCK_BOOTTIME, which goes on in suspend as the monotonic
// clock does not. A system call for every verification would cost more than
// the verification (1.4 µs on a virtual machine), so the clock is read through
// the vDSO instead: wall and monotonic time together. A suspend moves the wall
// clock and CLOCK_BOOTTIME by the same amount against the monotonic one, in one
// step of the kernel's, so that while wall and monotonic clock agree as they did
// when boot time was last read, the distance of boot time to the monotonic
// clock is what it was. When they do not agree, for whatever reason, boot time
// is read again. Only who sets the wall clock back by exactly the length of a
// suspend hides it, and who may set a host's clock owns the host.
type bootClock struct {
	base time.Time
	read func() (int64, bool) // boot time, ns; false where there is none
	cal  atomic.Pointer[calibration]
	mu   sync.Mutex // held while calibrating
}

// calibration is a moment on three clocks, in nanoseconds.
type calibration struct{ boot, mono, wall int64 }

// clockTolerance is how far wall and monotonic clock may drift apart between
// calibrations: far below any bound, far above what slewing does in a second.
const clockTolerance = int64(10 * time.Millisecond)

func newBootClock(read func() (int64, bool)) *bootClock {
	c := &bootClock{base: time.Now(), read: read}
	c.calibrate()
	return c
}

// now is the boot time in nanoseconds.
func (c *bootClock) now() int64 {
	t := time.Now()
	mono, wall := int64(t.Sub(c.base)), t.UnixNano()
	cal := c.cal.Load()
	if d := (wall - cal.wall) - (mono - cal.mono); d > clockTolerance || d < -clockTolerance {
		cal = c.calibrate()
		mono = int64(time.Since(c.base))
	}
	return cal.boot + (mono - cal.mono)
}

// calibrate reads all clocks. The distance from the monotonic clock to boot
// time never shrinks: were it measured too long once, by a thread that was
// stopped between the readings, marks would look older and never younger.
func (c *bootClock) calibrate() *calibration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best calibration
	spread := int64(-1)
	for range 8 {
		t := time.Now()
		mono := int64(t.Sub(c.base))
		boot, ok := c.read()
		if !ok {
			boot = mono
		}
		took := int64(time.Since(c.base)) - mono
		if spread < 0 || took < spread {
			best, spread = calibration{boot: boot, mono: mono, wall: t.UnixNano()}, took
		}
		if took < int64(50*time.Microsecond) {
			break
		}
	}
	if old := c.cal.Load(); old != nil && old.boot-old.mono > best.boot-best.mono {
		best.boot = best.mono + (old.boot - old.mono)
	}
	c.cal.Store(&best)
	return &best
}
