package mcpguard

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// MetaKey is where a token stands in a request's _meta.
const MetaKey = "dev.writ/capability"

// CodeRefused is the JSON-RPC error code of a refusal, from the range that
// JSON-RPC 2.0 leaves to implementations.
const CodeRefused = -32088

// MaxArguments is the most bytes of a tool's arguments: 1 MiB.
const MaxArguments = 1 << 20

// Config says what a server's methods mean. Its zero value maps all tools by
// their names.
type Config struct {
	// Tools maps tools otherwise than by their names.
	Tools map[string]Tool
	// OnlyMappedTools refuses tools that are not in Tools.
	OnlyMappedTools bool
	// Methods maps further methods, such as "resources/read".
	Methods map[string]Mapping
	// OpenLists lets anybody list tools, prompts and resources.
	OpenLists bool
	// Open names further methods that anybody may call.
	Open []string
	// Holder reads the evidence of key possession that came with a request; nil
	// is none.
	Holder func(ctx context.Context, r mcp.Request, token string) capability.HolderProof
	// Proofs, if set, replaces Holder: it judges DPoP proofs in _meta and in the
	// request's header, and the client certificates that Handler finds. Its origins
	// have that of Endpoint.
	Proofs *pop.Verifier
	// Endpoint is what proofs are made for: the URL that clients of the HTTP
	// transport are given, such as https://tools.corp.example/mcp, or a name of
	// the server's, such as mcp://tools.corp.example. Required with Proofs.
	Endpoint string
}

// Tool is what the calls of one tool mean.
type Tool struct {
	// Action is what a call does: one word; "" is "call".
	Action string
	// Resource returns the segments that a call names; nil is the tool's name.
	Resource func(arguments capability.Fields) ([]string, error)
}

// Call is what a request means.
type Call struct {
	Action    string
	Resource  []string
	Arguments capability.Fields
}

// Mapping returns what a request with these parameters means. Its error
// refuses the request as malformed, unless it carries a code.
type Mapping func(mcp.Params) (Call, error)

// Guard judges the requests that a server receives. It is safe for concurrent use.
type Guard struct {
	judge  *guard.Judge
	config Config
	open   map[string]bool
	maps   map[string]Mapping
	path   string   // of Endpoint
	key    [32]byte // of what Handler says to the guard
}

const methodCallTool = "tools/call"

// New returns a guard. The options are those that are not for HTTP only.
func New(v guard.Verifier, c Config, opts ...guard.Option) (*Guard, error) {
	judge, err := guard.NewJudge(v, opts...)
	if err != nil {
		return nil, err
	}
	g := &Guard{judge: judge, config: c, open: make(map[string]bool), maps: map[string]Mapping{
		"tools/list":               list("tools"),
		"prompts/list":             list("prompts"),
		"resources/list":           list("resources"),
		"resources/templates/list": list("resources"),
	}}
	rand.Read(g.key[:])
	if c.Proofs != nil {
		if g.path, err = endpointPath(c); err != nil {
			return nil, err
		}
	}
	if c.OpenLists {
		for m := range g.maps {
			g.open[m] = true
		}
		clear(g.maps)
	}
	for _, m := range []string{"initialize", "ping", "server/discover", "notifications/initialized", "notifications/cancelled"} {
		g.open[m] = true
	}
	for _, m := range c.Open {
		if m == methodCallTool || c.Methods[m] != nil {
			return nil, fmt.Errorf("mcpguard: %s is both open and mapped", m)
		}
		g.open[m] = true
		delete(g.maps, m)
	}
	for m, f := range c.Methods {
		if m == methodCallTool || f == nil || g.open[m] {
			return nil, fmt.Errorf("mcpguard: method %q: no mapping, or one that cannot be replaced", m)
		}
		g.maps[m] = f
	}
	for name, t := range c.Tools {
		if t.Action != "" && !capability.ValidName(t.Action, 64) {
			return nil, fmt.Errorf("mcpguard: tool %q: action %q: want one word", name, t.Action)
		}
	}
	return g, nil
}

func list(what string) Mapping {
	return func(mcp.Params) (Call, error) { return Call{Action: "list", Resource: []string{what}}, nil }
}

