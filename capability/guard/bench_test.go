package guard_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// nowhere is a ResponseWriter that costs nothing, so that what is measured is
// the guard.
type nowhere struct {
	header http.Header
	status int
}

func (w *nowhere) Header() http.Header         { return w.header }
func (w *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (w *nowhere) WriteHeader(status int)      { w.status = status }

// BenchmarkHandler is the same handler behind the same mux, bare and guarded,
// with a token of five caveats. Their difference is what the guard adds: at
// most 5 µs.
func BenchmarkHandler(b *testing.B) {
	bare, guarded, token := pair(b)
	for _, c := range []struct {
		name    string
		handler http.Handler
	}{{"bare", bare}, {"guarded", guarded}} {
		b.Run(c.name, func(b *testing.B) {
			call := calling(b, c.handler, token)
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// TestAllocations: what the guard adds does not grow unnoticed.
func TestAllocations(t *testing.T) {
	bare, guarded, token := pair(t)
	before := testing.AllocsPerRun(200, calling(t, bare, token))
	if added := testing.AllocsPerRun(200, calling(t, guarded, token)) - before; added > 10 {
		t.Errorf("the guard adds %v allocations, want at most 10", added)
	}
}

// pair is one handler behind one mux, bare and guarded.
func pair(b testing.TB) (bare, guarded http.Handler, token string) {
	a := guardtest.For(b)
	t := a.Token(b, "action read write", "resource files/**", "time-before 2099-01-01T00:00:00Z",
		"client-ip 192.0.2.0/24", "service files")
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })

	mux := http.NewServeMux()
	mux.Handle("GET /files/{path...}", handler)

	g, err := guard.New(a.Verifier, guard.Service("files"), guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	g.Handle("GET /files/{path...}", readFiles, handler)
	return mux, build(b, g), t.Text()
}

func calling(b testing.TB, h http.Handler, token string) func() {
	r := httptest.NewRequest("GET", "/files/reports/q3", nil)
	authorization := []string{"Bearer " + token}
	w := &nowhere{header: make(http.Header)}
	return func() {
		r.Header["Authorization"] = authorization // the guard takes it out
		w.status = 0
		h.ServeHTTP(w, r)
		if w.status != http.StatusNoContent {
			b.Fatalf("status %d", w.status)
		}
	}
}
