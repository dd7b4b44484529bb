package guard

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/capability"
)

// Verifier is what a guard asks of a *capability.Verifier.
type Verifier interface {
	// VerifyText decides whether the token set allows the request, and fills g.
	VerifyText(ctx context.Context, g *capability.Grant, text string, req *capability.Request, extra ...string) error
	// DryRun decides the same for the binary form, and spends nothing.
	DryRun(ctx context.Context, g *capability.Grant, set []byte, req *capability.Request) error
}

// ErrNoCredential is why a call without any token is refused.
var ErrNoCredential = errors.New("no credential")

// Credential is a token set as it came with a call, in text form.
type Credential struct {
	Token      string   // the root, and any discharges in the same text; "" is no credential
	Discharges []string // discharges that came beside it
}

// String never shows the credential.
func (Credential) String() string { return "(credential redacted)" }

// GoString never shows the credential.
func (Credential) GoString() string { return "(credential redacted)" }

// LogValue never shows the credential.
func (Credential) LogValue() slog.Value { return slog.StringValue("(credential redacted)") }

// parse reads the texts; nothing about them is authenticated by it.
func (c Credential) parse() (root *capability.Token, discharges []*capability.Token, err error) {
	if root, err = capability.Parse(c.Token); err != nil {
		return nil, nil, err
	}
	for _, text := range c.Discharges {
		d, err := capability.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		discharges = append(discharges, d)
	}
	return root, discharges, nil
}

// whole is the token set in one.
func (c Credential) whole() (*capability.Token, error) {
	root, discharges, err := c.parse()
	if err != nil {
		return nil, err
	}
	return root.WithDischarges(discharges...)
}

// Denial is a refusal, ready to be told: Code and Reference to the stranger.
// The explanation (Error) is for the owner's log, which has it already, under
// the same reference.
type Denial struct {
	Code      capability.Code // "" where there was no credential at all
	Reference string          // random, 16 characters
	cause     error
}

// Error is the explanation, on one line of printable characters. It is not for the caller.
func (d *Denial) Error() string { return printable(d.cause.Error()) }

// Unwrap is what the verifier returned, or ErrNoCredential.
func (d *Denial) Unwrap() error { return d.cause }

// Judge decides on calls of any protocol: it is what the guards for HTTP, gRPC
// and MCP have in common. It is safe for concurrent use.
type Judge struct {
	verifier  Verifier
	service   string
	logger    *slog.Logger
	now       func() time.Time
	random    io.Reader
	ours      []capability.HolderKey
	plaintext bool
	spans     trace.Tracer // nil: none
}

// NewJudge returns a judge that asks v. Options that only HTTP has are refused.
func NewJudge(v Verifier, opts ...Option) (*Judge, error) {
	s, err := configure(v, opts)
	if err != nil {
		return nil, err
	}
	if len(s.httpOnly) > 0 {
		return nil, fmt.Errorf("guard: %s applies to HTTP only", s.httpOnly[0])
	}
	return &s.Judge, nil
}

// Allow decides whether the credential allows the request, and logs a refusal.
// It sets req.Now and req.Service. Where names the route or the method, for
// the log. The error is a *Denial. The Grant keeps req: do not reuse it.
func (j *Judge) Allow(ctx context.Context, cred Credential, req *capability.Request, where string) (*Grant, error) {
	g := new(Grant)
	if err := j.allow(ctx, j.verifier, g, cred, req, where); err != nil {
		return nil, err
	}
	return g, nil
}

// allow is Allow with a verifier, into a Grant that the caller made.
func (j *Judge) allow(ctx context.Context, v Verifier, g *Grant, cred Credential, req *capability.Request, where string) error {
	if j.spans == nil {
		return j.decide(ctx, v, g, cred, req, where)
	}
	ctx, end := j.startSpan(ctx, where)
	err := j.decide(ctx, v, g, cred, req, where)
	end(g, req, err)
	return err
}

func (j *Judge) decide(ctx context.Context, v Verifier, g *Grant, cred Credential, req *capability.Request, where string) error {
	if cred.Token == "" {
		return j.Deny(ctx, ErrNoCredential, req, where)
	}
	req.Now, req.Service = j.now(), j.service
	verified := pool.Get().(*capability.Grant)
	if err := v.VerifyText(ctx, verified, cred.Token, withFacts(req), cred.Discharges...); err != nil {
		pool.Put(verified)
		return j.Deny(ctx, err, req, where)
	}
	g.judge, g.verifier, g.credential, g.request = j, v, cred, req
	g.identifier, g.logLevel, g.verified = verified.Identifier(), verified.LogLevel(), verified
	if g.logLevel != "" {
		if err := j.record(ctx, g, g.logLevel, where); err != nil {
			g.release()
			return j.Deny(ctx, err, req, where)
		}
	}
	return nil
}

