package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
)

// schemas are those of the embedded document, by name.
func schemas(t *testing.T) map[string]object {
	var doc struct {
		Components struct{ Schemas map[string]object }
	}
	if err := json.Unmarshal(openapiJSON, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Components.Schemas) < 30 {
		t.Fatalf("only %d schemas", len(doc.Components.Schemas))
	}
	return doc.Components.Schemas
}

// validate holds a JSON value to a schema, as far as our schemas go.
func validate(all map[string]object, schema object, v any) error {
	if r, ok := schema["$ref"].(string); ok {
		return validate(all, all[strings.TrimPrefix(r, "#/components/schemas/")], v)
	}
	types, _ := schema["type"].([]any)
	if s, ok := schema["type"].(string); ok {
		types = []any{s}
	}
	kind := map[string]string{"string": "string", "bool": "boolean", "float64": "integer", "map[string]interface {}": "object", "[]interface {}": "array", "<nil>": "null"}[fmt.Sprintf("%T", v)]
	if !slices.Contains(types, any(kind)) {
		return fmt.Errorf("%v is a %s, not %v", v, kind, types)
	}
	switch v := v.(type) {
	case string:
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
			return fmt.Errorf("%q does not match %s", v, p)
		}
		if e, ok := schema["enum"].([]any); ok && !slices.Contains(e, any(v)) {
			return fmt.Errorf("%q is none of %v", v, e)
		}
		if schema["contentEncoding"] == "base64" {
			_, err := base64.StdEncoding.Strict().DecodeString(v)
			return err
		}
		if schema["format"] == "date-time" {
			_, err := time.Parse(time.RFC3339, v)
			return err
		}
	case float64:
		if m, ok := schema["minimum"].(float64); ok && v < m || v != float64(int64(v)) {
			return fmt.Errorf("%v is out of range", v)
		}
	case []any:
		for _, e := range v {
			if err := validate(all, schema["items"].(object), e); err != nil {
				return err
			}
		}
	case object:
		props, _ := schema["properties"].(object)
		for name, e := range v {
			s, ok := props[name].(object)
			if !ok {
				if s, ok = schema["additionalProperties"].(object); !ok {
					return fmt.Errorf("member %s is not in the schema", name)
				}
			}
			if err := validate(all, s, e); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := v[name.(string)]; !ok {
				return fmt.Errorf("member %s is missing", name)
			}
		}
	}
	return nil
}

// instance makes a value of a schema with every member, or with those required.
func instance(all map[string]object, schema object, full bool) any {
	if r, ok := schema["$ref"].(string); ok {
		return instance(all, all[strings.TrimPrefix(r, "#/components/schemas/")], full)
	}
	typ, ok := schema["type"].(string)
	if !ok {
		typ = schema["type"].([]any)[0].(string)
	}
	switch typ {
	case "string":
		switch {
		case schema["enum"] != nil:
			return schema["enum"].([]any)[0]
		case schema["pattern"] != nil:
			return strings.Repeat("0a", 16)
		case schema["format"] == "uuid":
			return "01920000-0000-7000-8000-000000000001"
		case schema["format"] == "date-time":
			return "2026-01-02T03:04:05Z"
		case schema["contentEncoding"] != nil:
			return "AAEC"
		}
		return "x"
	case "integer":
		return 7
	case "boolean":
		return true
	case "array":
		return []any{instance(all, schema["items"].(object), full)}
	}
	out := object{}
	required, _ := schema["required"].([]any)
	props, _ := schema["properties"].(object)
	for name, s := range props {
		if full || slices.Contains(required, any(name)) {
			out[name] = instance(all, s.(object), full)
		}
	}
	if s, ok := schema["additionalProperties"].(object); ok {
		out["key"] = instance(all, s, full)
	}
	return out
}

// wireTypes are all types that travel, by their schema's name.
func wireTypes() map[string]reflect.Type {
	types := map[string]reflect.Type{"Problem": reflect.TypeFor[api.Problem]()}
	var add func(reflect.Type)
	add = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			add(t.Elem())
		case reflect.Struct:
			if t.Name() == "" || t == reflect.TypeFor[time.Time]() || types[t.Name()] != nil {
				return
			}
			types[t.Name()] = t
			for i := range t.NumField() {
				add(t.Field(i).Type)
			}
		}
	}
	for _, rt := range routes() {
		for _, t := range []reflect.Type{rt.request, rt.response} {
			if t != nil {
				add(t)
			}
		}
	}
	return types
}

// TestSchemasAreTheWire makes a value of every schema and has the strict reader
// read it, and holds what the writer makes of it, and of the zero value, to
// the schema again.
func TestSchemasAreTheWire(t *testing.T) {
	all, types := schemas(t), wireTypes()
	delete(types, "RevokeRequest")
	types["RevokeRequest"] = reflect.TypeFor[api.RevokeRequest]()
	var missing []string
	for name := range all {
		if types[name] == nil {
			missing = append(missing, name)
		}
	}
	for name, typ := range types {
		schema, ok := all[name]
		if !ok {
			t.Errorf("type %s has no schema", name)
			continue
		}
		for _, full := range []bool{false, true} {
			in, err := json.Marshal(instance(all, schema, full))
			if err != nil {
				t.Fatal(err)
			}
			v := reflect.New(typ)
			if err := api.Decode(in, v.Interface()); err != nil {
				t.Errorf("%s: the reader refuses what the schema allows: %v: %s", name, err, in)
				continue
			}
			out, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			var a any
			if err := json.Unmarshal(out, &a); err != nil {
				t.Fatal(err)
			}
			if err := validate(all, schema, a); err != nil {
				t.Errorf("%s: the schema refuses what the writer makes: %v: %s", name, err, out)
			}
			if full {
				var b any
				_ = json.Unmarshal(in, &b)
				if !reflect.DeepEqual(a, b) {
					t.Errorf("%s: %s came back as %s", name, in, out)
				}
			}
		}
	}
	sort.Strings(missing)
	if len(missing) > 0 {
		t.Errorf("schemas without a type: %v", missing)
	}
	if err := validate(all, all["JoinRequest"], object{"name": "x", "join_secret": 1.0}); err == nil {
		t.Error("the test's validator accepts anything")
	}
}
