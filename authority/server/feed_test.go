package server

import (
	"net/http"
	"net/http/httptest"
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

// TestWhatMayWait: on a feed that stands in for another everything but a pong
// waits for company, and on the first only what was registered; nobody waits
// longer than the lag, and the order stays.
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
		warm bool
		say  string
		lag  time.Duration
	}{
		{false, "revoke", 0}, {false, "keys", 0}, {false, "pong", 0}, {false, "recall", 0}, {false, "issued", flushLag},
		{true, "revoke", warmLag}, {true, "keys", warmLag}, {true, "issued", warmLag}, {true, "pong", 0}, {true, "recall", 0},
		{false, "issued revoke", 0}, {true, "revoke pong", 0}, {true, "revoke revoke issued", warmLag},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &flushed{ResponseRecorder: httptest.NewRecorder()}
			f := &feedWriter{x: &exchange{w: w}, out: http.NewResponseController(w), ctx: t.Context(), warm: k.warm}
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
					t.Errorf("warm %t, %s: did not wait", k.warm, k.say)
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
				t.Errorf("warm %t, %s: after %v came %v", k.warm, k.say, k.lag, got)
			}
		})
	}
}
