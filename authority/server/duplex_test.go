package server_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/server"
)

// overBoth runs a test over HTTP/1.1 and over HTTP/2.
func overBoth(t *testing.T, f func(t *testing.T, hc *http.Client)) {
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: two}}
			t.Cleanup(hc.CloseIdleConnections)
			f(t, hc)
		})
	}
}

// duplex is a feed spoken by hand.
type duplex struct {
	t      *testing.T
	resp   *http.Response
	events *bufio.Reader
	pings  *io.PipeWriter
}

func openDuplex(t *testing.T, hc *http.Client, addr, token string) *duplex {
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+addr+"/v1/feed?audience=corp", in)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close(); resp.Body.Close() })
	return &duplex{t, resp, bufio.NewReader(resp.Body), out}
}

func (d *duplex) say(line string) {
	d.t.Helper()
	if _, err := io.WriteString(d.pings, line); err != nil {
		d.t.Fatal(err)
	}
}

// until reads events up to one that f selects; it reports false at the end.
func (d *duplex) until(f func(*api.FeedEvent) bool) bool {
	d.t.Helper()
	for {
		line, err := d.events.ReadBytes('\n')
		if err != nil {
			return false
		}
		var e api.FeedEvent
		if err := client.DecodeEvent(line, &e); err != nil {
			d.t.Fatalf("%s: %v", line, err)
		}
		if f(&e) {
			return true
		}
	}
}

// TestPingsOnTheFeedsConnection: what the request's body asks for, its answer
// has, while neither has ended; and the feed outlives the body.
func TestPingsOnTheFeedsConnection(t *testing.T) {
	r := start(t, server.Limits{})
	overBoth(t, func(t *testing.T, hc *http.Client) {
		d := openDuplex(t, hc, r.Addr, r.RootToken)
		if d.resp.StatusCode != 200 {
			t.Fatal(d.resp.Status)
		}
		d.say(`{"nonce":7}` + "\n" + `{"nonce":`)
		if !d.until(func(e *api.FeedEvent) bool { return e.Pong != nil && e.Pong.Nonce == 7 }) {
			t.Fatal("no pong")
		}
		d.say("18446744073709551615}\n") // the other half of the line
		if !d.until(func(e *api.FeedEvent) bool { return e.Pong != nil && e.Pong.Nonce == 1<<64-1 }) {
			t.Fatal("no second pong")
		}
		d.pings.Close()
		if _, err := r.Root().Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeSubject, Subject: "agent", Reason: "leaked"}); err != nil {
			t.Fatal(err)
		}
		if !d.until(func(e *api.FeedEvent) bool { return e.Revoke != nil && e.Revoke.Subject == "agent" }) {
			t.Error("the feed ended with its pings")
		}
	})
}

// TestNoPingEndsTheFeed: a line that is no ping, one without end, half of one.
func TestNoPingEndsTheFeed(t *testing.T) {
	r := start(t, server.Limits{})
	overBoth(t, func(t *testing.T, hc *http.Client) {
		for _, body := range []string{"{}x\n", "\n", `{"nonce":-1}` + "\n", `{"nonce":1,"stream":"x"}` + "\n", strings.Repeat(" ", api.MaxFeedPing), "half"} {
			d := openDuplex(t, hc, r.Addr, r.RootToken)
			d.say(body)
			if body == "half" {
				d.pings.Close()
			}
			if d.until(func(e *api.FeedEvent) bool { return e.Pong != nil }) {
				t.Errorf("%q has a pong", body)
			}
		}
	})
}

// TestRefusedWhileTheBodyGoesOn: a refusal does not wait for the end of pings
// that may never come, and holds nothing up afterwards.
func TestRefusedWhileTheBodyGoesOn(t *testing.T) {
	n := start(t, server.Limits{PerCaller: 1, Timeout: time.Hour}) // no deadline of a request comes to help
	corp := n.Mint(t, "corp", "agent-42").Token
	overBoth(t, func(t *testing.T, hc *http.Client) {
		for token, want := range map[string]int{corp: 401, "writ_x": 401} {
			if d := openDuplex(t, hc, n.Addr, token); d.resp.StatusCode != want {
				t.Errorf("%s, not %d", d.resp.Status, want)
			}
		}
		first := openDuplex(t, hc, n.Addr, n.RootToken)
		if first.resp.StatusCode != 200 {
			t.Fatal(first.resp.Status)
		}
		if d := openDuplex(t, hc, n.Addr, n.RootToken); d.resp.StatusCode != 429 {
			t.Errorf("a second feed: %s", d.resp.Status)
		}
		first.say("no ping\n")
		if first.until(func(*api.FeedEvent) bool { return false }) {
			t.Fatal("the feed goes on")
		}
	})
	a := n.do("POST", "/v1/feed?audience=corp", n.RootToken, "{}")
	if a.status != 415 || a.problem.Code != api.CodeInvalid {
		t.Errorf("pings of another type: %d %s", a.status, a.problem.Code)
	}
}
