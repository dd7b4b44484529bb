package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

type revokeOptions struct {
	conn     connection
	token    tokenFlags
	reason   string
	whole    bool
	id       string
	branch   string
	subject  string
	holder   string
	device   string
	audience string
	epoch    uint32
}

func newRevoke(a *app) *cobra.Command {
	var o revokeOptions
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "revoke a token's branch, a token, or everything of a subject, key or audience",
		Long: `Revoke the token on standard input: exactly this branch of it and what was derived
from it. A token as it was issued is its own whole tree. Holding the token is all
that this needs; with --whole, which reaches the siblings too, the credential must
allow it.

With --id, --subject, --holder, --device, --for-audience or --epoch nothing is read:
all that the name stands for is revoked. Subject and audience mean what was issued
until now.

When the command ends, no service accepts later than its bound from then.`,
		Example: `  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 > t
  writ attenuate -c 'branch helper' < t > t2
  writ revoke --reason leaked < t2
  writ revoke --reason 'left the company' --subject agent-42`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.revoke(cmd, &o) },
	}
	o.conn.add(cmd)
	o.token.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.reason, "reason", "", "`why`, for the audit log; required")
	f.BoolVar(&o.whole, "whole", false, "revoke the whole token, whichever branch is given")
	f.StringVar(&o.id, "id", "", "revoke the token with this `id`")
	f.StringVar(&o.branch, "branch", "", "with --id: only this `branch` of it")
	f.StringVar(&o.subject, "subject", "", "revoke all tokens of this `subject`")
	f.StringVar(&o.holder, "holder", "", "revoke this holder `key` (jkt:… or x5t:…)")
	f.StringVar(&o.device, "device", "", "revoke this `device`")
	f.StringVar(&o.audience, "for-audience", "", "revoke all tokens for this `audience`")
	f.Uint32Var(&o.epoch, "epoch", 0, "revoke the master key of this `epoch`, and all minted with it")
	return cmd
}

// named returns the request for what the flags name, or nil for the token on
// standard input.
func (o *revokeOptions) named(cmd *cobra.Command) (*api.RevokeRequest, error) {
	var out *api.RevokeRequest
	var flags []string
	set := func(flag string, r api.RevokeRequest) {
		if cmd.Flags().Changed(flag) {
			flags = append(flags, "--"+flag)
			r.Reason = o.reason
			out = &r
		}
	}
	set("id", api.RevokeRequest{Kind: api.RevokeToken, Token: o.id})
	set("subject", api.RevokeRequest{Kind: api.RevokeSubject, Subject: o.subject})
	set("holder", api.RevokeRequest{Kind: api.RevokeHolder, Holder: o.holder})
	set("device", api.RevokeRequest{Kind: api.RevokeDevice, Device: o.device})
	set("for-audience", api.RevokeRequest{Kind: api.RevokeAudience, Audience: o.audience})
	set("epoch", api.RevokeRequest{Kind: api.RevokeEpoch, Epoch: o.epoch})
	if len(flags) > 1 {
		return nil, usage(cmd, "%s: one at a time", strings.Join(flags, " and "))
	}
	if o.branch != "" {
		if out == nil || out.Kind != api.RevokeToken {
			return nil, usage(cmd, "--branch needs --id")
		}
		out.Kind, out.Branch = api.RevokeBranch, o.branch
	}
	if out != nil && (o.whole || o.token.file != "") {
		return nil, usage(cmd, "%s names what to revoke: no token is read", flags[0])
	}
	return out, o.wellFormed(cmd)
}

// wellFormed refuses names that nothing can have, before anyone is asked.
func (o *revokeOptions) wellFormed(cmd *cobra.Command) error {
	for _, f := range []struct {
		name, value, want string
		parse             func(string) error
	}{
		{"id", o.id, "token id: a UUID in lower case", func(s string) error { _, err := capability.ParseTokenID(s); return err }},
		{"branch", o.branch, "branch id: 32 hexadecimal digits", func(s string) error { _, err := capability.ParseBranchID(s); return err }},
		{"holder", o.holder, "key: jkt:… or x5t:…", func(s string) error { _, err := capability.ParseHolderKey(s); return err }},
		{"device", o.device, "device id: 64 hexadecimal digits", func(s string) error { _, err := capability.ParseDeviceID(s); return err }},
		{"subject", o.subject, "subject: 1 to 200 visible ASCII characters", validName(capability.MaxSubject)},
		{"for-audience", o.audience, "audience: 1 to 100 visible ASCII characters", validName(capability.MaxAudience)},
	} {
		if cmd.Flags().Changed(f.name) && f.parse(f.value) != nil {
			return usage(cmd, "--%s %q is no %s", f.name, f.value, f.want)
		}
	}
	return nil
}

func validName(most int) func(string) error {
	return func(s string) error {
		if !capability.ValidName(s, most) {
			return capability.ErrBadID
		}
		return nil
	}
}

func (a *app) revoke(cmd *cobra.Command, o *revokeOptions) error {
	if o.reason == "" {
		return usage(cmd, "--reason is required")
	}
	named, err := o.named(cmd)
	if err != nil {
		return err
	}
	revoke := func(ctx context.Context, c *client.Client) (*api.RevokeResponse, error) { return c.Revoke(ctx, *named) }
	if named == nil {
		token, err := o.token.read(cmd)
		if err != nil {
			return err
		}
		r := api.SelfRevokeRequest{Token: token.Text(), Reason: o.reason, Whole: o.whole}
		revoke = func(ctx context.Context, c *client.Client) (*api.RevokeResponse, error) { return c.RevokeSelf(ctx, r) }
	}
	return ask(a, cmd, &o.conn, revoke, func(p *printer, r *api.RevokeResponse) {
		what := string(r.Kind)
		if r.Token != "" {
			what += " " + r.Token
		}
		if r.Branch != "" {
			what += " branch " + r.Branch
		}
		if named != nil && r.Token == "" {
			what += " " + revoked(named)
		}
		also := ""
		if r.Reached > 0 {
			also = fmt.Sprintf(", and %d derived from it", r.Reached)
		}
		p.line("revoked %s%s", what, also)
	})
}
