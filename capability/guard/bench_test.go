package guard_test

import (
	"io"
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
	a := guardtest.For(b)
	token := a.Token(b, "action read write", "resource files/**", "time-before 2099-01-01T00:00:00Z",
		"client-ip 192.0.2.0/24", "service files")
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })

	bare := http.NewServeMux()
	bare.Handle("GET /files/{path...}", handler)

	g, err := guard.New(a.Verifier, guard.Service("files"), guard.Logger(slog.New(slog.NewTextHandler(io.Discard, nil))))
	if err != nil {
		b.Fatal(err)
	}
	g.Handle("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, handler)
	guarded, err := g.Build()
	if err != nil {
		b.Fatal(err)
	}

	for _, c := range []struct {
		name    string
		handler http.Handler
	}{{"bare", bare}, {"guarded", guarded}} {
		b.Run(c.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", "/files/reports/q3", nil)
			authorization := []string{"Bearer " + token.Text()}
			w := &nowhere{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				r.Header["Authorization"] = authorization
				w.status = 0
				c.handler.ServeHTTP(w, r)
				if w.status != http.StatusNoContent {
					b.Fatalf("status %d", w.status)
				}
			}
		})
	}
}
