//go:build linux

package process

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
)

// service is a service behind a guard, as anyone would write it, except that
// what the guard says is recorded before it is answered.
type service struct {
	cfg     workerConfig
	log     *check.Log
	replica *replica.Replica
	server  *http.Server
}

const calls = "/calls/" // and the name of the credential

func startService(cfg workerConfig, log *check.Log) (*service, error) {
	c, err := client.New(client.Config{Addrs: cfg.Addrs, CAFingerprint: cfg.Fingerprint, Token: cfg.Token})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s := &service{cfg: cfg, log: log}
	s.replica, err = replica.Open(ctx, replica.Config{Client: c, Audiences: []string{audience}, Leases: replica.LeaseConfig{Want: 8}})
	if err != nil {
		return nil, err
	}
	checker, err := caveats.Standard()
	if err != nil {
		return nil, err
	}
	v, err := s.replica.Verifier(checker)
	if err != nil {
		return nil, err
	}
	g, err := guard.New(v, guard.Service(audience), guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, err
	}
	g.HandleFunc("GET "+calls+"{name...}", guard.Route{Action: "call", Resource: "calls/{name...}"}, func(http.ResponseWriter, *http.Request) {})
	guarded, err := g.Build()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, err
	}
	s.server = &http.Server{Handler: s.record(guarded), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.server.Serve(ln) }() // ends with the process
	return s, nil
}

// record logs what the guard says before anybody hears it.
func (s *service) record(guarded http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said := &answer{header: make(http.Header), status: http.StatusOK}
		begun := now()
		guarded.ServeHTTP(said, r)
		verdict := check.Record{
			Op: check.OpVerdict, Client: s.cfg.Name, Name: strings.TrimPrefix(r.URL.Path, calls), Begun: begun, Ended: now(),
		}
		if said.status != http.StatusOK {
			var p api.Problem
			if err := json.Unmarshal(said.body.Bytes(), &p); err != nil {
				p.Code = api.CodeInternal
			}
			verdict.Code = string(p.Code)
		}
		if err := s.log.Add(verdict); err != nil {
			panic(err)
		}
		w.Header().Set("Verdict", verdict.Code)
		w.WriteHeader(said.status)
	})
}

// answer is an answer that nobody has heard yet.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// do does what the rig asks of a service: close, to give back what it has leased.
func (s *service) do(command string) error {
	if command == "close" {
		return s.replica.Close()
	}
	return errUnknown
}
