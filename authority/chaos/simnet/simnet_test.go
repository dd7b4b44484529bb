package simnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pair connects two hosts, a to b.
func pair(t *testing.T, n *Network) (a, b *Host, from, to net.Conn) {
	t.Helper()
	a, b = n.Host("a"), n.Host("b")
	ln, err := b.Listen("b:1")
	if err != nil {
		t.Fatal(err)
	}
	if from, err = a.Dial(t.Context(), "b:1"); err != nil {
		t.Fatal(err)
	}
	if to, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b, from, to
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// receive reads, and returns when that was.
func receive(t *testing.T, c net.Conn, text string) time.Time {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("got %q, %v", b, err)
	}
	return time.Now()
}

func TestLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		_, _, from, to := pair(t, n)
		began := time.Now()
		send(t, from, "at once")
		if at := receive(t, to, "at once"); at != began {
			t.Errorf("after %v", at.Sub(began))
		}
		n.Set("a", "b", Link{Delay: time.Second})
		send(t, from, "slow")
		n.Set("a", "b", Link{})
		send(t, from, ", and in order")
		if at := receive(t, to, "slow, and in order"); at != began.Add(time.Second) {
			t.Errorf("after %v", at.Sub(began))
		}

		// One way: the other goes on.
		n.Set("a", "b", Link{Down: true})
		send(t, from, "held up")
		send(t, to, "back")
		receive(t, from, "back")
		if err := to.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a link that is down delivered: %v", err)
		}
		if met := n.Met(); met != 2 {
			t.Errorf("%d writes met a link that was not perfect, not one that was slow and one that was held up", met)
		}
		if err := to.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		healed := time.Now()
		n.Heal()
		if late := receive(t, to, "held up").Sub(healed); late > resend {
			t.Errorf("it took %v after the link was up", late)
		}
		if err := from.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after the other has closed: %v", err)
		}
	})
}

func TestKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b, from, to := pair(t, n)
		n.Set("b", "a", Link{Down: true})
		b.Kill()
		if _, err := to.Read(make([]byte, 1)); err == nil {
			t.Error("the dead read")
		}
		// Nobody hears of it while the link is down …
		if err := from.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := from.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a link that is down told of a death: %v", err)
		}
		if err := from.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		// … and then everybody.
		n.Heal()
		if _, err := from.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after a death: %v", err)
		}
		if _, err := from.Write([]byte("x")); err == nil {
			t.Error("a connection that was reset takes more")
		}
		if _, err := a.Dial(t.Context(), "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("where nobody listens: %v", err)
		}
		if _, err := b.Dial(t.Context(), "a:1"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the dead dialed: %v", err)
		}
		again, err := n.Host("b").Listen("b:1")
		if err != nil {
			t.Fatalf("a second life: %v", err)
		}
		again.Close()
	})
}

// TestDialWaits for a link that is down, as long as its context lets it.
func TestDialWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, _, from, _ := pair(t, n)
		defer from.Close()
		n.Both("a", "b", Link{Down: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, "b:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("over a link that is down: %v", err)
		}
		time.AfterFunc(time.Minute, n.Heal)
		began := time.Now()
		if _, err := a.Dial(t.Context(), "b:1"); err != nil || time.Since(began) != time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestSum tells apart who sent what, and when.
func TestSum(t *testing.T) {
	sum := func(text string, after time.Duration) (sum string) {
		synctest.Test(t, func(t *testing.T) {
			n := New(1)
			_, _, from, _ := pair(t, n)
			time.Sleep(after)
			send(t, from, text)
			sum = string(n.Sum())
		})
		return sum
	}
	first := sum("hello", time.Second)
	if sum("hello", time.Second) != first {
		t.Error("the same, and another sum")
	}
	if sum("hallo", time.Second) == first || sum("hello", time.Minute) == first {
		t.Error("another text, or another time, and the same sum")
	}
}

// TestFreeze has a host stand still: it is sent to all the same, and finds it all
// when it goes on.
func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b, from, to := pair(t, n)
		if err := to.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n.Freeze("b")
		send(t, from, "meanwhile")
		if _, err := a.Dial(t.Context(), "b:1"); err != nil {
			t.Errorf("connecting to a host that stands still: %v", err)
		}
		began := time.Now()
		time.AfterFunc(time.Minute, func() {
			if held := n.Thaw("b"); held != 2 {
				t.Errorf("%d calls were held up, not 2", held)
			}
		})
		dialed := make(chan time.Duration, 1)
		go func() {
			_, _ = b.Dial(t.Context(), "a:1") // nobody listens there
			dialed <- time.Since(began)
		}()
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if after := <-dialed; after != time.Minute {
			t.Errorf("it connected after %v", after)
		}
		if err := to.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		receive(t, to, "meanwhile")

		// The dead stand no more.
		n.Freeze("b")
		time.AfterFunc(time.Minute, b.Kill)
		if _, err := to.Write([]byte("x")); err == nil {
			t.Error("the dead wrote")
		}
		if n.Heal(); n.Thaw("b") != 0 {
			t.Error("healed, and still frozen")
		}
	})
}
