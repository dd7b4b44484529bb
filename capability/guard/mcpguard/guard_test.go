package mcpguard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/capability/guard/mcpguard"
)

// seen is what a tool's handler was given.
type seen struct {
	arguments string
	meta      map[string]any
	header    http.Header
	subject   string
}

// newServer has two tools that record what they get, a resource and a prompt.
func newServer(tb testing.TB, g *mcpguard.Guard) (*mcp.Server, *seen) {
	tb.Helper()
	s := mcp.NewServer(&mcp.Implementation{Name: "server", Version: "1"}, nil)
	got := new(seen)
	record := func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		*got = seen{arguments: string(r.Params.Arguments), meta: r.Params.Meta, subject: guard.FromContext(ctx).Subject()}
		if r.Extra != nil {
			got.header = r.Extra.Header
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "done"}}}, nil
	}
	schema := map[string]any{"type": "object"}
	s.AddTool(&mcp.Tool{Name: "pay", InputSchema: schema}, record)
	s.AddTool(&mcp.Tool{Name: "files/read", InputSchema: schema}, record)
	s.AddResource(&mcp.Resource{URI: "file:///q3", Name: "q3"}, func(context.Context, *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: "file:///q3", Text: "text"}}}, nil
	})
	s.AddPrompt(&mcp.Prompt{Name: "greet"}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		return &mcp.GetPromptResult{}, nil
	})
	s.AddReceivingMiddleware(g.Middleware())
	return s, got
}

func newGuard(tb testing.TB, a *guardtest.Authority, c mcpguard.Config) *mcpguard.Guard {
	tb.Helper()
	g, err := mcpguard.New(a.Verifier, c, guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

// connect opens a session in memory, where there is no HTTP.
func connect(tb testing.TB, s *mcp.Server, middleware ...mcp.Middleware) *mcp.ClientSession {
	tb.Helper()
	ct, st := mcp.NewInMemoryTransports()
	ss, err := s.Connect(tb.Context(), st, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return session(tb, ct, func() { ss.Close() }, middleware...)
}

func session(tb testing.TB, transport mcp.Transport, done func(), middleware ...mcp.Middleware) *mcp.ClientSession {
	tb.Helper()
	c := mcp.NewClient(&mcp.Implementation{Name: "client", Version: "1"}, nil)
	c.AddSendingMiddleware(middleware...)
	cs, err := c.Connect(tb.Context(), transport, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cs.Close(); done() })
	return cs
}

func attach(t *capability.Token) mcp.Middleware { return mcpguard.Attach(mcpguard.Static(t)) }

// TestTools: what reaches a tool is what was judged.
func TestTools(t *testing.T) {
	a := guardtest.For(t)
	server, got := newServer(t, newGuard(t, a, mcpguard.Config{Tools: map[string]mcpguard.Tool{"files/read": {
		Action: "read", Resource: func(args capability.Fields) ([]string, error) {
			v, ok := args.Get([]byte("path"))
			if !ok || v.Kind() != capability.KindString {
				return nil, errors.New("no path")
			}
			return strings.Split("files/"+v.Text(), "/"), nil
		},
	}}}))
	payments := a.Token(t, "action call", "resource pay", "argument amount <= 100")
	reading := a.Token(t, "action read", "resource files/q3/**")
	for _, c := range []struct {
		name      string
		token     *capability.Token
		tool      string
		arguments string
		code      capability.Code // "" with seen "": malformed
		seen      string
	}{
		{"allowed", payments, "pay", `{"to":"b","amount":1e2}`, "", `{"amount":1e2,"to":"b"}`},
		{"over the limit", payments, "pay", `{"amount":101}`, capability.CodeArgumentDenied, ""},
		{"no arguments", payments, "pay", `{}`, capability.CodeArgumentDenied, ""},
		{"twice", payments, "pay", `{"amount":1,"amount":1000}`, "", ""},
		{"in another case", payments, "pay", `{"amount":1,"Amount":1000}`, "", ""},
		{"escaped twice", payments, "pay", `{"amount":1,"\u0061mount":1000}`, "", ""},
		{"an array", payments, "pay", `[{"amount":1}]`, "", ""},
		{"another tool", payments, "files/read", `{"path":"q3/a"}`, capability.CodeActionDenied, ""},
		{"by argument", reading, "files/read", `{"path":"q3/a"}`, "", `{"path":"q3/a"}`},
		{"by another argument", reading, "files/read", `{"path":"q4/a"}`, capability.CodeResourceDenied, ""},
		{"out of the tree", reading, "files/read", `{"path":"q3/../q4"}`, "", ""},
		{"no path", reading, "files/read", `{}`, "", ""},
		{"a tool that is not there", a.Token(t, "resource nothing"), "pay", `{}`, capability.CodeResourceDenied, ""},
		{"a name that is no resource", a.Token(t), "../pay", `{}`, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			*got = seen{}
			cs := connect(t, server, attach(c.token))
			result, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: c.tool, Arguments: json.RawMessage(c.arguments)})
			if got.arguments != c.seen {
				t.Errorf("the tool got %q, want %q", got.arguments, c.seen)
			}
			if mcpguard.CodeOf(err) != c.code {
				t.Errorf("%v with %q, want %q", err, mcpguard.CodeOf(err), c.code)
			}
			if c.seen == "" && (err == nil || result != nil) {
				t.Errorf("no error: %+v", result)
			}
			var wire *jsonrpc.Error
			if c.seen == "" && c.code == "" && (!errors.As(err, &wire) || wire.Code != jsonrpc.CodeInvalidParams) {
				t.Errorf("%v, want invalid params", err)
			}
			if c.seen != "" {
				if _, ok := got.meta[mcpguard.MetaKey]; ok || got.subject != "agent-42" {
					t.Errorf("the tool sees the credential, or no subject: %+v", got)
				}
			}
		})
	}
}

