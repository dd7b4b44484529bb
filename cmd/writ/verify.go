package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

type verifyOptions struct {
	conn      connection
	token     tokenFlags
	proof     proofFlags
	audience  string
	service   string
	action    string
	resource  string
	arguments []string
	facts     []string
	clientIP  string
	honor     []string
	spend     bool
	keyless   bool
	register  bool
}

func newVerify(a *app) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "decide whether a token allows a call, and say why not",
		Long: `Decide whether a token allows a call, as a service would: with the audience's
keys, or with --keyless through the authority's answer, and with what is revoked
at this moment. Nothing is spent unless --spend says so: a max-calls that is spent
already shows only then.

Exit code 0 is allow, 2 is deny, 1 is an error: nothing was decided.`,
		Example: `  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    -c 'action read' -c 'resource files/**' > t
  writ verify --action read --resource files/q3 < t
  writ verify --action write --resource files/q3 < t || test $? -eq 2`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.verify(cmd, &o) },
	}
	o.conn.add(cmd)
	o.token.add(cmd)
	o.proof.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.audience, "audience", "", "accept tokens of this `audience` only (default: the one that the token names)")
	f.StringVar(&o.service, "service", "", "`name` of the service that decides")
	f.StringVar(&o.action, "action", "", "`what` the call does, one word")
	f.StringVar(&o.resource, "resource", "", "`what` it does it to, such as files/reports/q3")
	f.StringArrayVar(&o.arguments, "argument", nil, "an argument of the call, `NAME=VALUE`: a JSON number, true, false, or else a string")
	f.StringArrayVar(&o.facts, "context", nil, "a fact that the service supplies, `KEY=VALUE`")
	f.StringVar(&o.clientIP, "client-ip", "", "the caller's `address`")
	f.StringArrayVar(&o.honor, "honor", nil, "log `level` that the service honors")
	f.BoolVar(&o.spend, "spend", false, "spend a call from the token's budgets")
	f.BoolVar(&o.keyless, "keyless", false, "have the authority check the signature instead of fetching keys")
	f.BoolVar(&o.register, "registered", false, "accept registered tokens only")
	return cmd
}

// decision is what --output json prints.
type decision struct {
	Decision string                `json:"decision"` // allow or deny
	Code     capability.Code       `json:"code,omitempty"`
	Caveat   string                `json:"caveat,omitempty"`
	Detail   string                `json:"detail,omitempty"`
	ID       *capability.TokenID   `json:"id,omitempty"`
	Branch   *capability.BranchID  `json:"branch,omitempty"`
	Audience string                `json:"audience,omitempty"`
	Subject  string                `json:"subject,omitempty"`
	NotAfter *time.Time            `json:"not_after,omitempty"`
	LogLevel string                `json:"log_level,omitempty"`
	Spent    bool                  `json:"spent"`
	Branches []capability.BranchID `json:"branches,omitempty"`
}

// notDecided are the refusals that say that no decision could be made.
func notDecided(code capability.Code) bool {
	return code == capability.CodeUnavailable || code == capability.CodeStaleRevocations
}

func (a *app) verify(cmd *cobra.Command, o *verifyOptions) error {
	req, err := o.request(cmd)
	if err != nil {
		return err
	}
	for _, l := range o.honor {
		if !slices.Contains(caveats.LogLevels(), l) {
			return usage(cmd, "--honor %q is none of %s", l, strings.Join(caveats.LogLevels(), ", "))
		}
	}
	words, err := o.token.words(cmd)
	if err != nil {
		// Too large to be read is a decision too.
		if f := explain(err); f.Code == string(capability.CodeTooLarge) {
			return a.decide(cmd, o, nil, capability.CodeTooLarge)
		}
		return err
	}
	token, err := parseSet(words)
	if err != nil {
		return a.decide(cmd, o, nil, err)
	}
	if req.Holder, err = o.proof.holder(a, cmd, words[0]); err != nil {
		return err
	}
	req.Context = append(req.Context, pop.Facts(req.Holder)...)
	audience := o.audience
	if audience == "" {
		// Nobody has vouched for it: it only says whose keys to ask for.
		ins, err := token.Inspect()
		if err != nil {
			return a.decide(cmd, o, nil, err)
		}
		audience = ins.Identifier.Audience
	}
	c, err := o.conn.open(a)
	if err != nil {
		return err
	}
	defer c.Close()
	v, done, err := a.verifier(cmd.Context(), c, o, audience)
	if err != nil {
		return err
	}
	defer done()
	req.Now = a.now()
	var grant capability.Grant
	if o.spend {
		err = v.Verify(cmd.Context(), &grant, token.Bytes(), req)
	} else {
		err = v.DryRun(cmd.Context(), &grant, token.Bytes(), req)
	}
	if err != nil && notDecided(capability.CodeOf(err)) {
		return fail("not decided", err)
	}
	return a.decide(cmd, o, &grant, err)
}

// verifier opens what a service would: a replica of the audience, and a
// verifier on it with the standard caveats.
func (a *app) verifier(ctx context.Context, c *client.Client, o *verifyOptions, audience string) (*capability.Verifier, func(), error) {
	checker, err := caveats.Standard(caveats.Honor(o.honor...))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	// A replica waits for an authority that does not answer; a person need not.
	if err := c.Ready(ctx); err != nil {
		return nil, nil, err
	}
	// One call at a time: what is leased beyond it would only have to go back.
	r, err := replica.Open(ctx, replica.Config{
		Client: c, Audiences: []string{audience}, Keyless: o.keyless, Registered: o.register,
		Leases: replica.LeaseConfig{Want: 1},
	})
	if err != nil {
		err = fail("audience "+audience, err)
		if f, ok := errors.AsType[*failure](err); ok && !o.keyless && (f.Code == string(capability.CodeActionDenied) || f.Code == string(capability.CodeResourceDenied)) {
			f.Hint = "a credential that may not have the audience's keys may still verify with --keyless"
		}
		return nil, nil, err
	}
	v, err := r.Verifier(checker)
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return v, func() { _ = r.Close() }, nil
}

