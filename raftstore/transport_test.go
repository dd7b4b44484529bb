package raftstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testMethod = FirstMethod

// echo answers with who called and what was sent.
func echo(_ context.Context, from string, request []byte) ([]byte, error) {
	return append([]byte(from+":"), request...), nil
}

func TestCallsBetweenMembers(t *testing.T) {
	a, b := testTransport(t, "n1", nil), testTransport(t, "n2", nil)
	b.Handle(testMethod, echo)
	for _, size := range []int{0, 1, 100_000, DefaultMaxCall - len("n1:")} {
		request := bytes.Repeat([]byte{7}, size)
		got, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod, request)
		if err != nil || !bytes.Equal(got, append([]byte("n1:"), request...)) {
			t.Errorf("call of %d bytes: %d bytes, %v", size, len(got), err)
		}
	}
	var remote *RemoteError
	if _, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod, make([]byte, DefaultMaxCall)); !errors.As(err, &remote) || !errors.Is(err, ErrTooLarge) {
		t.Errorf("answer over the limit: %v", err)
	}
	if _, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod, make([]byte, DefaultMaxCall+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("request over the limit: %v", err)
	}
	if _, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod+1, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("method that nobody handles: %v", err)
	}
	if n := len(b.open()); n != 1 {
		t.Errorf("%d connections for all of it", n)
	}
}

func TestCallCarriesErrorsAndDeadlines(t *testing.T) {
	a, b := testTransport(t, "n1", nil), testTransport(t, "n2", nil)
	deadline := make(chan time.Duration, 1)
	ended, silent := make(chan struct{}), make(chan struct{})
	defer close(silent)
	b.Handle(testMethod, func(ctx context.Context, _ string, request []byte) ([]byte, error) {
		switch string(request) {
		case "not leader":
			return nil, fmt.Errorf("detail: %w", ErrNotLeader)
		case "other":
			return nil, errors.New("something else")
		default:
			at, _ := ctx.Deadline()
			deadline <- time.Until(at)
			<-ctx.Done()
			close(ended)
			<-silent
			return nil, ctx.Err()
		}
	})
	call := func(ctx context.Context, request string) error {
		_, err := a.Call(ctx, "n2", b.cfg.Advertise, testMethod, []byte(request))
		return err
	}
	err := call(testContext(t), "not leader")
	var remote *RemoteError
	if !errors.Is(err, ErrNotLeader) || !errors.As(err, &remote) || remote.ID != "n2" {
		t.Errorf("sentinel: %v", err)
	}
	if err := call(testContext(t), "other"); !errors.As(err, &remote) || errors.Is(err, ErrNotLeader) {
		t.Errorf("another error: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := call(ctx, "hang"); !errors.Is(err, ErrIndeterminate) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer in time: %v", err)
	}
	if d := <-deadline; d > 300*time.Millisecond {
		t.Errorf("the handler had %v", d)
	}
	<-ended
	if err := call(testContext(t), "other"); !errors.As(err, &remote) {
		t.Errorf("after a call that was given up: %v", err)
	}
}

// A connection that breaks while a call is under way leaves its fate open; one
// that cannot be made does not.
func TestCallOverLostConnection(t *testing.T) {
	a, b := testTransport(t, "n1", nil), testTransport(t, "n2", nil)
	arrived := make(chan struct{})
	b.Handle(testMethod, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		close(arrived)
		<-ctx.Done()
		return nil, nil
	})
	done := make(chan error, 1)
	go func() {
		_, err := a.Call(t.Context(), "n2", b.cfg.Advertise, testMethod, nil)
		done <- err
	}()
	<-arrived
	b.Close()
	if err := <-done; !errors.Is(err, ErrIndeterminate) {
		t.Errorf("under way: %v", err)
	}
	if _, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after that: %v", err)
	}
}

