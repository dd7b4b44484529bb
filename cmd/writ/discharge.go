package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/atomicfile"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

type dischargeOptions struct {
	conn        connection
	tpm         tpmFlags
	token       tokenFlags
	dischargers []string
	wallet      string
	out         string
	watch       bool
}

func newDischarge(a *app) *cobra.Command {
	var o dischargeOptions
	cmd := &cobra.Command{
		Use:   "discharge",
		Short: "get every discharge that a token needs",
		Long: `Get every discharge that a token needs, by attesting this machine's TPM where that is
asked for, and print the token with them. What is printed is of use with the TPM's key alone: each
call proves it (writ proof).

Discharges are kept in a wallet, mode 0600, until they end. With --watch they are renewed
before that, for as long as the token lives, and --out is replaced in one step each time.
Only the authority is asked, and the dischargers that are named: a caveat's location is
nobody's word.`,
		Example: `  H=$(writ device id --output json | sed -n 's/.*"holder": *"\([^"]*\)".*/\1/p')
  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    --attested dev --holder "$H" > t
  writ discharge < t > whole`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.discharge(cmd, &o) },
	}
	o.conn.tpm = &o.tpm
	o.conn.add(cmd)
	o.tpm.add(cmd)
	o.tpm.addPosture(cmd)
	o.token.add(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&o.dischargers, "discharger", nil, "`LOCATION=HOST:PORT#FINGERPRINT` of another discharger to trust; repeat it for more")
	f.StringVar(&o.wallet, "wallet", "", "`file` to keep discharges in (default wallet, in the TPM directory)")
	f.StringVar(&o.out, "out", "", "write the token to this `file`, mode 0600, in one step")
	f.BoolVar(&o.watch, "watch", false, "renew the discharges before they end; needs --out")
	return cmd
}

// dischargeAnswer is what --output json prints.
type dischargeAnswer struct {
	Token   string    `json:"token,omitempty"`
	File    string    `json:"file,omitempty"`
	Expires time.Time `json:"expires,omitzero"` // of the first discharge that ends
}

func (a *app) discharge(cmd *cobra.Command, o *dischargeOptions) error {
	if o.watch && o.out == "" {
		return usage(cmd, "--watch needs --out")
	}
	token, err := o.token.read(cmd)
	if err != nil {
		return err
	}
	dischargers, done, err := o.open(a, cmd)
	if err != nil {
		return err
	}
	defer done()
	h, err := o.tpm.open(a)
	if err != nil {
		return err
	}
	if o.wallet == "" {
		dir, err := o.tpm.directory(a)
		if err != nil {
			return err
		}
		o.wallet = filepath.Join(dir, "wallet")
	}
	w, err := wallet.Open(wallet.Config{
		Attester: h, Dischargers: dischargers, Posture: o.tpm.posture(), File: o.wallet, Now: a.now,
		Waiting: func(location string) { a.say(cmd, "waiting for the discharger at %s", location) },
	})
	if err != nil {
		return err
	}
	each := func(whole *capability.Token, ends time.Time) error {
		answer := dischargeAnswer{Token: whole.Text(), Expires: ends}
		if o.out != "" {
			if err := atomicfile.Replace(o.out, []byte(whole.Text()+"\n")); err != nil {
				return err
			}
			answer.Token, answer.File = "", o.out
		}
		if !ends.IsZero() {
			a.say(cmd, "discharged until %s", a.when(ends))
		}
		return a.emit(cmd, answer, func(p *printer) {
			if answer.Token != "" {
				p.line("%s", answer.Token)
			}
		})
	}
	if o.watch {
		// It stays, with discharges and a credential in its memory.
		if err := pop.HardenProcess(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		err := w.Watch(cmd.Context(), token, each)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	whole, ends, err := w.Discharge(cmd.Context(), token)
	if err != nil {
		return err
	}
	return each(whole, ends)
}

// open returns a client for each discharger that may be asked.
func (o *dischargeOptions) open(a *app, cmd *cobra.Command) (map[string]wallet.Discharger, func(), error) {
	out := map[string]wallet.Discharger{}
	var clients []*client.Client
	done := func() {
		for _, c := range clients {
			c.Close()
		}
	}
	cfg, err := o.conn.config(a)
	if err == nil {
		own, err := client.New(cfg)
		if err != nil {
			return nil, nil, err
		}
		clients = append(clients, own)
		out[wallet.OwnLocation] = own
	} else if len(o.dischargers) == 0 {
		return nil, nil, err
	}
	for _, text := range o.dischargers {
		location, rest, ok := strings.Cut(text, "=")
		addr, fingerprint, both := strings.Cut(rest, "#")
		if !ok || !both || location == "" {
			done()
			return nil, nil, usage(cmd, "--discharger is LOCATION=HOST:PORT#FINGERPRINT, got %q", text)
		}
		c, err := client.New(client.Config{Addrs: []string{addr}, CAFingerprint: fingerprint, Now: a.now, Rand: a.rand})
		if err != nil {
			done()
			return nil, nil, err
		}
		clients = append(clients, c)
		out[location] = c
	}
	return out, done, nil
}

// maxDocument bounds a policy or a bundle of roots that is read.
const maxDocument = 1 << 20

// readDocument reads a file, or standard input for "-".
func readDocument(cmd *cobra.Command, path string) (string, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxDocument+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxDocument {
		return "", usage(cmd, "%s is over %d bytes", path, maxDocument)
	}
	return string(b), nil
}
