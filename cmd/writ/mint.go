package main

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

type mintOptions struct {
	conn       connection
	request    api.IssueRequest
	agent      api.Agent
	ttl        time.Duration
	holders    []string
	thirdParty []string
	anyMachine bool
	attested   attestedFlags
	requestID  string
	out        string
}

func newMint(a *app) *cobra.Command {
	var o mintOptions
	cmd := &cobra.Command{
		Use:   "mint",
		Short: "have the authority issue a token",
		Long: `Have the authority issue a token. It is committed to the registry and the audit
log before it is printed. It lives 5 minutes unless --ttl says otherwise, and at
most 15 (for the audience writ, the authority's own, 30 days).

Owner and purpose are required: whoever finds the token must learn whom to ask.`,
		Example: `  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    -c 'action read' -c 'resource files/**' -c 'max-calls 3' > t`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.mint(cmd, &o) },
	}
	o.conn.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.request.Audience, "audience", "", "the `service` or group of services that the token is for")
	f.StringVar(&o.request.Subject, "subject", "", "`who` the token is for")
	f.StringVar(&o.request.Owner, "owner", "", "`whom` to ask about it")
	f.StringVar(&o.request.Purpose, "purpose", "", "what it is `for`")
	f.StringVar(&o.request.Auditor, "auditor", "", "`who` audits its use")
	f.DurationVar(&o.ttl, "ttl", 0, "`lifetime`, such as 90s (default 5m)")
	f.StringArrayVarP(&o.request.Caveats, "caveat", "c", nil, "a `condition`; repeat it for more")
	f.StringArrayVar(&o.holders, "holder", nil, "`key` that every call must prove: a key file, jkt:… or x5t:…; any of several")
	f.StringArrayVar(&o.thirdParty, "third-party", nil, "`DISCHARGER=CONDITION` that someone else must agree to; repeat it for more")
	f.BoolVar(&o.anyMachine, "any-machine", false, "third-party attestations may come from any machine")
	o.attested.add(cmd)
	f.StringVar(&o.agent.Name, "agent", "", "`name` of the agent, for the record")
	f.StringVar(&o.agent.Version, "agent-version", "", "`version` of the agent, for the record")
	f.StringVar(&o.agent.Host, "agent-host", "", "`host` of the agent, for the record")
	f.StringVar(&o.requestID, "request-id", "", "`UUIDv7` of this request: trying again with it returns the same token")
	f.StringVar(&o.out, "out", "", "write the token to this new `file`, mode 0600")
	completeCaveats(cmd)
	return cmd
}

func (a *app) mint(cmd *cobra.Command, o *mintOptions) error {
	r := &o.request
	for _, need := range []struct{ flag, value string }{
		{"audience", r.Audience}, {"subject", r.Subject}, {"owner", r.Owner}, {"purpose", r.Purpose},
	} {
		if need.value == "" {
			return usage(cmd, "--%s is required", need.flag)
		}
	}
	var err error
	if r.TTLSeconds, err = secondsOf(o.ttl); err != nil {
		return err
	}
	if r.Caveats, err = a.conditions(r.Caveats); err != nil {
		return err
	}
	if holder, err := holderCaveat(o.holders); err != nil {
		return err
	} else if holder != "" {
		r.Caveats = append(r.Caveats, holder)
	}
	for _, text := range o.thirdParty {
		name, condition, ok := strings.Cut(text, "=")
		if !ok || name == "" || condition == "" {
			return usage(cmd, "--third-party is DISCHARGER=CONDITION, got %q", text)
		}
		r.ThirdParty = append(r.ThirdParty, api.ThirdPartyRequest{Discharger: name, Condition: condition, AnyMachine: o.anyMachine})
	}
	tp, err := o.attested.request(cmd, o.holders)
	if err != nil {
		return err
	}
	if tp != nil {
		r.ThirdParty = append(r.ThirdParty, *tp)
	}
	if o.agent != (api.Agent{}) {
		r.Agent = &o.agent
	}
	ctx := cmd.Context()
	if o.requestID != "" {
		id, err := capability.ParseTokenID(o.requestID)
		if err != nil {
			return usage(cmd, "--request-id %q is no UUIDv7 in lower case", o.requestID)
		}
		ctx = client.WithRequestID(ctx, id)
	}
	c, err := o.conn.open(a)
	if err != nil {
		return err
	}
	defer c.Close()
	// A token that cannot be kept is not to be issued.
	out, err := newSecretFile(o.out)
	if err != nil {
		return err
	}
	issued, err := c.Issue(ctx, *r)
	if err != nil {
		return errors.Join(err, out.discard())
	}
	answer := mintAnswer{TokenResponse: issued}
	if out != nil {
		if err := out.write(issued.Token); err != nil {
			return err
		}
		answer.File, issued.Token = o.out, ""
	}
	a.say(cmd, "token %s for %s, not after %s", issued.ID.String(), r.Subject, a.when(issued.NotAfter))
	return a.emit(cmd, answer, func(p *printer) {
		if issued.Token != "" {
			p.line("%s", issued.Token)
		}
	})
}

// mintAnswer is what --output json prints.
type mintAnswer struct {
	*api.TokenResponse
	File string `json:"file,omitempty"`
}
