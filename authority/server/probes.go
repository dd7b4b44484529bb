package server

import (
	_ "embed"
	"errors"
	"io"
	"net/http"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/capability"
)

// openapiJSON is made from routes and package api by the test with -update.
//
//go:embed openapi.json
var openapiJSON []byte

func openapi(x *exchange) error {
	x.w.Header().Set("Content-Type", "application/json")
	_, _ = x.w.Write(openapiJSON)
	return nil
}

func livez(x *exchange) error { return text(x, "ok\n") }

// readyz says why not in the problem's detail: a probe's log is where an
// operator looks first. Anyone may ask, so what lies beneath is for the node's log.
func readyz(x *exchange) error {
	if x.s.feeds.Err() != nil {
		return errShuttingDown
	}
	if err := x.s.a.Ready(x.ctx()); err != nil {
		r := &refusal{status: http.StatusServiceUnavailable, code: capability.CodeUnavailable, retry: 1, err: err}
		if e, ok := errors.AsType[*authority.Error](err); ok {
			r.detail = e.Detail
		}
		return r
	}
	return text(x, "ok\n")
}

func metricsPage(x *exchange) error {
	if x.s.cfg.HideMetrics {
		return errNotFound
	}
	x.s.metrics.handler().ServeHTTP(x.w, x.r)
	return nil
}

func text(x *exchange, s string) error {
	x.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(x.w, s)
	return nil
}
