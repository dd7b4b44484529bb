package authoritytest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/raftstore"
)

// farConn is a connection whose other end is far away: what is written arrives
// later, in order, and so does what comes back.
type farConn struct {
	net.Conn
	delay  time.Duration
	out    chan parcel
	in     *io.PipeReader
	closed chan struct{}
	once   sync.Once
}

type parcel struct {
	due  time.Time
	data []byte
}

// carry delivers parcels when they are due, until the connection is closed.
func (f *farConn) carry(parcels <-chan parcel, deliver func([]byte) (int, error)) {
	for {
		select {
		case p := <-parcels:
			<-time.After(time.Until(p.due))
			if _, err := deliver(p.data); err != nil {
				return
			}
		case <-f.closed:
			return
		}
	}
}

func (f *farConn) send(parcels chan<- parcel, b []byte) error {
	select {
	case parcels <- parcel{time.Now().Add(f.delay), b}:
		return nil
	case <-f.closed:
		return net.ErrClosed
	}
}

func far(conn net.Conn, delay time.Duration) *farConn {
	r, w := io.Pipe()
	f := &farConn{Conn: conn, delay: delay, out: make(chan parcel, 4096), in: r, closed: make(chan struct{})}
	back := make(chan parcel, 4096)
	go f.carry(f.out, conn.Write)
	go f.carry(back, w.Write)
	go func() {
		for {
			b := make([]byte, 64<<10)
			n, err := conn.Read(b)
			if err == nil {
				err = f.send(back, b[:n])
			}
			if err != nil {
				w.CloseWithError(err)
				return
			}
		}
	}()
	return f
}

// Read implements net.Conn.
func (f *farConn) Read(b []byte) (int, error) { return f.in.Read(b) }

// Write implements net.Conn.
func (f *farConn) Write(b []byte) (n int, err error) {
	if err := f.send(f.out, append([]byte(nil), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close implements net.Conn.
func (f *farConn) Close() error {
	f.once.Do(func() { close(f.closed); f.in.Close() })
	return f.Conn.Close()
}

// SetReadDeadline implements net.Conn. What comes back ends with the connection.
func (f *farConn) SetReadDeadline(time.Time) error { return nil }

// SetDeadline implements net.Conn.
func (f *farConn) SetDeadline(time.Time) error { return nil }

// farAway is a round trip as long as the profile for a wide area is for. It is longer
// than a leader of a local network leads without hearing from anybody.
const farAway = 150 * time.Millisecond

// TestFarApart runs a cluster whose nodes are far from each other, which the
// timeouts for one local network cannot: with those for a wide area nobody calls an
// election while all is well, and a lost leader is replaced.
func TestFarApart(t *testing.T) {
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: 10 * time.Second, Authority: func(cfg *authority.Config) {
		cfg.Peers.Profile = raftstore.ProfileWAN
		near := cfg.Peers.Dial
		cfg.Peers.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := near(ctx, address)
			if err != nil {
				return nil, err
			}
			return far(conn, farAway/2), nil
		}
	}})
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	term := leader.Authority.ClusterStatus(t.Context()).Term
	begun := time.Now()
	const calls = 10
	for range calls {
		c.Mint(t, "corp", "agent")
	}
	each := time.Since(begun) / calls
	if each < farAway {
		t.Errorf("a change took %v: the nodes are not far apart", each)
	}
	if now := leader.Authority.ClusterStatus(t.Context()); now.Term != term || now.Leader != leader.Name {
		t.Errorf("an election while all was well: term %d is now %d", term, now.Term)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	c.Mint(t, "corp", "agent")
	t.Logf("each change %v; the next after the leader was lost %v", each, time.Since(lost))
}

// TestLeaseIsAtMostHalfTheHeartbeat: a longer one is refused, since reads could
// be stale.
func TestLeaseIsAtMostHalfTheHeartbeat(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, stop, err := authoritytest.RunCluster(ctx, t.TempDir(), 1, authoritytest.Options{Authority: func(cfg *authority.Config) {
		cfg.Peers.Heartbeat, cfg.Peers.Lease = time.Second, 501*time.Millisecond
	}})
	if !errors.Is(err, raftstore.ErrConfig) {
		t.Errorf("with a lease of more than half the heartbeat: %v", err)
	}
	if stop != nil {
		_ = stop()
	}
}
