package main

import (
	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

type attenuateOptions struct {
	token   tokenFlags
	caveats []string
	exact   bool
	out     string
}

func newAttenuate(a *app) *cobra.Command {
	var o attenuateOptions
	cmd := &cobra.Command{
		Use:   "attenuate",
		Short: "narrow a token, offline",
		Long: `Narrow a token: append conditions that it must satisfy from now on. This needs no
key and no network, and it cannot be undone by whoever receives the result.

A branch condition with a fresh nonce goes in first, unless one is given, so that
two narrowings of one token can be revoked apart. writ help caveats lists the
conditions.`,
		Example: `  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 > t
  writ attenuate -c 'branch helper' -c 'action read' < t > t2
  writ inspect < t2`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.attenuate(cmd, &o) },
	}
	o.token.add(cmd)
	cmd.Flags().StringArrayVarP(&o.caveats, "caveat", "c", nil, "a `condition` to add; repeat it for more")
	cmd.Flags().BoolVar(&o.exact, "exact", false, "add exactly these: equal narrowings are then one branch")
	cmd.Flags().StringVar(&o.out, "out", "", "write the token to this new `file`, mode 0600")
	completeCaveats(cmd)
	return cmd
}

func (a *app) attenuate(cmd *cobra.Command, o *attenuateOptions) error {
	if len(o.caveats) == 0 {
		return usage(cmd, "at least one --caveat is needed")
	}
	conditions, err := a.conditions(o.caveats)
	if err != nil {
		return err
	}
	token, err := o.token.read(cmd)
	if err != nil {
		return err
	}
	narrow := token.Attenuate
	if o.exact {
		narrow = token.AttenuateExact
	}
	narrowed, err := narrow(conditions...)
	if err != nil {
		return err
	}
	return a.emitToken(cmd, o.out, narrowed)
}

// conditions completes and checks what a person typed.
func (a *app) conditions(typed []string) ([]string, error) {
	out := make([]string, len(typed))
	for i, c := range typed {
		completed, err := caveats.Complete(a.rand, c)
		if err != nil {
			return nil, err
		}
		out[i] = completed
	}
	return out, nil
}

// tokenAnswer is a token as --output json prints it.
type tokenAnswer struct {
	Token  string              `json:"token,omitempty"`
	ID     capability.TokenID  `json:"id"`
	Branch capability.BranchID `json:"branch"`
	File   string              `json:"file,omitempty"`
}

func (a *app) emitToken(cmd *cobra.Command, out string, t *capability.Token) error {
	ins, err := t.Inspect()
	if err != nil {
		return err
	}
	answer := tokenAnswer{ID: ins.Identifier.ID, Branch: ins.Branch}
	if out != "" && out != "-" {
		if err := writeSecret(cmd, out, t.Text()); err != nil {
			return err
		}
		answer.File = out
	} else {
		answer.Token = t.Text()
	}
	return a.emit(cmd, answer, func(p *printer) {
		if answer.Token != "" {
			p.line("%s", answer.Token)
		}
	})
}
