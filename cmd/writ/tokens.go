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

func newTokens(a *app) *cobra.Command {
	return group("tokens", "look into the registry of issued tokens", newTokensList(a), newTokensShow(a), newTokensRevoked(a))
}

func newTokensList(a *app) *cobra.Command {
	var conn connection
	var q client.TokenQuery
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list issued tokens that have not ended, newest first",
		Long: `List issued tokens that have not ended, newest first. What is listed is no credential.
A page is as fresh as the node that answered; --after takes the next one.`,
		Example: `  writ tokens list --audience corp`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Limit < 0 {
				return usage(cmd, "--limit is not negative")
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.TokenList, error) {
				page, err := c.Tokens(ctx, q)
				if err == nil {
					a.sayMore(cmd, page.Next)
				}
				return page, err
			}, a.printTokens)
		},
	}
	conn.add(cmd)
	f := cmd.Flags()
	f.StringVar(&q.Audience, "audience", "", "only tokens for this `audience`")
	f.StringVar(&q.Subject, "subject", "", "only tokens of this `subject`")
	f.StringVar(&q.Owner, "owner", "", "only tokens of this `owner`")
	f.StringVar(&q.Cursor, "after", "", "the next page, from the `cursor` of the one before")
	f.IntVar(&q.Limit, "limit", 0, "at most this `many` (default 100)")
	return cmd
}

func (a *app) printTokens(p *printer, page *api.TokenList) {
	var rows [][]string
	for _, t := range page.Tokens {
		state := "live"
		switch {
		case t.Revoked:
			state = "revoked"
		case a.now().After(t.NotAfter):
			state = "expired"
		}
		rows = append(rows, []string{t.ID.String(), state, t.Audience, t.Subject, t.Owner, t.Purpose, a.when(t.NotAfter)})
	}
	p.table([]string{"ID", "STATE", "AUDIENCE", "SUBJECT", "OWNER", "PURPOSE", "NOT AFTER"}, rows)
}

func newTokensShow(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "show what the registry knows of a token",
		Long:  "Show what the registry knows of a token. What is shown is no credential.",
		Example: `  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    --output json > t.json
  writ tokens show "$(sed -n 's/.*"id": "\(.*\)".*/\1/p' t.json)"`,
		Args: exactArguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := capability.ParseTokenID(args[0])
			if err != nil {
				return usage(cmd, "%q is no token id", args[0])
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.TokenInfo, error) {
				return c.Token(ctx, id)
			}, a.printToken)
		},
	}
	conn.add(cmd)
	return cmd
}

func (a *app) printToken(p *printer, t *api.TokenInfo) {
	p.field("id", t.ID.String())
	p.field("revoked", map[bool]string{true: "yes", false: "no"}[t.Revoked])
	p.field("audience", t.Audience)
	p.field("subject", t.Subject)
	p.field("owner", t.Owner)
	p.field("purpose", t.Purpose)
	p.field("auditor", t.Auditor)
	if g := t.Agent; g != nil {
		p.field("agent", strings.TrimSpace(g.Name+" "+g.Version+" "+g.Host+" "+g.ProcessHash))
	}
	p.field("issued", a.when(t.Issued))
	p.field("issued by", t.IssuedBy)
	p.field("not after", a.when(t.NotAfter))
	p.field("key", fmt.Sprintf("epoch %d, generation %d", t.Epoch, t.Generation))
	p.field("branch", t.Branch.String())
	if t.Parent != nil {
		p.field("parent", t.Parent.String())
	}
	p.field("actors", strings.Join(t.Actors, " "))
	for _, c := range t.Caveats {
		p.field("caveat", c)
	}
	for _, b := range t.Budgets {
		p.field("budget", fmt.Sprintf("branch %s: %d of %d not yet leased, %d in open leases", b.Branch, b.Remaining, b.Limit, b.Leased))
	}
}

func newTokensRevoked(a *app) *cobra.Command {
	var conn connection
	var q client.RevocationQuery
	var kind string
	cmd := &cobra.Command{
		Use:   "revoked",
		Short: "list the revocations in force",
		Long: `List the revocations in force: until what they name has ended by itself. A page is as
fresh as the node that answered; --after takes the next one.`,
		Example: "  writ tokens revoked --kind branch",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Limit < 0 {
				return usage(cmd, "--limit is not negative")
			}
			q.Kind = api.RevocationKind(kind)
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.RevocationList, error) {
				page, err := c.Revocations(ctx, q)
				if err == nil {
					a.sayMore(cmd, page.Next)
				}
				return page, err
			}, a.printRevocations)
		},
	}
	conn.add(cmd)
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "only this `kind`: token, branch, subject, holder, device, audience or epoch")
	f.StringVar(&q.Cursor, "after", "", "the next page, from the `cursor` of the one before")
	f.IntVar(&q.Limit, "limit", 0, "at most this `many` (default 100)")
	completeWords(cmd, "kind", "token", "branch", "subject", "holder", "device", "audience", "epoch")
	return cmd
}

// sayMore tells how to get the next page, if there is one.
func (a *app) sayMore(cmd *cobra.Command, next string) {
	if next != "" {
		a.say(cmd, "there are more: --after %s", next)
	}
}

func (a *app) printRevocations(p *printer, page *api.RevocationList) {
	var rows [][]string
	for _, r := range page.Revocations {
		rows = append(rows, []string{string(r.Kind), revoked(&r.RevokeRequest), r.By, r.Reason, a.when(r.At), a.when(r.Expires)})
	}
	p.table([]string{"KIND", "WHAT", "BY", "REASON", "AT", "UNTIL"}, rows)
}

// revoked is what a revocation names.
func revoked(r *api.RevokeRequest) string {
	switch r.Kind {
	case api.RevokeBranch:
		return r.Token + " " + r.Branch
	case api.RevokeEpoch:
		return fmt.Sprint(r.Epoch)
	}
	return r.Token + r.Subject + r.Holder + r.Device + r.Audience
}
