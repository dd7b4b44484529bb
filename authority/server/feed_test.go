package server

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
)

// flushed is a ResponseWriter that knows how many lines were flushed.
type flushed struct {
	*httptest.ResponseRecorder
	lines []string
}

func (f *flushed) Flush() { f.lines = strings.Split(strings.TrimSpace(f.Body.String()), "\n") }

func (f *flushed) SetWriteDeadline(time.Time) error { return nil }

// TestWhatMayWait: what was registered waits for company, but for no longer than
// the lag, and the order stays.
func TestWhatMayWait(t *testing.T) {
	at := api.Cursor{Incarnation: 1, Index: 1}
	events := map[string]*api.FeedEvent{
		"revoke": {At: at, Revoke: &api.FeedRevocation{Kind: api.RevokeToken}},
		"issued": {At: at, Issued: &api.FeedIssued{}},
		"keys":   {At: at, Keys: true},
		"pong":   {At: at, Pong: &api.FeedPong{Nonce: 1}},
		"recall": {At: at, Recall: &api.FeedRecall{Lease: "l"}},
	}
	for _, k := range []struct {
		say string
		lag time.Duration
	}{
		{"revoke", 0}, {"keys", 0}, {"pong", 0}, {"recall", 0}, {"issued", flushLag}, {"issued issued", flushLag}, {"issued revoke", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &flushed{ResponseRecorder: httptest.NewRecorder()}
			f := &feedWriter{x: &exchange{w: w, s: new(Server)}, out: http.NewResponseController(w), ctx: t.Context()}
			defer f.stop()
			said := strings.Fields(k.say)
			for _, what := range said {
				if err := f.send(events[what]); err != nil {
					t.Fatal(err)
				}
			}
			if k.lag > 0 {
				time.Sleep(k.lag - 1)
				synctest.Wait()
				f.mu.Lock()
				if w.lines != nil {
					t.Errorf("%s: did not wait", k.say)
				}
				f.mu.Unlock()
				time.Sleep(1)
				synctest.Wait()
			}
			got := slices.Collect(func(yield func(string) bool) {
				for _, line := range w.lines {
					for name := range events {
						if strings.Contains(line, `"`+name+`":`) && !yield(name) {
							return
						}
					}
				}
			})
			if !slices.Equal(got, said) {
				t.Errorf("%s: after %v came %v", k.say, k.lag, got)
			}
		})
	}
}

// TestLineIsOfItsEvent: what another feed was told is told again only where it is
// the same revocation at the same place.
func TestLineIsOfItsEvent(t *testing.T) {
	s := new(Server)
	one, two := &api.FeedRevocation{Kind: api.RevokeToken, Token: "a"}, &api.FeedRevocation{Kind: api.RevokeToken, Token: "b"}
	for _, e := range []*api.FeedEvent{
		{At: api.Cursor{Incarnation: 1, Index: 1}, Revoke: one}, {At: api.Cursor{Incarnation: 1, Index: 1}, Revoke: one},
		{At: api.Cursor{Incarnation: 1, Index: 2}, Revoke: one}, {At: api.Cursor{Incarnation: 1, Index: 2}, Revoke: two},
		{At: api.Cursor{Incarnation: 2, Index: 2}, Revoke: two}, {At: api.Cursor{Incarnation: 2, Index: 2}, Keys: true},
		{At: api.Cursor{Incarnation: 2, Index: 2}, Revoke: two},
	} {
		line, err := s.line(e)
		if err != nil {
			t.Fatal(err)
		}
		var got api.FeedEvent
		if err := api.Decode(bytes.TrimSuffix(line, []byte("\n")), &got); err != nil || !reflect.DeepEqual(&got, e) || line[len(line)-1] != '\n' {
			t.Errorf("%+v was told as %s", e, line)
		}
	}
}
