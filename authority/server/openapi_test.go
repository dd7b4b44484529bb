package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// object is a JSON object whose members keep no order: encoding/json sorts them.
type object = map[string]any

// document builds the OpenAPI 3.1 document from the routes and package api.
func document(t *testing.T) []byte {
	b := builder{docs: readDocs(t), schemas: object{}}
	paths := object{}
	for _, rt := range routes() {
		item, _ := paths[rt.pattern].(object)
		if item == nil {
			item = object{}
			paths[rt.pattern] = item
		}
		item[strings.ToLower(rt.method)] = b.operation(rt)
	}
	b.schema(reflect.TypeFor[api.Problem]())
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Writ authority", "version": "1",
			"description": "Issue, narrow, revoke and verify capabilities. Every operation but those marked otherwise is authorized by a capability " +
				"of the audience writ that allows the action (x-writ-action) on the resource (x-writ-resource).",
			"license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":  []any{object{"url": "https://localhost:7480"}},
		"security": []any{object{"capability": []any{}}},
		"paths":    paths,
		"components": object{
			"schemas": b.schemas,
			"securitySchemes": object{"capability": object{
				"type": "http", "scheme": "bearer", "bearerFormat": "writ_…",
				"description": "a capability in text form; discharges that do not fit travel in the Writ-Discharges header",
			}},
			"responses": object{"Problem": object{
				"description": "A refusal (RFC 9457)",
				"content":     object{"application/problem+json": object{"schema": ref("Problem")}},
			}},
		},
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(doc); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type builder struct {
	docs    map[string]string // "Type" or "Type.Field" to its comment
	schemas object
}

func ref(name string) object { return object{"$ref": "#/components/schemas/" + name} }

func (b *builder) operation(rt *route) object {
	op := object{"operationId": rt.id, "summary": rt.summary, "x-writ-resource": rt.access}
	if rt.action != "" {
		op["x-writ-action"] = rt.action
	}
	if rt.anonymous {
		op["security"] = []any{}
	}
	var params []any
	for _, p := range rt.params {
		in, schema := "query", object{"type": "string"}
		if p.path {
			in = "path"
		}
		if p.number {
			schema = object{"type": "integer", "minimum": 0}
		}
		if p.many {
			schema = object{"type": "array", "items": schema}
		}
		params = append(params, object{"name": p.name, "in": in, "description": p.doc, "required": p.required || p.path, "schema": schema})
	}
	if rt.changes() {
		params = append(params, object{"name": api.HeaderRequestID, "in": "header", "schema": object{"type": "string", "format": "uuid"},
			"description": "UUIDv7 that makes a retry harmless"})
	}
	if params != nil {
		op["parameters"] = params
	}
	if rt.request != nil {
		media := "application/json"
		if rt.contentType != "" {
			media = rt.contentType
		}
		op["requestBody"] = object{"required": !rt.duplex(), "content": object{media: object{"schema": b.schema(rt.request)}}}
	}
	status, ok := 200, object{"description": "Success"}
	if rt.status != 0 {
		status = rt.status
	}
	switch {
	case rt.response != nil:
		media := "application/json"
		if rt.contentType != "" && (rt.request == nil || rt.duplex()) {
			media = rt.contentType
		}
		ok["content"] = object{media: object{"schema": b.schema(rt.response)}}
	case rt.raw != nil && rt.id == "openapi":
		ok["content"] = object{"application/json": object{"schema": object{"type": "object"}}}
	case rt.raw != nil:
		ok["content"] = object{"text/plain": object{"schema": object{"type": "string"}}}
	}
	op["responses"] = object{strconv.Itoa(status): ok, "default": object{"$ref": "#/components/responses/Problem"}}
	return op
}

// schema returns the schema of a type; that of a struct goes to the components.
func (b *builder) schema(t reflect.Type) object {
	switch {
	case t.Kind() == reflect.Pointer:
		return b.schema(t.Elem())
	case t == reflect.TypeFor[capability.TokenID]():
		return object{"type": "string", "format": "uuid"}
	case t == reflect.TypeFor[capability.BranchID]():
		return object{"type": "string", "pattern": "^[0-9a-f]{32}$"}
	case t.String() == "time.Time":
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[[]byte]():
		return object{"type": []any{"string", "null"}, "contentEncoding": "base64"}
	case t == reflect.TypeFor[api.RevocationKind]():
		return object{"type": "string", "enum": []any{"token", "branch", "subject", "holder", "device", "audience", "epoch"}}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint32:
		return object{"type": "integer", "minimum": 0, "maximum": 1<<32 - 1}
	case reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Slice:
		// Go writes an empty list that was never made as null.
		return object{"type": []any{"array", "null"}, "items": b.schema(t.Elem())}
	case reflect.Map:
		return object{"type": []any{"object", "null"}, "additionalProperties": b.schema(t.Elem())}
	case reflect.Struct:
		if t.Name() == "" {
			return object{"type": "object", "additionalProperties": false}
		}
		if _, ok := b.schemas[t.Name()]; !ok {
			b.schemas[t.Name()] = object{} // against recursion
			props, required := object{}, []any{}
			b.fields(t, props, &required)
			s := object{"type": "object", "additionalProperties": false, "properties": props}
			if len(required) > 0 {
				s["required"] = required
			}
			if d := b.docs[t.Name()]; d != "" {
				s["description"] = d
			}
			b.schemas[t.Name()] = s
		}
		return ref(t.Name())
	}
	panic("no schema for " + t.String())
}

func (b *builder) fields(t reflect.Type, props object, required *[]any) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			b.fields(f.Type, props, required)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		s := b.schema(f.Type)
		if d := b.docs[t.Name()+"."+f.Name]; d != "" {
			s["description"] = d
		}
		props[name] = s
		if options == "" {
			*required = append(*required, name)
		}
	}
}

