package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/server"
)

// TestStrangersBodies: one connection can have hundreds of calls under way, and who
// shows no credential may not have the node hold a body for each.
func TestStrangersBodies(t *testing.T) {
	r := start(t, server.Limits{Connections: 2})
	t.Cleanup(r.hc.CloseIdleConnections)
	self, err := json.Marshal(api.SelfRevokeRequest{Token: "writ_x", Reason: "r"})
	if err != nil {
		t.Fatal(err)
	}
	quick := func() answer { return r.do("POST", "/v1/revocations/self", "", string(self)) }
	r.refused(quick(), 422, "malformed")
	bodies, answered := make([]*io.PipeWriter, 2), make(chan int, 2)
	for i := range bodies {
		var body *io.PipeReader
		body, bodies[i] = io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+r.Addr+"/v1/revocations/self", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		go func() {
			resp, err := r.hc.Do(req)
			if err != nil {
				answered <- 0
				return
			}
			resp.Body.Close()
			answered <- resp.StatusCode
		}()
		if _, err := bodies[i].Write(self[:10]); err != nil {
			t.Fatal(err)
		}
	}
	var a answer
	for a = quick(); a.status == 422; a = quick() {
		// The node reads of the two in its own time.
	}
	r.refused(a, 429, api.CodeOverloaded)
	if a := r.do("GET", "/v1/tokens", r.RootToken, ""); a.status != 200 {
		t.Errorf("strangers keep a caller out: %d %s", a.status, a.body)
	}
	for _, b := range bodies {
		if _, err := b.Write(self[10:]); err != nil {
			t.Fatal(err)
		}
		b.Close()
		if status := <-answered; status != 422 {
			t.Errorf("a slow call that was let in: %d", status)
		}
	}
	r.refused(quick(), 422, "malformed")
}