// One peer's calls are bounded, and reads get through all the same.
func TestCallsAreBounded(t *testing.T) {
	a, b := testTransport(t, "n1", nil), testTransport(t, "n2", nil)
	release := make(chan struct{})
	var running, most atomic.Int32
	b.Handle(testMethod, func(context.Context, string, []byte) ([]byte, error) {
		most.Store(max(most.Load(), running.Add(1)))
		<-release
		running.Add(-1)
		return nil, nil
	})
	b.Handle(methodTerm, echo)
	results := make(chan error, MaxCalls+8)
	for range cap(results) {
		go func() {
			_, err := a.Call(t.Context(), "n2", b.cfg.Advertise, testMethod, nil)
			results <- err
		}()
	}
	for range cap(results) - MaxCalls {
		if err := <-results; !errors.Is(err, ErrBusy) {
			t.Errorf("one too many: %v", err)
		}
	}
	if _, err := a.Call(testContext(t), "n2", b.cfg.Advertise, methodTerm, nil); err != nil {
		t.Errorf("read of a busy node: %v", err)
	}
	close(release)
	for range MaxCalls {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n > MaxCalls {
		t.Errorf("%d at once", n)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	b := testTransport(t, "n2", nil)
	b.Handle(testMethod, echo)
	address := b.cfg.Advertise
	key := func(name string) func(*TransportConfig) {
		return func(cfg *TransportConfig) {
			c := testCertificate(testKey(name), true)
			cfg.Certificate = func() (*tls.Certificate, error) { return c, nil }
		}
	}
	for name, tc := range map[string]struct {
		id     string // wanted
		change func(*TransportConfig)
		want   error
	}{
		"right key, valid certificate":     {"n2", key("n1"), nil},
		"right key, expired certificate":   {"n2", nil, nil},
		"key of nobody":                    {"n2", key("stranger"), ErrRefused},
		"the other's own key":              {"n2", key("n2"), ErrRefused},
		"another cluster":                  {"n2", func(cfg *TransportConfig) { cfg.Cluster = "other" }, ErrRefused},
		"no cluster":                       {"n2", func(cfg *TransportConfig) { cfg.Cluster = "" }, ErrRefused},
		"another node at the address":      {"n3", nil, ErrRefused},
		"a node whose key is not accepted": {"n2", func(cfg *TransportConfig) { cfg.Authorize = testMembers("n3") }, ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			a := testTransport(t, "n1", tc.change)
			_, err := a.Call(testContext(t), tc.id, address, testMethod, nil)
			if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Errorf("%v, want %v", err, tc.want)
			}
			_, err = a.streams.Dial(a.target("n2", "127.0.0.1:1"), 0)
			if !errors.Is(err, ErrUnreachable) {
				t.Errorf("dial of a closed port: %v", err)
			}
			conn, err := a.dial(t.Context(), tc.id, address, protoRaft)
			if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Errorf("stream: %v, want %v", err, tc.want)
			}
			if conn != nil {
				conn.Close()
			}
		})
	}
}

// A node that was removed is told so, by whoever it dials and for whatever; a
// stranger is not.
func TestRemovedNodeIsTold(t *testing.T) {
	b := testTransport(t, "n2", func(cfg *TransportConfig) {
		cfg.Authorize = testMembers("n2")
		cfg.Removed = func(state tls.ConnectionState) bool {
			id, err := testMembers("n1")(state)
			return err == nil && id == "n1"
		}
	})
	b.Handle(testMethod, echo)
	for name, removed := range map[string]bool{"n1": true, "n3": false} {
		a := testTransport(t, name, nil)
		_, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod, nil)
		if !errors.Is(err, ErrRefused) || errors.Is(err, ErrRemoved) != removed {
			t.Errorf("%s, with nobody to tell: %v", name, err)
		}
		told := make(chan string, 2)
		a.Handle(methodRemoved, func(_ context.Context, from string, request []byte) ([]byte, error) {
			_, err := numbers(request, 1)
			told <- from
			return nil, err
		})
		for _, protocol := range []string{protoCall, protoRaft} {
			if _, err := a.dial(t.Context(), "n2", b.cfg.Advertise, protocol); !errors.Is(err, ErrRefused) {
				t.Errorf("%s by %s: %v", protocol, name, err)
			}
		}
		if want := map[bool]int{true: 2}[removed]; len(told) != want {
			t.Errorf("%s was told %d times", name, len(told))
		} else if removed && <-told != "n2" {
			t.Error("told by another")
		}
	}
	if len(b.open()) != 0 {
		t.Error("a removed node has a connection")
	}
}

// A node that is not known is told the incarnation that does not know it, and ends
// where that shows that it was left behind.
func TestNodeLeftBehindIsTold(t *testing.T) {
	b := testTransport(t, "n2", func(cfg *TransportConfig) {
		cfg.Authorize = testMembers("n2", "n3")
		cfg.Incarnation = func() uint64 { return 7 }
	})
	b.Handle(testMethod, echo)
	for in, superseded := range map[uint64]bool{5: true, 7: false} {
		said := make(chan string, 64)
		a := testTransport(t, "n1", func(cfg *TransportConfig) {
			cfg.Superseded = func(incarnation uint64) bool { return incarnation > in }
			cfg.Logger = slog.New(slog.NewTextHandler(lines(said), nil))
		})
		told := make(chan string, 2)
		a.Handle(methodRemoved, func(_ context.Context, from string, _ []byte) ([]byte, error) {
			told <- from
			return nil, nil
		})
		for _, protocol := range []string{protoCall, protoRaft} {
			_, err := a.dial(t.Context(), "n2", b.cfg.Advertise, protocol)
			if !errors.Is(err, ErrRefused) || errors.Is(err, ErrRemoved) != superseded || !strings.Contains(err.Error(), "incarnation 7") {
				t.Errorf("in incarnation %d by %s: %v", in, protocol, err)
			}
		}
		if want := map[bool]int{true: 2}[superseded]; len(told) != want {
			t.Errorf("in incarnation %d: told %d times", in, len(told))
		}
		select {
		case line := <-said:
			if !strings.Contains(line, "began anew without this node") {
				t.Errorf("in incarnation %d the log says %q", in, line)
			}
		default:
			t.Errorf("in incarnation %d the log says nothing", in)
		}
	}
	if len(b.open()) != 0 {
		t.Error("a node that is not known has a connection")
	}
}