// withFacts is req with what the evidence of key possession says of itself in
// its context, such as that a session key proves. A service that supplies a
// fact of the same name makes it ambiguous, which denies.
func withFacts(req *capability.Request) *capability.Request {
	f, ok := req.Holder.(interface{ Facts() capability.Fields })
	if !ok {
		return req
	}
	facts := f.Facts()
	if len(facts) == 0 {
		return req
	}
	if len(req.Context) > 0 {
		facts = slices.Concat(req.Context, facts)
	}
	with := *req
	with.Context = facts
	return &with
}

// record keeps the obligation of a log caveat: it writes before the handler
// runs, so that no panic or crash of the handler loses the record. The level
// minimal names the token, metadata also who called what from where, and full
// the arguments too.
func (j *Judge) record(ctx context.Context, g *Grant, level, where string) error {
	if !j.logger.Enabled(ctx, slog.LevelInfo) {
		return &capability.Refusal{Code: capability.CodeObligation, Detail: "the guard's logger drops access records"}
	}
	attrs := []slog.Attr{
		slog.String("obligation", printable(level)),
		slog.String("route", printable(where)),
		slog.String("token", g.ID().String()),
		slog.String("branch", g.Branch().String()),
	}
	if level != "minimal" {
		attrs = append(attrs,
			slog.String("subject", g.Subject()),
			slog.String("action", printable(g.request.Action)),
			slog.String("resource", printable(strings.Join(g.request.Resource, "/"))),
			slog.String("client", g.request.Client.String()))
	}
	if level == "full" {
		for _, f := range g.request.Arguments {
			attrs = append(attrs, slog.String("argument "+printable(f.Name), printable(f.Value.Text())))
		}
	}
	j.logger.LogAttrs(ctx, slog.LevelInfo, "capability used", attrs...)
	return nil
}

// Deny makes a Denial of err and logs it. The adapters use it for refusals of
// their own; req may be nil.
func (j *Judge) Deny(ctx context.Context, err error, req *capability.Request, where string) *Denial {
	d := &Denial{Reference: j.reference(), cause: err}
	level := slog.LevelInfo
	if !errors.Is(err, ErrNoCredential) {
		d.Code, level = capability.CodeOf(err), slog.LevelWarn
	}
	j.log(ctx, level, string(d.Code), d.Reference, err, req, where)
	return d
}

// BadRequest logs that a call is malformed or ambiguous, whatever its token,
// and returns the reference. The adapters use it; req may be nil.
func (j *Judge) BadRequest(ctx context.Context, err error, req *capability.Request, where string) (reference string) {
	return j.badShape(ctx, "bad_request", err, req, where)
}

func (j *Judge) badShape(ctx context.Context, code string, err error, req *capability.Request, where string) string {
	reference := j.reference()
	j.log(ctx, slog.LevelInfo, code, reference, err, req, where)
	return reference
}

func (j *Judge) log(ctx context.Context, level slog.Level, code, reference string, err error, req *capability.Request, where string) {
	if !j.logger.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("reference", reference),
		slog.String("code", code),
		slog.String("explanation", printable(err.Error())),
		slog.String("route", printable(where)),
	}
	if req != nil {
		attrs = append(attrs, slog.String("action", printable(req.Action)),
			slog.String("resource", printable(strings.Join(req.Resource, "/"))))
		if req.Client.IsValid() {
			attrs = append(attrs, slog.String("client", req.Client.String()))
		}
	}
	j.logger.LogAttrs(ctx, level, "capability refused", attrs...)
}

// reference is 80 random bits in 16 characters, easy to read out.
func (j *Judge) reference() string {
	var b [10]byte
	if _, err := io.ReadFull(j.random, b[:]); err != nil {
		return "unavailable"
	}
	return base32.HexEncoding.EncodeToString(b[:])
}

// printable returns s, quoted if anything in it could forge a line of a log or
// command a terminal, and cut at 1 KiB.
func printable(s string) string {
	const most = 1 << 10
	if len(s) > most {
		s = s[:most]
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

// settings is a Judge with what only HTTP needs.
type settings struct {
	Judge
	http     httpSettings
	httpOnly []string
}

func configure(v Verifier, opts []Option) (*settings, error) {
	if v == nil {
		return nil, errors.New("guard: no verifier")
	}
	s := &settings{
		Judge: Judge{verifier: v, logger: slog.Default(), now: time.Now, random: rand.Reader},
		http:  httpSettings{maxBody: DefaultMaxBody, realm: "writ"},
	}
	for _, o := range opts {
		if err := o(s); err != nil {
			return nil, fmt.Errorf("guard: %w", err)
		}
	}
	return s, nil
}
