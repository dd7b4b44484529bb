package main

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

type proofOptions struct {
	token  tokenFlags
	tpm    tpmFlags
	inTPM  bool
	key    string
	method string
	url    string
	nonce  string
}

func newProof(a *app) *cobra.Command {
	var o proofOptions
	cmd := &cobra.Command{
		Use:   "proof",
		Short: "prove possession of a key for one call, for scripts",
		Long: `Prove possession of a key for one call: print the header DPoP (RFC 9449) that goes
beside "Authorization: DPoP TOKEN". It is good for this token, this method and this
URL, once, and for half a minute. Programs use the Go package caveats/pop instead.`,
		Example: `  writ key new --out agent.key
  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    --holder agent.key -c 'action read' > t
  writ proof --key-file agent.key --url https://files.corp.example/files/q3 < t
  # curl -H "Authorization: DPoP $(cat t)" -H "$(writ proof … < t)" https://…`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.proof(cmd, &o) },
	}
	o.token.add(cmd)
	o.tpm.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.inTPM, "tpm-key", false, "prove with the key that this machine's TPM holds")
	f.StringVar(&o.key, "key-file", "", "`file` with the key (WRIT_KEY_FILE)")
	f.StringVar(&o.method, "method", "GET", "HTTP `method` of the call")
	f.StringVar(&o.url, "url", "", "`URL` of the call")
	f.StringVar(&o.nonce, "nonce", "", "the server's `nonce`, if it asked for one (DPoP-Nonce)")
	return cmd
}

// proofAnswer is what --output json prints.
type proofAnswer struct {
	Proof  string `json:"proof"`
	Holder string `json:"holder"`
}

func (a *app) proof(cmd *cobra.Command, o *proofOptions) error {
	if o.url == "" {
		return usage(cmd, "--url is required")
	}
	if o.key == "" {
		o.key = a.getenv("WRIT_KEY_FILE")
	}
	if o.key == "" && !o.inTPM {
		return usage(cmd, "--key-file or --tpm-key is required")
	}
	words, err := o.token.words(cmd)
	if err != nil {
		return err
	}
	// Discharges that travel beside it are not part of what is proved.
	if _, err := capability.Parse(words[0]); err != nil {
		return err
	}
	k, err := o.open(a)
	if err != nil {
		return err
	}
	proof, err := k.Prove(cmd.Context(), pop.Call{
		Method: o.method, URI: o.url, Token: words[0], Nonce: o.nonce, Issued: a.now(),
	})
	if err != nil {
		return usage(cmd, "%s", lower(err.Error()))
	}
	return a.emit(cmd, proofAnswer{proof, k.HolderKey().String()}, func(p *printer) { p.line("%s: %s", pop.Header, proof) })
}

// open opens the key, in the TPM or in a file.
func (o *proofOptions) open(a *app) (*pop.Key, error) {
	if o.inTPM {
		return o.tpm.key(a)
	}
	return pop.ReadKeyFile(o.key)
}

// proofFlags are a proof that came with the call which verify judges.
type proofFlags struct {
	proof, method, url string
}

func (p *proofFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.proof, "proof", "", "the `DPoP` header that came with the call; needs --url")
	f.StringVar(&p.method, "method", "GET", "HTTP `method` of the call, for --proof")
	f.StringVar(&p.url, "url", "", "`URL` of the call, for --proof")
}

// holder is the evidence that the proof is, for a token of this text; nil is none.
func (p *proofFlags) holder(a *app, cmd *cobra.Command, text string) (capability.HolderProof, error) {
	if p.proof == "" {
		return nil, nil
	}
	u, err := url.Parse(p.url)
	if err != nil || u.Host == "" {
		return nil, usage(cmd, "--proof needs the --url of the call, got %q", p.url)
	}
	v, err := pop.New(pop.Config{Origins: []string{u.Scheme + "://" + u.Host}, MaxReplays: 1, Now: a.now})
	if err != nil {
		return nil, usage(cmd, "%s", lower(err.Error()))
	}
	proof := strings.TrimSpace(strings.TrimPrefix(p.proof, pop.Header+":"))
	return v.Holder(pop.Evidence{Proofs: []string{proof}, Token: text, Method: p.method, Path: u.EscapedPath()}), nil
}