// Whoever does not even speak the protocol gets no further than the handshake.
func TestOtherClients(t *testing.T) {
	b := testTransport(t, "n2", nil)
	b.Handle(testMethod, echo)
	member := *testCertificate(testKey("n1"), true)
	for name, cfg := range map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true, NextProtos: []string{"writ-call/1/test"}},
		"TLS 1.2":        {InsecureSkipVerify: true, NextProtos: []string{"writ-call/1/test"}, Certificates: []tls.Certificate{member}, MaxVersion: tls.VersionTLS12},
		"no protocol":    {InsecureSkipVerify: true, Certificates: []tls.Certificate{member}},
		"no such thing":  {InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{member}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := net.Dial("tcp", b.cfg.Advertise)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			conn := tls.Client(raw, cfg)
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			frame := append(newFrame(requestHead, 0, 1), testMethod, 0, 0, 10, 0)
			if err := conn.Handshake(); err == nil {
				conn.Write(frame)
			}
			got, _ := io.ReadAll(conn)
			if len(got) > 1 { // the greeting, at most
				t.Errorf("was answered %q", got)
			}
		})
	}
	raw, err := net.Dial("tcp", b.cfg.Advertise)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	io.WriteString(raw, "GET / HTTP/1.1\r\n\r\n")
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(raw); errors.Is(err, context.DeadlineExceeded) {
		t.Error("was kept")
	}
}

func TestReauthorizeCuts(t *testing.T) {
	var mu sync.Mutex
	members := testMembers("n1", "n2")
	a := testTransport(t, "n1", nil)
	b := testTransport(t, "n2", func(cfg *TransportConfig) {
		cfg.Authorize = func(state tls.ConnectionState) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return members(state)
		}
	})
	b.Handle(testMethod, echo)
	call := func() error {
		_, err := a.Call(testContext(t), "n2", b.cfg.Advertise, testMethod, nil)
		return err
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	b.Reauthorize()
	if len(b.open()) != 1 {
		t.Error("a member was cut")
	}
	mu.Lock()
	members = testMembers("n2", "n3")
	mu.Unlock()
	b.Reauthorize()
	if len(b.open()) != 0 {
		t.Error("whoever is no member was not cut")
	}
	for { // until the other end has noticed
		err := call()
		if errors.Is(err, ErrRefused) {
			break
		}
		if !errors.Is(err, ErrIndeterminate) && !errors.Is(err, ErrUnreachable) {
			t.Fatalf("after the cut: %v", err)
		}
	}
}

// A node that has moved is found by Address, and connections to where it was
// are given up.
func TestAddressOfANodeThatMoved(t *testing.T) {
	var at atomic.Value
	at.Store("")
	a := testTransport(t, "n1", func(cfg *TransportConfig) {
		cfg.Address = func(id string) string { return at.Load().(string) }
	})
	here, there := testTransport(t, "n2", nil), testTransport(t, "n2", nil)
	here.Handle(testMethod, func(context.Context, string, []byte) ([]byte, error) { return []byte("here"), nil })
	there.Handle(testMethod, func(context.Context, string, []byte) ([]byte, error) { return []byte("there"), nil })
	call := func() string {
		got, err := a.Call(testContext(t), "n2", here.cfg.Advertise, testMethod, nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := call(); got != "here" {
		t.Errorf("before: %s", got)
	}
	at.Store(there.cfg.Advertise)
	if got := call(); got != "there" {
		t.Errorf("after: %s", got)
	}
}

// After a partition calls do not wait for TCP to notice that it is over.
func TestCallsRecoverFromAPartition(t *testing.T) {
	out := newWires()
	a := testTransport(t, "n1", func(cfg *TransportConfig) { cfg.Dial = out.dial })
	b := testTransport(t, "n2", nil)
	b.Handle(testMethod, echo)
	b.Handle(methodTerm, echo)
	call := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		_, err := a.Call(ctx, "n2", b.cfg.Advertise, testMethod, nil)
		return err
	}
	if err := call(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	first := a.callers["n2"]
	a.mu.Unlock()
	out.set(b.cfg.Advertise, func(w *wire) { w.replyDark = true })
	for first.ctx.Err() == nil {
		if err := call(100 * time.Millisecond); err == nil {
			t.Fatal("answered through a partition")
		}
	}
	out.set(b.cfg.Advertise, func(w *wire) { w.replyDark = false })
	for {
		if err := call(10 * time.Second); err == nil {
			break
		}
	}
}

func TestTransportConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*TransportConfig){
		"no id":          func(cfg *TransportConfig) { cfg.NodeID = "" },
		"no listener":    func(cfg *TransportConfig) { cfg.Listener.Close(); cfg.Listener = nil },
		"no certificate": func(cfg *TransportConfig) { cfg.Certificate = nil },
		"no judge":       func(cfg *TransportConfig) { cfg.Authorize = nil },
		"long cluster":   func(cfg *TransportConfig) { cfg.Cluster = string(make([]byte, 201)) },
		"no such net":    func(cfg *TransportConfig) { cfg.Profile = "moon" },
		"negative limit": func(cfg *TransportConfig) { cfg.MaxCall = -1 },
	} {
		if _, err := newTestTransport("n1", change); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
