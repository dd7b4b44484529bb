package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// What replica.Replica does, which a verifier of a swarm does in its place: thousands
// of whole ones would measure themselves.
const (
	pingsPerBound = 4 // of the first feed; the second sends half as many while that one answers
	audience      = "corp"
)

// opening is how many connect at a time where that is not what is measured.
const opening = 64

// growMost is how long all of them may take to open.
const growMost = 5 * time.Minute

// swarm is many verifiers. Each has two feeds, at two nodes, on connections of
// their own, and keeps itself fresh.
type swarm struct {
	nodes []string // addresses
	pin   string   // SHA-256 of the CA's certificate; "": no TLS
	token string
	bound time.Duration
	list  []*verifier

	ctx  context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
	born time.Time

	bytes   atomic.Int64 // on top of TCP, both ways
	opened  atomic.Int64 // streams that were
	refused atomic.Int64 // that a node would not open
	live    atomic.Int64 // that have answered a ping
	open    chan struct{}
	rush    atomic.Bool // no matter how many connect at a time

	told sync.Map // index of a revocation: *telling
}

// verifier is one of them.
type verifier struct {
	s      *swarm
	nodes  []string        // in an order of its own, as client.Config.Shuffle has it
	fresh  atomic.Int64    // when the last ping that was answered was sent, by the swarm's clock
	cursor atomic.Uint64   // index up to which it has seen everything
	told   atomic.Uint64   // index of the last revocation that it was told
	at     [2]atomic.Int32 // the node that each feed is at
	live   [2]atomic.Bool  // whether it has answered a ping
}

// telling is one revocation on its way.
type telling struct {
	mu    sync.Mutex
	times []time.Time // when verifiers were told; guarded by mu
}

func newSwarm(c *cluster, plain bool, token string, bound time.Duration) *swarm {
	s := &swarm{token: token, bound: bound, born: time.Now(), open: make(chan struct{}, opening)}
	if !plain {
		s.pin = c.voters[0].Fingerprint
	}
	for _, n := range c.replicas {
		s.nodes = append(s.nodes, n.Addr)
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// grow adds verifiers and waits until all of them are fresh by both feeds.
func (s *swarm) grow(ctx context.Context, n int) error {
	for range n {
		v := &verifier{s: s, nodes: slices.Clone(s.nodes)}
		rand.Shuffle(len(v.nodes), func(i, k int) { v.nodes[i], v.nodes[k] = v.nodes[k], v.nodes[i] })
		s.list = append(s.list, v)
		for slot := range 2 {
			s.wg.Go(func() { v.run(slot, slot%len(v.nodes)) })
		}
	}
	ctx, cancel := context.WithTimeout(ctx, growMost)
	defer cancel()
	if err := wait.Until(ctx, 5*time.Millisecond, func() bool { return s.live.Load() == int64(2*len(s.list)) }); err != nil {
		return fmt.Errorf("%d of %d feeds are live, %d were refused: %w", s.live.Load(), 2*len(s.list), s.refused.Load(), err)
	}
	return nil
}

func (s *swarm) close() {
	s.end()
	s.wg.Wait()
}

func (s *swarm) now() int64 { return int64(time.Since(s.born)) }

// stale is how many are older than the bound, and the age of the oldest.
func (s *swarm) stale() (n int, oldest time.Duration) {
	now := s.now()
	for _, v := range s.list {
		age := time.Duration(now - v.fresh.Load())
		if age > s.bound {
			n++
		}
		oldest = max(oldest, age)
	}
	return n, oldest
}

// telling is the revocation of an index, whoever comes first.
func (s *swarm) telling(index uint64) *telling {
	t, _ := s.told.LoadOrStore(index, new(telling))
	return t.(*telling)
}

// at returns when verifiers were told, in order.
func (t *telling) at() []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(slices.Values(t.times), time.Time.Compare)
}

// run keeps one of a verifier's feeds open, going on to another node when it ends.
func (v *verifier) run(slot, node int) {
	if slot == 1 { // resumes where the first has come to
		_ = wait.Until(v.s.ctx, 5*time.Millisecond, func() bool { return v.cursor.Load() > 0 })
	}
	for failures := 0; v.s.ctx.Err() == nil; {
		v.at[slot].Store(int32(node))
		if v.follow(slot, node) {
			failures = 0
		}
		failures++
		n := len(v.nodes)
		node = (node + 1) % n
		if n > 1 && failures%2 == 1 && node == int(v.at[1-slot].Load()) {
			node = (node + 1) % n
		}
		delay := min(25*time.Millisecond<<min(failures, 8), time.Second)
		wait.For(v.s.ctx, delay/2+rand.N(delay/2+1))
	}
}

// follow opens a feed and reads it to its end. live reports whether it came to
// answer a ping.
func (v *verifier) follow(slot, node int) (live bool) {
	s := v.s
	f := &feed{v: v, slot: slot}
	defer func() {
		if live = v.live[slot].Swap(false); live {
			s.live.Add(-1)
		}
	}()
	if !s.rush.Load() {
		s.open <- struct{}{}
		f.opening = true
		defer f.isOpen()
	}
	if err := f.connect(v.nodes[node]); err != nil {
		return false
	}
	f.isOpen()
	stop := context.AfterFunc(s.ctx, func() { f.conn.Close() })
	defer stop()
	done := make(chan struct{})
	var pinging sync.WaitGroup
	pinging.Go(func() { f.pings(done) })
	f.read()
	f.conn.Close()
	close(done)
	pinging.Wait()
	return false
}

// feed is one open stream.
type feed struct {
	v       *verifier
	slot    int
	conn    net.Conn
	lines   *bufio.Reader
	opening bool // holds room in the swarm's
}

func (f *feed) isOpen() {
	if f.opening {
		f.opening = false
		<-f.v.s.open
	}
}

// counted counts what goes over a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

// Read implements net.Conn.
func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// pinned accepts a node of the cluster: here, any that sends its CA along.
func pinned(pin string) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		for _, c := range state.PeerCertificates {
			if sum := sha256.Sum256(c.Raw); hex.EncodeToString(sum[:]) == pin {
				return nil
			}
		}
		return client.ErrFingerprint
	}
}

