package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/discharger"
	"github.com/writ-dev/writ/authority/replica"
)

type dischargerOptions struct {
	dir, listen, location string
	hosts                 []string
	audience              string
	untilEOF              bool
}

func newDischarger(a *app) *cobra.Command {
	var o dischargerOptions
	var conn connection
	cmd := &cobra.Command{
		Use:   "discharger",
		Short: "run an attestation discharger without an authority",
		Long: `Run an attestation discharger without an authority, with a key of its own. It answers
"attested POLICY" by the policies in DIR/policies/NAME.json and the roots in
DIR/roots/NAME.pem, and keeps devices and used challenges in DIR/state.json.

It prints what the authority's configuration needs to name it in caveats, and the
fingerprint that holders pin. writ device list, show, revoke and forget look into it with
--store DIR, while it runs too.

With --audience it follows an authority's revocations, too, with the credential of a
service of that audience, which it renews: whatever device or holder key is revoked there
is attested no more, and nothing is while the authority cannot be reached.`,
		Example: `  mkdir -p d/policies d/roots
  writ device policy show dev > d/policies/dev.json
  writ device roots show dev > d/roots/dev.pem
  writ discharger --dir d --listen 127.0.0.1:0 --until-eof < /dev/null`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.discharger(cmd, &o, &conn) },
	}
	conn.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "`directory` of its keys, policies, roots and state, mode 0700")
	f.StringVar(&o.listen, "listen", "127.0.0.1:7482", "`HOST:PORT`")
	f.StringVar(&o.audience, "audience", "", "follow the authority's revocations as a service of this `audience`")
	f.StringVar(&o.location, "location", "", "`location` that caveats give (default https://HOST:PORT)")
	f.StringArrayVar(&o.hosts, "host", nil, "a `name` or address in its certificate; repeat it for more")
	f.BoolVar(&o.untilEOF, "until-eof", false, "end when standard input does: for a parent process")
	return cmd
}

// dischargerReady is what --output json prints.
type dischargerReady struct {
	Addr        string `json:"addr"`
	Location    string `json:"location"`
	PublicKey   string `json:"public_key"`
	Fingerprint string `json:"fingerprint"`
}

func (a *app) discharger(cmd *cobra.Command, o *dischargerOptions, conn *connection) error {
	if o.dir == "" {
		return usage(cmd, "--dir is required")
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockDev(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	key, err := discharger.OpenKey(o.dir)
	if err != nil {
		return err
	}
	certs, err := discharger.OpenCertificates(o.dir, o.hosts, a.now)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	file, err := discharger.OpenFile(o.dir, a.now)
	if err != nil {
		return err
	}
	store := discharger.Store(file)
	if o.audience != "" {
		r, err := a.revocations(cmd.Context(), conn, o.audience, log)
		if err != nil {
			return err
		}
		defer r.Close()
		store = discharger.Follow(file, r)
	}
	s, err := discharger.New(discharger.Config{Key: key, Store: store, Clock: a.now, Rand: a.rand, Logger: log})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	public := s.Public()
	r := dischargerReady{
		Addr: ln.Addr().String(), Location: o.location, Fingerprint: certs.Fingerprint(),
		PublicKey: base64.StdEncoding.EncodeToString(public[:]),
	}
	if r.Location == "" {
		r.Location = "https://" + r.Addr
	}
	a.say(cmd, "for the configuration of writ serve; and for holders: --discharger %s=%s#%s", r.Location, r.Addr, r.Fingerprint)
	if err := a.emit(cmd, r, func(p *printer) {
		p.line("[[discharger]]")
		p.line("name = %q", "attestation")
		p.line("location = %q", r.Location)
		p.line("public_key = %q", r.PublicKey)
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	if o.untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, a.stdin)
			cancel()
		}()
	}
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	stop := context.AfterFunc(ctx, func() {
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer done()
		_ = srv.Shutdown(grace)
	})
	defer stop()
	if err := srv.Serve(tls.NewListener(ln, certs.TLSConfig())); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// revocations follows an authority with a service's credential.
func (a *app) revocations(ctx context.Context, conn *connection, audience string, log *slog.Logger) (*replica.Replica, error) {
	cfg, err := conn.config(a)
	if err != nil {
		return nil, err
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, err
	}
	return replica.Open(ctx, replica.Config{
		Client: c, Audiences: []string{audience}, Keyless: true, CredentialFile: cfg.TokenFile, Logger: log,
	})
}
