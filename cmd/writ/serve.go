package main

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
)

type serveOptions struct {
	config    configFlags
	form      bool
	rootToken string
	check     bool
	exit      bool // once the node is formed, or has joined

	clustered bool // a port for other nodes is opened whatever the configuration says
	join      func(context.Context, *authority.Config) error
}

func newServe(a *app) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run a node of the authority",
		Long: `Run a node of the authority, until SIGTERM or SIGINT ends it in good order.

The first time, --init forms a new authority and hands out its root token: to the
file that --root-token names, or once to standard output. Nothing of it is kept.

Configuration comes from a TOML file, the environment and flags, each over the one
before; writ help config tells every key.`,
		Example: `  writ serve --check --data-dir ./data --node-key ./node.key`,
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.serve(cmd, &o) },
	}
	o.config.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.form, "init", false, "form a new authority in an empty data directory")
	f.StringVar(&o.rootToken, "root-token", "", "with --init: write the root token to this new `file`, mode 0600")
	f.BoolVar(&o.check, "check", false, "check the configuration and stop")
	o.addExit(cmd, "with --init: exit once the authority is formed")
	return cmd
}

// addExit adds --exit, for nodes that a service manager runs from then on.
func (o *serveOptions) addExit(cmd *cobra.Command, use string) {
	cmd.Flags().BoolVar(&o.exit, "exit", false, use+", and leave it to a service manager to run it")
}

// ready is what --output json prints once the node serves.
type ready struct {
	Addr          string `json:"addr"`
	CAFingerprint string `json:"ca_fingerprint"`
	MetricsAddr   string `json:"metrics_addr,omitempty"`
	RootToken     string `json:"root_token,omitempty"`
	RootTokenFile string `json:"root_token_file,omitempty"`
}

func (a *app) serve(cmd *cobra.Command, o *serveOptions) error {
	c, err := o.config.load(a, cmd)
	if err != nil {
		return err
	}
	if o.clustered {
		if c.PeerListen == "" {
			c.PeerListen = defaultPeerListen
		}
		if c.Bound == 0 {
			c.Bound = duration(clusterBound)
		}
	}
	if o.rootToken != "" && !o.form {
		return usage(cmd, "--root-token needs --init")
	}
	if o.exit && !o.form && o.join == nil {
		return usage(cmd, "--exit needs --init")
	}
	if o.check {
		if err := checkDir(c.DataDir); err != nil {
			return err
		}
		return a.emit(cmd, map[string]string{"config": "ok"}, func(p *printer) { p.line("the configuration is in order") })
	}
	// An address in use must be known before an authority is formed.
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	var metrics net.Listener
	if c.MetricsListen != "" {
		if metrics, err = net.Listen("tcp", c.MetricsListen); err != nil {
			return err
		}
		defer metrics.Close()
	}
	var file *os.File
	if o.rootToken != "" {
		if file, err = formedFile(o.rootToken); err != nil {
			return err
		}
		defer file.Close()
	}
	log := c.logger(a.stderr)
	spans, flush, err := c.tracing(cmd.Context(), log)
	if err != nil {
		return err
	}
	defer flush()
	n, err := openMember(cmd.Context(), c, log, o.form, ln.Addr(), o.join)
	if err != nil {
		if file != nil {
			_ = os.Remove(file.Name())
		}
		return err
	}
	n.spans = spans
	r := ready{Addr: ln.Addr().String(), CAFingerprint: n.fingerprint()}
	if metrics != nil {
		r.MetricsAddr = metrics.Addr().String()
	}
	if n.formed != nil {
		r.RootToken = n.formed.RootToken
		if file != nil {
			_, err := file.WriteString(r.RootToken + "\n")
			if err := errors.Join(err, file.Sync()); err != nil {
				return errors.Join(err, n.Close())
			}
			r.RootToken, r.RootTokenFile = "", file.Name()
		}
	}
	err = a.emit(cmd, r, func(p *printer) {
		p.line("export WRIT_ADDR=%s", r.Addr)
		p.line("export WRIT_CA_FINGERPRINT=%s", r.CAFingerprint)
		switch {
		case r.RootTokenFile != "":
			p.line("export WRIT_TOKEN_FILE=%s", shellQuote(r.RootTokenFile))
		case r.RootToken != "":
			p.line("# the root token, shown once: keep it in a file of mode 0600")
			p.line("%s", r.RootToken)
		}
	})
	if err != nil {
		return errors.Join(err, n.Close())
	}
	if o.exit {
		return n.Close()
	}
	return n.serve(cmd.Context(), ln, metrics)
}