func (f *feed) connect(addr string) error {
	s := f.v.s
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(s.ctx, "tcp", addr)
	if err != nil {
		return err
	}
	f.conn = counted{conn, &s.bytes}
	_ = conn.SetDeadline(time.Now().Add(max(s.bound, 5*time.Second)))
	if s.pin != "" {
		f.conn = tls.Client(f.conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: pinned(s.pin)})
	}
	target := "/v1/feed?audience=" + audience
	if f.slot == 1 {
		target += "&warm=true"
	}
	if index := f.v.cursor.Load(); index > 0 {
		target += "&incarnation=1&index=" + strconv.FormatUint(index, 10)
	}
	request := "POST " + target + " HTTP/1.1\r\nHost: " + addr + "\r\nAuthorization: Bearer " + s.token +
		"\r\nContent-Type: application/x-ndjson\r\nAccept: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
	if _, err := f.conn.Write([]byte(request)); err != nil {
		f.conn.Close()
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(f.conn, 2<<10), &http.Request{Method: http.MethodPost})
	if err == nil && resp.StatusCode != http.StatusOK {
		s.refused.Add(1)
		err = fmt.Errorf("%s", resp.Status)
	}
	if err != nil {
		f.conn.Close()
		return err
	}
	s.opened.Add(1)
	f.lines = bufio.NewReaderSize(resp.Body, 2<<10)
	_ = f.conn.SetDeadline(time.Time{})
	f.heard()
	return nil
}

// heard puts off the moment from which the stream counts as silent.
func (f *feed) heard() { _ = f.conn.SetReadDeadline(time.Now().Add(max(f.v.s.bound, time.Second))) }

// pings asks for pongs until done. A ping's nonce is when it was sent.
func (f *feed) pings(done <-chan struct{}) {
	s := f.v.s
	interval := s.bound / pingsPerBound
	tick := time.NewTicker(interval)
	defer tick.Stop()
	together := false
	for n := 0; ; n++ {
		// Two feeds that have come to one node part again: it may freeze.
		was := together
		if together = f.v.together(); together && was && f.slot == 1 {
			f.conn.Close()
			return
		}
		now := s.now()
		if f.slot == 0 || n%2 == 0 || now-f.v.fresh.Load() > 2*int64(interval) {
			line := fmt.Sprintf("{\"nonce\":%d}\n", now)
			if _, err := fmt.Fprintf(f.conn, "%x\r\n%s\r\n", len(line), line); err != nil {
				return // and so has the stream
			}
		}
		select {
		case <-tick.C:
		case <-done:
			return
		}
	}
}

// together reports whether both feeds are well, and at one node of several.
func (v *verifier) together() bool {
	return len(v.nodes) > 1 && v.live[0].Load() && v.live[1].Load() && v.at[0].Load() == v.at[1].Load()
}

// read reads the feed to its end.
func (f *feed) read() {
	for {
		line, err := f.lines.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case bytes.Contains(line, []byte(`"pong":`)):
			f.pong(int64(number(line, `"nonce":`)), number(line, `"index":`))
		case bytes.Contains(line, []byte(`"revoke":`)):
			f.revoked(number(line, `"index":`))
		}
	}
}

// number is what follows a name.
func number(line []byte, name string) (n uint64) {
	_, after, _ := bytes.Cut(line, []byte(name))
	for _, c := range after {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + uint64(c-'0')
	}
	return n
}

func (f *feed) pong(sent int64, index uint64) {
	raise(&f.v.cursor, index)
	for {
		old := f.v.fresh.Load()
		if sent <= old || f.v.fresh.CompareAndSwap(old, sent) {
			break
		}
	}
	f.heard()
	if !f.v.live[f.slot].Swap(true) {
		f.v.s.live.Add(1)
	}
}

func (f *feed) revoked(index uint64) {
	if raise(&f.v.told, index) {
		now := time.Now()
		t := f.v.s.telling(index)
		t.mu.Lock()
		t.times = append(t.times, now)
		t.mu.Unlock()
	}
}

// raise reports whether a number has risen by n.
func raise(to *atomic.Uint64, n uint64) bool {
	for {
		old := to.Load()
		if n <= old {
			return false
		}
		if to.CompareAndSwap(old, n) {
			return true
		}
	}
}
