package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// connection says how to reach the authority: flags over the environment.
type connection struct {
	addrs       []string
	fingerprint string
	credential  string
	key         string
	inTPM       bool
	tpm         *tpmFlags // of a command that has them; nil: the environment says which TPM
	timeout     time.Duration
}

func (c *connection) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&c.addrs, "addr", nil, "the authority's `HOST:PORT`, several apart by commas (WRIT_ADDR)")
	f.StringVar(&c.fingerprint, "ca-fingerprint", "", "`SHA-256` of the authority's CA certificate (WRIT_CA_FINGERPRINT)")
	f.StringVar(&c.credential, "credential-file", "", "`file` with the credential to act with (WRIT_TOKEN_FILE)")
	f.StringVar(&c.key, "key-file", "", "`file` with the key that the credential names, where it names one (WRIT_KEY_FILE)")
	f.BoolVar(&c.inTPM, "tpm-key", false, "the credential names the key that this machine's TPM holds (WRIT_TPM, WRIT_TPM_DIR)")
	cmd.MarkFlagsMutuallyExclusive("key-file", "tpm-key")
	f.DurationVar(&c.timeout, "timeout", 0, "`limit` on one attempt at one node, such as 3s")
}

// config puts flags over the environment.
func (c *connection) config(a *app) (client.Config, error) {
	cfg, err := client.ConfigFromEnv(func(key string) string {
		switch {
		case key == client.EnvAddr && len(c.addrs) > 0:
			return strings.Join(c.addrs, ",")
		case key == client.EnvFingerprint && c.fingerprint != "":
			return c.fingerprint
		case key == client.EnvTokenFile && c.credential != "":
			return c.credential
		case key == client.EnvKeyFile && c.key != "":
			return c.key
		}
		return a.getenv(key)
	})
	if err != nil {
		return cfg, err
	}
	if c.inTPM {
		if c.tpm == nil {
			c.tpm = new(tpmFlags)
		}
		cfg.KeyFile = ""
		if cfg.Prover, err = c.tpm.key(a); err != nil {
			return cfg, err
		}
	}
	cfg.Timeout = c.timeout
	// A person waits: an outage is told within seconds.
	cfg.Attempts = max(3, 4*len(cfg.Addrs))
	cfg.Now, cfg.Rand = a.now, a.rand
	return cfg, nil
}

// ask makes a call to the authority and prints its answer.
func ask[T any](a *app, cmd *cobra.Command, conn *connection,
	call func(ctx context.Context, c *client.Client) (T, error), text func(p *printer, answer T)) error {
	c, err := conn.open(a)
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := call(cmd.Context(), c)
	if err != nil {
		return err
	}
	return a.emit(cmd, answer, func(p *printer) { text(p, answer) })
}

// open returns a client. Whoever calls it closes it.
func (c *connection) open(a *app) (*client.Client, error) {
	cfg, err := c.config(a)
	if err != nil {
		return nil, err
	}
	return client.New(cfg)
}

var problemHints = map[api.Code]string{
	api.CodeUnauthorized:         "the authority takes capabilities of the audience writ: set WRIT_TOKEN_FILE",
	api.CodeOverloaded:           "nothing was done; try again in a moment",
	api.CodeNotLeader:            "nothing was done; try again in a moment",
	api.CodeIndeterminate:        "it may have been done; look before you do it again",
	api.CodeDiskFull:             "nothing was done; the authority's disk is full",
	capability.CodeUnknownKey:    "is the credential of this authority? WRIT_TOKEN_FILE may be of another one",
	capability.CodeActionDenied:  "the credential does not allow this; writ inspect shows what it allows",
	capability.CodeRevoked:       "the credential was revoked; writ keys root, on a node, makes a new one",
	capability.CodeExpired:       "the credential has expired; a service renews its own, writ keys root makes a new root",
	capability.CodeUnknownCaveat: "writ help caveats lists the conditions",
}

func explainClient(err error) *failure {
	if e, ok := errors.AsType[*client.Error](err); ok {
		f := &failure{Code: string(e.Problem.Code), Message: string(e.Problem.Code), Hint: e.Problem.Hint, Ref: e.Problem.Reference}
		if e.Problem.Detail != "" {
			f.Message += ": " + lower(e.Problem.Detail)
		}
		if f.Hint == "" {
			f.Hint = problemHints[e.Problem.Code]
		}
		return f
	}
	msg := lower(err.Error())
	switch {
	case errors.Is(err, client.ErrNoToken):
		return &failure{Code: "no_credential", Message: msg, Hint: "set WRIT_TOKEN_FILE, or use --credential-file"}
	case errors.Is(err, client.ErrFingerprint):
		return &failure{Code: "fingerprint", Message: msg, Hint: "compare WRIT_CA_FINGERPRINT with what the authority printed when it was formed"}
	case errors.Is(err, client.ErrUnreachable):
		return &failure{Code: "unreachable", Message: msg, Hint: "is it running? check WRIT_ADDR; writ doctor looks closer, writ dev starts a throw-away one"}
	case errors.Is(err, client.ErrConfig):
		return &failure{Code: "config", Message: msg, Hint: "set WRIT_ADDR and WRIT_CA_FINGERPRINT, or use --addr and --ca-fingerprint; writ help environment"}
	}
	return nil
}

// secondsOf is a lifetime as the API takes it.
func secondsOf(d time.Duration) (int64, error) {
	if d < 0 || d%time.Second != 0 {
		return 0, &failure{Code: "usage", Message: fmt.Sprintf("lifetime %s is not whole seconds", d), Hint: "such as 90s, 5m or 720h"}
	}
	return int64(d / time.Second), nil
}