func (o *verifyOptions) request(cmd *cobra.Command) (*capability.Request, error) {
	req := &capability.Request{Service: o.service, Action: o.action}
	var err error
	if o.resource != "" {
		if req.Resource, err = caveats.SplitResource(o.resource); err != nil {
			return nil, usage(cmd, "--resource %q is no path such as files/q3", o.resource)
		}
	}
	if req.Arguments, err = fields(cmd, "argument", o.arguments); err != nil {
		return nil, err
	}
	if req.Context, err = fields(cmd, "context", o.facts); err != nil {
		return nil, err
	}
	if o.clientIP != "" {
		if req.Client, err = netip.ParseAddr(o.clientIP); err != nil {
			return nil, usage(cmd, "--client-ip %q is no address", o.clientIP)
		}
	}
	return req, nil
}

// fields reads NAME=VALUE: a JSON literal where VALUE is one, else a string.
func fields(cmd *cobra.Command, flag string, texts []string) (capability.Fields, error) {
	var out capability.Fields
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, usage(cmd, "--%s is NAME=VALUE, got %q", flag, text)
		}
		out = append(out, capability.Field{Name: name, Value: typed(value)})
	}
	return out, nil
}

func typed(s string) capability.Value {
	if s == "true" || s == "false" {
		return capability.BoolValue(s == "true")
	}
	if v := capability.NumberValue(s); v.Kind() == capability.KindNumber {
		return v
	}
	if strings.HasPrefix(s, `"`) {
		var text string
		if json.Unmarshal([]byte(s), &text) == nil {
			return capability.StringValue(text)
		}
	}
	return capability.StringValue(s)
}

// decide prints the decision. A grant is of a token whose MAC has verified
// only if err is nil or says something that is said after that.
func (a *app) decide(cmd *cobra.Command, o *verifyOptions, g *capability.Grant, err error) error {
	d := decision{Decision: "allow", Spent: o.spend && err == nil}
	if err != nil {
		d.Decision, d.Code = "deny", capability.CodeOf(err)
		if r, ok := errors.AsType[*capability.Refusal](err); ok {
			d.Caveat, d.Detail = r.Caveat, r.Detail
		}
	} else {
		id, branch, notAfter := g.ID(), g.Branch(), g.NotAfter()
		d.ID, d.Branch, d.NotAfter = &id, &branch, &notAfter
		d.Audience, d.Subject, d.LogLevel = g.Audience(), g.Subject(), g.LogLevel()
		d.Branches = g.AppendBranches(nil)
	}
	printErr := a.emit(cmd, d, func(p *printer) {
		if err == nil {
			p.line("allow")
			return
		}
		p.line("deny %s", string(d.Code))
	})
	if printErr != nil {
		return printErr
	}
	if err == nil {
		a.say(cmd, "%s, for %s, branch %s, not after %s", d.Subject, d.Audience, d.Branch.String(), a.when(*d.NotAfter))
		return nil
	}
	a.say(cmd, "%s", why(&d))
	return denied(d.Code)
}

// why explains a refusal to the owner.
func why(d *decision) string {
	s := refusals[d.Code]
	if s == "" {
		s = "the token does not allow this call"
	}
	if d.Caveat != "" {
		s += fmt.Sprintf(": %s (%s)", d.Caveat, caveats.Describe(d.Caveat))
	}
	if d.Detail != "" {
		s += "; " + d.Detail
	}
	return s
}

var refusals = map[capability.Code]string{
	capability.CodeMalformed:         "this is no token",
	capability.CodeTooLarge:          "this is too large to be a token",
	capability.CodeUnknownKey:        "there is no key for what it says it is: another audience, another authority, or too old",
	capability.CodeBadSignature:      "the signature does not match: it was altered, or never issued",
	capability.CodeRevoked:           "it, or something that it hangs on, was revoked",
	capability.CodeUnregistered:      "the authority did not issue it",
	capability.CodeExpired:           "it has expired",
	capability.CodeNotYetValid:       "it is not valid yet",
	capability.CodeActionDenied:      "the action is not among those allowed",
	capability.CodeResourceDenied:    "the resource is not among those allowed",
	capability.CodeArgumentDenied:    "an argument is outside what is allowed",
	capability.CodeServiceDenied:     "the service is not among those allowed",
	capability.CodeClientDenied:      "the caller's address is not among those allowed",
	capability.CodeContextDenied:     "the circumstances are not those allowed",
	capability.CodeRequestMismatch:   "it is for another request",
	capability.CodeHolderProof:       "it needs proof of possession of a key",
	capability.CodeReplayed:          "the proof or the request was used before",
	capability.CodeBudgetExhausted:   "its calls are spent",
	capability.CodeRateLimited:       "it is used too often; try again later",
	capability.CodeDischargeRequired: "it needs a discharge that did not come with it",
	capability.CodeDischargeInvalid:  "a discharge does not verify, is not bound to it, or belongs to nothing",
	capability.CodeUnknownCaveat:     "a condition is not known, and what is not known denies",
	capability.CodeObligation:        "it obliges the service to something that it does not honor (--honor)",
	capability.CodeNotForwardable:    "it is bound to another hop",
}