// Middleware is for Server.AddReceivingMiddleware. Add it first, so that no
// other middleware sees what has not been judged.
func (g *Guard) Middleware() mcp.Middleware {
	return func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, r mcp.Request) (mcp.Result, error) {
			if g.open[method] {
				return next(ctx, method, r)
			}
			ctx = g.judge.CallersTrace(ctx, func(key string) string { return traceField(r, key) })
			grant, judged, err := g.judgeRequest(ctx, method, r)
			if err != nil {
				return nil, err
			}
			return next(guard.NewContext(ctx, grant), method, judged)
		}
	}
}

// traceField reads a field of the caller's trace context: from the HTTP header,
// or from _meta where there is none.
func traceField(r mcp.Request, key string) string {
	if extra := r.GetExtra(); extra != nil {
		if v := extra.Header.Get(key); v != "" {
			return v
		}
	}
	if p := r.GetParams(); !isNil(p) {
		v, _ := p.GetMeta()[key].(string)
		return v
	}
	return ""
}

// judgeRequest returns the Grant and the request as the handler may see it.
func (g *Guard) judgeRequest(ctx context.Context, method string, r mcp.Request) (*guard.Grant, mcp.Request, error) {
	cred, dpop, err := g.credential(r)
	if err != nil {
		return nil, nil, g.refuse(ctx, method, err)
	}
	var evidence pop.Evidence
	if g.config.Proofs != nil {
		if evidence, err = g.evidence(method, r, cred.Token, dpop); err != nil {
			return nil, nil, g.refuse(ctx, method, err)
		}
	}
	if cred.Token == "" {
		return nil, nil, g.refuse(ctx, method, guard.ErrNoCredential)
	}
	where, received := method, r
	var call Call
	if ct, ok := r.(*mcp.CallToolRequest); ok && method == methodCallTool {
		where += " " + name(ct.Params)
		call, r, err = g.tool(ct)
	} else if f := g.maps[method]; f != nil {
		if call, err = f(r.GetParams()); err == nil {
			r, err = withoutCredential(r)
		}
	} else {
		err = &capability.Refusal{Code: capability.CodeActionDenied, Detail: "the method has no mapping"}
	}
	if err == nil {
		err = checkCall(call)
	}
	if err != nil {
		return nil, nil, g.refuse(ctx, where, err)
	}
	req := &capability.Request{Action: call.Action, Resource: call.Resource, Arguments: call.Arguments}
	switch {
	case g.config.Holder != nil:
		req.Holder = g.config.Holder(ctx, received, cred.Token)
	case g.config.Proofs != nil:
		req.Holder = g.config.Proofs.Holder(evidence)
	}
	grant, err := g.judge.Allow(ctx, cred, req, where)
	if err != nil {
		return nil, nil, g.refuseProof(ctx, where, err, req.Holder)
	}
	return grant, r, nil
}

// tool maps a call of a tool, and returns it with canonical arguments.
func (g *Guard) tool(r *mcp.CallToolRequest) (Call, mcp.Request, error) {
	if r.Params == nil {
		return Call{}, nil, errors.New("no parameters")
	}
	t, mapped := g.config.Tools[r.Params.Name]
	if !mapped && g.config.OnlyMappedTools {
		return Call{}, nil, &capability.Refusal{Code: capability.CodeActionDenied, Detail: "the tool has no mapping"}
	}
	call := Call{Action: t.Action}
	if call.Action == "" {
		call.Action = "call"
	}
	params := *r.Params
	params.Meta = withoutKey(params.Meta)
	if len(params.Arguments) > 0 {
		fields, canonical, err := caveats.ParseArguments(params.Arguments, caveats.Limits{MaxSize: MaxArguments})
		if err != nil {
			return Call{}, nil, err
		}
		call.Arguments, params.Arguments = fields, json.RawMessage(canonical)
	}
	var err error
	if t.Resource != nil {
		call.Resource, err = t.Resource(call.Arguments)
	} else {
		call.Resource, err = caveats.SplitResource(params.Name)
	}
	return call, &mcp.CallToolRequest{Session: r.Session, Params: &params, Extra: extraWithout(r.Extra)}, err
}

// checkCall holds what a mapping returned to the rules of a resource.
func checkCall(c Call) error {
	if c.Action == "" || len(c.Resource) == 0 {
		return errors.New("a mapping without action or resource")
	}
	for _, s := range c.Resource {
		if parts, err := caveats.SplitResource(s); err != nil || len(parts) != 1 {
			return errors.New("a resource that nothing may match")
		}
	}
	return nil
}

