package guard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/writ-dev/writ/capability"
)

// maxProblem is the most bytes of a problem document that CodeOf reads.
const maxProblem = 4 << 10

// CodeOf is the capability code in the answer of a guarded service, or "" if it
// holds none. The body can be read afterwards as if it had not been.
func CodeOf(resp *http.Response) capability.Code {
	if resp == nil || resp.Body == nil || resp.StatusCode < 400 {
		return ""
	}
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != "application/problem+json" {
		return ""
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = failing{err}
	}
	resp.Body = putBack{io.MultiReader(bytes.NewReader(head), rest), resp.Body}
	var p struct {
		Code capability.Code `json:"code"`
	}
	if json.Unmarshal(head, &p) != nil || !capability.ValidName(string(p.Code), 64) {
		return ""
	}
	return p.Code
}

// putBack is a body of which some was read already.
type putBack struct {
	io.Reader
	io.Closer
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// confirmEvery is how often ConfirmRevoked looks.
const confirmEvery = 20 * time.Millisecond

// ConfirmRevoked reports whether the call's token is revoked by the service's own
// revocations. It is for a service that the next one answers with revoked (CodeOf,
// and its like in grpcguard and mcpguard): that is a hint, which may be early, about
// the narrowed branch alone, or a lie. Before the service drops the token, ends a
// stream, or refuses its own caller for it, its own feed has to agree.
//
// It looks at once and then again and again, for at most within or until ctx ends.
// After the verifier's bound, everything that was acknowledged before the call has
// arrived, or the verifier is stale and accepts nothing anyway: that is what
// within is to be, 2 s for a replica of a cluster unless configured.
func (g *Grant) ConfirmRevoked(ctx context.Context, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	t := time.NewTicker(confirmEvery)
	defer t.Stop()
	for {
		// Of a token that is revoked that is said first, whatever else denies.
		if errors.Is(g.Recheck(ctx), capability.CodeRevoked) {
			return true
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
	}
}
