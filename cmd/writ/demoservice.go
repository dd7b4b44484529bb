package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// The services of writ demo: what anyone's service does with the public
// packages, and nothing else.

type demoServiceOptions struct {
	name, next string
	url        string // where it is reached
}

type demoServiceReady struct {
	URL string `json:"url"`
}

func newDemoService(a *app) *cobra.Command {
	var o demoServiceOptions
	cmd := &cobra.Command{
		Use:    "demo-service",
		Short:  "one of the services of writ demo",
		Long:   "One of the services of writ demo. It reads its join secret from standard input, and ends when that does.",
		Hidden: true,
		Args:   noArguments,
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.demoService(cmd, &o) },
	}
	cmd.Flags().StringVar(&o.name, "name", "", "`name` of the service")
	cmd.Flags().StringVar(&o.next, "next", "", "`URL` of the service that it calls")
	return cmd
}

func (a *app) demoService(cmd *cobra.Command, o *demoServiceOptions) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	in := bufio.NewReader(a.stdin)
	secret, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	o.url = "http://" + ln.Addr().String()
	handler, done, err := demoHandler(ctx, a, o, strings.TrimSpace(secret))
	if err != nil {
		return err
	}
	defer done()
	if err := writeJSON(cmd.OutOrStdout(), demoServiceReady{URL: o.url}); err != nil {
		return err
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(ln); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// demoHandler joins the authority, opens a replica and guards the routes.
func demoHandler(ctx context.Context, a *app, o *demoServiceOptions, secret string) (http.Handler, func(), error) {
	cfg, err := client.ConfigFromEnv(a.getenv)
	if err != nil {
		return nil, nil, err
	}
	cfg.TokenFile, cfg.Token, cfg.KeyFile = "", "", ""
	anyone, err := client.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	joined, err := anyone.Join(ctx, api.JoinRequest{Name: o.name, JoinSecret: secret})
	if err != nil {
		return nil, nil, err
	}
	r, err := replica.Open(ctx, replica.Config{
		Client: anyone.WithToken(joined.Token), Audiences: []string{demoAudience},
		// Budgets of a few calls, spent at two services in turn: none is held back.
		Leases: replica.LeaseConfig{Want: 1},
	})
	if err != nil {
		return nil, nil, err
	}
	done := func() { _ = r.Close() }
	checker, err := caveats.Standard()
	if err != nil {
		done()
		return nil, nil, err
	}
	v, err := r.Verifier(checker)
	if err != nil {
		done()
		return nil, nil, err
	}
	proofs, err := pop.New(pop.Config{Origins: []string{o.url}})
	if err != nil {
		done()
		return nil, nil, err
	}
	g, err := guard.New(v, guard.Service(o.name), guard.Possession(proofs))
	if err != nil {
		done()
		return nil, nil, err
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, demoFile)
	if o.next != "" {
		g.HandleFunc("GET /summaries/{path...}", guard.Route{
			Action: "read", Resource: "files/{path...}",
			Query: map[string]capability.Kind{"ask": capability.KindString},
		}, demoSummary(o.next))
	}
	h, err := g.Build()
	if err != nil {
		done()
		return nil, nil, err
	}
	return h, done, nil
}

func demoFile(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{
		"path": r.PathValue("path"), "for": guard.FromContext(r.Context()).Subject(), "text": "what is in it",
	})
}

// demoSummary reads a file from the next service, with the caller's token
// narrowed to that file, and passes the answer on. The parameter ask makes it
// ask for another file than the one that it narrowed to.
func demoSummary(next string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.PathValue("path")
		c, err := guard.FromContext(r.Context()).Client(nil, "resource files/"+path, "service files")
		if err != nil {
			http.Error(w, "cannot narrow", http.StatusBadGateway)
			return
		}
		ask := path
		if other := r.URL.Query().Get("ask"); other != "" {
			ask = other
		}
		u, err := url.JoinPath(next, "files", ask)
		if err != nil {
			http.Error(w, "no such file", http.StatusBadGateway)
			return
		}
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, u, nil)
		if err != nil {
			http.Error(w, "no such file", http.StatusBadGateway)
			return
		}
		resp, err := c.Do(req)
		if err != nil {
			http.Error(w, "files does not answer", http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(resp.Body, 64<<10))
	}
}

// auditLine is an audit record as the demo shows it: who did what, briefly.
func auditLine(record map[string]any) string {
	get := func(key string) string { s, _ := record[key].(string); return s }
	line := fmt.Sprintf("%-12s by %-13s", get("action"), get("actor"))
	for _, key := range []string{"service", "subject", "audience", "kind", "reason"} {
		if v := get(key); v != "" {
			line += " " + key + " " + v
		}
	}
	if token := get("token"); token != "" {
		line += " token …" + token[max(0, len(token)-12):]
	}
	return safe(line)
}