// changes reports whether a retry needs a request id.
func (rt *route) changes() bool {
	return rt.method == "DELETE" || rt.method == "POST" && rt.response != reflect.TypeFor[struct{}]() &&
		!slices.Contains([]string{"registered", "verify", "oauthIntrospect", "beginAttestation", "finishAttestation", "feed"}, rt.id)
}

// readDocs reads the comments of package api's types and fields.
func readDocs(t *testing.T) map[string]string {
	var decls []ast.Decl
	for _, name := range []string{"../api/api.go", "../api/oauth.go", "../api/attest.go", "../../caveats/attest/message.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		decls = append(decls, file.Decls...)
	}
	docs := map[string]string{}
	clean := func(g ...*ast.CommentGroup) string {
		for _, c := range g {
			if c != nil {
				return strings.Join(strings.Fields(c.Text()), " ")
			}
		}
		return ""
	}
	for _, d := range decls {
		g, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range g.Specs {
			ts, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			docs[ts.Name.Name] = clean(ts.Doc, g.Doc)
			if st, ok := ts.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					for _, n := range f.Names {
						docs[ts.Name.Name+"."+n.Name] = clean(f.Doc, f.Comment)
					}
				}
			}
		}
	}
	return docs
}

// TestOpenAPIIsCurrent holds openapi.json to the routes and to package api: a
// route or a field that is not in it, or the reverse, is a difference.
func TestOpenAPIIsCurrent(t *testing.T) {
	want := document(t)
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(openapiJSON, want) {
		t.Fatal("openapi.json does not describe the handlers: run go test -run OpenAPI -update")
	}
}

// TestRoutesAreDocumented holds the routes to the table in package api's
// documentation, which is what people read.
func TestRoutesAreDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../api/api.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(GET|POST|DELETE) +(/\S+)`).FindAllStringSubmatch(file.Doc.Text(), -1) {
		documented[m[1]+" "+m[2]] = true
	}
	for _, p := range []string{"/livez", "/readyz", "/metrics"} {
		documented["GET "+p] = strings.Contains(file.Doc.Text(), p)
	}
	for _, rt := range routes() {
		if !documented[rt.name()] {
			t.Errorf("%s is served and not in the table of package api", rt.name())
		}
		delete(documented, rt.name())
	}
	for name := range documented {
		t.Errorf("%s is in the table of package api and not served", name)
	}
}