// TestNoCredential: nothing but the handshake goes without a token, and a
// session gives nothing to its later calls.
func TestNoCredential(t *testing.T) {
	a := guardtest.For(t)
	server, got := newServer(t, newGuard(t, a, mcpguard.Config{}))
	tokens := []*capability.Token{a.Token(t)}
	once := mcpguard.Attach(func(context.Context) (*capability.Token, error) { return tokens[0], nil })
	first := true
	cs := connect(t, server, func(next mcp.MethodHandler) mcp.MethodHandler {
		with := once(next)
		return func(ctx context.Context, method string, r mcp.Request) (mcp.Result, error) {
			if method == "tools/call" && first {
				first = false
				return with(ctx, method, r)
			}
			return next(ctx, method, r)
		}
	})
	if err := cs.Ping(t.Context(), nil); err != nil {
		t.Errorf("ping: %v", err)
	}
	if _, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "pay"}); err != nil {
		t.Fatal(err)
	}
	*got = seen{}
	var wire *jsonrpc.Error
	_, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "pay"})
	if !errors.As(err, &wire) || wire.Code != mcpguard.CodeRefused || mcpguard.CodeOf(err) != "" || got.subject != "" {
		t.Errorf("%v: want a refusal without a code", err)
	}
	var data map[string]string
	if err := json.Unmarshal(wire.Data, &data); err != nil || len(data["reference"]) != 16 || len(data) != 1 {
		t.Errorf("data %s", wire.Data)
	}
	for name, f := range map[string]func() error{
		"tools/list":     func() error { _, err := cs.ListTools(t.Context(), nil); return err },
		"prompts/list":   func() error { _, err := cs.ListPrompts(t.Context(), nil); return err },
		"resources/list": func() error { _, err := cs.ListResources(t.Context(), nil); return err },
		"resources/read": func() error {
			_, err := cs.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///q3"})
			return err
		},
		"prompts/get": func() error { _, err := cs.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "greet"}); return err },
	} {
		if err := f(); !errors.As(err, &wire) || wire.Code != mcpguard.CodeRefused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMethods: other methods are mapped, open, or refused whatever the token.
func TestMethods(t *testing.T) {
	a := guardtest.For(t)
	lists := a.Token(t, "action list", "resource tools")
	anything := a.Token(t)
	cs := connect(t, first(newServer(t, newGuard(t, a, mcpguard.Config{}))), attach(anything))
	_, err := cs.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///q3"})
	if mcpguard.CodeOf(err) != capability.CodeActionDenied {
		t.Errorf("an unmapped method: %v", err)
	}
	if _, err := cs.ListTools(t.Context(), nil); err != nil {
		t.Errorf("list with a token: %v", err)
	}

	read := func(p mcp.Params) (mcpguard.Call, error) {
		name, ok := strings.CutPrefix(p.(*mcp.ReadResourceParams).URI, "file:///")
		if !ok {
			return mcpguard.Call{}, errors.New("not a file")
		}
		return mcpguard.Call{Action: "read", Resource: []string{"files", name}}, nil
	}
	c := mcpguard.Config{Methods: map[string]mcpguard.Mapping{"resources/read": read}, Open: []string{"prompts/get"}, OnlyMappedTools: true}
	server := first(newServer(t, newGuard(t, a, c)))
	cs = connect(t, server, attach(a.Token(t, "resource files/q3")))
	if _, err := cs.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///q3"}); err != nil {
		t.Errorf("a mapped method: %v", err)
	}
	if _, err := cs.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///q4"}); mcpguard.CodeOf(err) != capability.CodeResourceDenied {
		t.Errorf("another resource: %v", err)
	}
	if _, err := cs.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///a/../q3"}); err == nil {
		t.Error("a resource that nothing may match")
	}
	if _, err := cs.ListTools(t.Context(), nil); mcpguard.CodeOf(err) != capability.CodeResourceDenied {
		t.Errorf("a list that the token does not cover: %v", err)
	}
	cs = connect(t, server, attach(anything))
	if _, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "pay"}); mcpguard.CodeOf(err) != capability.CodeActionDenied {
		t.Errorf("an unmapped tool: %v", err)
	}
	cs = connect(t, server, attach(lists))
	if _, err := cs.ListTools(t.Context(), nil); err != nil {
		t.Errorf("a list that the token covers: %v", err)
	}
	cs = connect(t, server)
	if _, err := cs.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "greet"}); err != nil {
		t.Errorf("an open method: %v", err)
	}
	cs = connect(t, first(newServer(t, newGuard(t, a, mcpguard.Config{OpenLists: true}))))
	if _, err := cs.ListTools(t.Context(), nil); err != nil {
		t.Errorf("an open list: %v", err)
	}

	for _, c := range []mcpguard.Config{
		{Open: []string{"tools/call"}},
		{Methods: map[string]mcpguard.Mapping{"tools/call": read}},
		{Methods: map[string]mcpguard.Mapping{"ping": read}},
		{Methods: map[string]mcpguard.Mapping{"resources/read": nil}},
		{Methods: map[string]mcpguard.Mapping{"resources/read": read}, Open: []string{"resources/read"}},
		{Tools: map[string]mcpguard.Tool{"pay": {Action: "two words"}}},
	} {
		if _, err := mcpguard.New(a.Verifier, c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
	if _, err := mcpguard.New(a.Verifier, mcpguard.Config{}, guard.MaxBody(1)); err == nil {
		t.Error("an option that only HTTP has")
	}
}

func first(s *mcp.Server, _ *seen) *mcp.Server { return s }

// TestHTTP: over HTTP the token stands in the header of the request itself.
func TestHTTP(t *testing.T) {
	a := guardtest.For(t)
	server, got := newServer(t, newGuard(t, a, mcpguard.Config{}))
	h := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil))
	t.Cleanup(h.Close)
	one, other := a.Token(t, "resource pay"), a.Token(t, "resource pay")

	for _, c := range []struct {
		name         string
		header, meta *capability.Token
		code         capability.Code
		served       bool
	}{
		{"in the header", one, nil, "", true},
		{"in _meta", nil, one, "", true},
		{"the same in both", one, one, "", true},
		{"one and another", one, other, "", false},
		{"in neither", nil, nil, "", false},
		{"not enough", a.Token(t, "resource files"), nil, capability.CodeResourceDenied, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			*got = seen{}
			transport := &mcp.StreamableClientTransport{Endpoint: h.URL, DisableStandaloneSSE: true, MaxRetries: -1}
			if c.header != nil {
				transport.HTTPClient = &http.Client{Transport: &guard.Transport{Token: c.header}}
			}
			var middleware []mcp.Middleware
			if c.meta != nil {
				middleware = append(middleware, attach(c.meta))
			}
			cs := session(t, transport, func() {}, middleware...)
			_, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "pay", Arguments: map[string]any{"b": 1, "a": 2}})
			if (err == nil) != c.served || mcpguard.CodeOf(err) != c.code {
				t.Errorf("%v, want %q, served %v", err, c.code, c.served)
			}
			if !c.served {
				if got.arguments != "" {
					t.Error("the tool ran")
				}
				return
			}
			if got.arguments != `{"a":2,"b":1}` || got.header.Get("Authorization") != "" || got.meta[mcpguard.MetaKey] != nil {
				t.Errorf("the tool got %+v", got)
			}
		})
	}
}