func name(p *mcp.CallToolParamsRaw) string {
	if p == nil || !capability.ValidName(p.Name, 128) {
		return "?"
	}
	return p.Name
}

// refusalData is the data of a JSON-RPC error.
type refusalData struct {
	Code      string `json:"code,omitempty"`
	Reference string `json:"reference"`
	Nonce     string `json:"dpop_nonce,omitempty"`
	Error     string `json:"dpop_error,omitempty"`
}

// refuse makes a JSON-RPC error of what a stranger may know.
func (g *Guard) refuse(ctx context.Context, where string, err error) error {
	return g.refuseProof(ctx, where, err, nil)
}

func (g *Guard) refuseProof(ctx context.Context, where string, err error, holder capability.HolderProof) error {
	d, ok := errors.AsType[*guard.Denial](err)
	if !ok {
		if !carriesCode(err) {
			reference := g.judge.BadRequest(ctx, err, nil, where)
			return wireError(jsonrpc.CodeInvalidParams, "bad_request", refusalData{Code: "bad_request", Reference: reference})
		}
		d = g.judge.Deny(ctx, err, nil, where)
	}
	message := "no credential"
	if d.Code != "" {
		message = string(d.Code)
	}
	data := refusalData{Code: string(d.Code), Reference: d.Reference}
	if v := g.config.Proofs; v != nil {
		data.Nonce = v.Nonce(holder)
		if v.NonceWanted(holder) {
			data.Error = useNonce
		}
	}
	return wireError(CodeRefused, message, data)
}

func carriesCode(err error) bool {
	if errors.Is(err, guard.ErrNoCredential) {
		return true
	}
	_, code := errors.AsType[capability.Code](err)
	_, refusal := errors.AsType[*capability.Refusal](err)
	return code || refusal
}

func wireError(code int64, message string, data refusalData) error {
	b, err := json.Marshal(data)
	if err != nil {
		b = nil
	}
	return &jsonrpc.Error{Code: code, Message: message, Data: b}
}

// CodeOf is the capability code in an error that a guarded server returned, or
// "" if there is none.
func CodeOf(err error) capability.Code {
	var wire *jsonrpc.Error
	var data refusalData
	if !errors.As(err, &wire) || wire.Code != CodeRefused || json.Unmarshal(wire.Data, &data) != nil {
		return ""
	}
	return capability.Code(data.Code)
}

// credential reads the token from the request's own header or _meta, and
// whether the header's scheme was DPoP.
func (g *Guard) credential(r mcp.Request) (cred guard.Credential, dpop bool, err error) {
	if extra := r.GetExtra(); extra != nil {
		values := extra.Header.Values("Authorization")
		if len(values) > 1 {
			return cred, false, errors.New("two Authorization headers")
		}
		if len(values) == 1 && g.config.Proofs != nil {
			cred.Token, dpop, err = guard.ParseToken(values[0])
		} else if len(values) == 1 {
			cred.Token, err = guard.ParseBearer(values[0])
		}
		if err != nil {
			return cred, false, err
		}
		if cred.Discharges, err = guard.ParseDischarges(extra.Header.Values(guard.DischargesHeader)); err != nil {
			return cred, false, err
		}
	}
	p := r.GetParams()
	if isNil(p) {
		return cred, dpop, nil
	}
	v, ok := p.GetMeta()[MetaKey]
	if !ok {
		return cred, dpop, nil
	}
	text, ok := v.(string)
	if !ok || len(text) > capability.MaxTextSize {
		return cred, false, errors.New("a capability in _meta that is no text")
	}
	if cred.Token != "" && cred.Token != text {
		return cred, false, errors.New("two different capabilities, in the header and in _meta")
	}
	cred.Token = text
	return cred, dpop, nil
}

// extraWithout is the request's extra without the credential. The header is
// shared by the requests of a batch, hence the copy.
func extraWithout(extra *mcp.RequestExtra) *mcp.RequestExtra {
	if extra == nil || extra.Header == nil {
		return extra
	}
	out := *extra
	out.Header = extra.Header.Clone()
	for _, name := range []string{"Authorization", guard.DischargesHeader, pop.Header, certificateHeader} {
		out.Header.Del(name)
	}
	return &out
}