// TestForward: a tool calls the next server with the caller's token, narrowed.
func TestForward(t *testing.T) {
	a := guardtest.For(t)
	nextServer, got := newServer(t, newGuard(t, a, mcpguard.Config{}))
	next := connect(t, nextServer, mcpguard.Attach(mcpguard.Forward("argument amount <= 10")))
	asked := make(map[int]error)
	front, _ := newServer(t, newGuard(t, a, mcpguard.Config{}))
	front.AddTool(&mcp.Tool{Name: "front", InputSchema: map[string]any{"type": "object"}}, func(ctx context.Context, _ *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		for _, amount := range []int{10, 11} {
			_, asked[amount] = next.CallTool(ctx, &mcp.CallToolParams{Name: "pay", Arguments: map[string]any{"amount": amount}})
		}
		return &mcp.CallToolResult{}, nil
	})
	if _, err := connect(t, front, attach(a.Token(t, "action call"))).CallTool(t.Context(), &mcp.CallToolParams{Name: "front"}); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 2 || asked[10] != nil || mcpguard.CodeOf(asked[11]) != capability.CodeArgumentDenied || got.arguments != `{"amount":10}` {
		t.Errorf("asked %v, got %q", asked, got.arguments)
	}
	if _, err := next.CallTool(t.Context(), &mcp.CallToolParams{Name: "pay"}); !errors.Is(err, guard.ErrNoGrant) {
		t.Errorf("forwarded what nobody gave: %v", err)
	}
}

// TestAttachChangesNothing: the caller's parameters stay free of the token.
func TestAttachChangesNothing(t *testing.T) {
	a := guardtest.For(t)
	cs := connect(t, first(newServer(t, newGuard(t, a, mcpguard.Config{}))), attach(a.Token(t)))
	p := &mcp.CallToolParams{Name: "pay", Meta: mcp.Meta{"x": 1}}
	if _, err := cs.CallTool(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if p.Meta[mcpguard.MetaKey] != nil || strings.Contains(fmt.Sprint(p.Meta), "writ_") { // the SDK adds keys of its own
		t.Errorf("_meta is now %v", p.Meta)
	}

	empty := connect(t, first(newServer(t, newGuard(t, a, mcpguard.Config{}))),
		mcpguard.Attach(func(context.Context) (*capability.Token, error) { return nil, nil }))
	if _, err := empty.CallTool(t.Context(), p); !errors.Is(err, guard.ErrNoCredential) {
		t.Errorf("%v, want ErrNoCredential", err)
	}
}
