package api

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// ErrJSON is wrapped by every error of Decode.
var ErrJSON = errors.New("invalid JSON")

// maxDepth is far beyond any type of this package.
const maxDepth = 16

// Decode reads one JSON value into v, strictly: valid UTF-8, no unknown member,
// no name twice, names in exactly their case, nothing after the value. What
// two readers could understand differently is refused. The caller bounds
// len(data). Errors wrap [ErrJSON] and never quote the input's values, which
// may be credentials.
func Decode(data []byte, v any) error {
	if !utf8.Valid(data) || !json.Valid(data) {
		return fmt.Errorf("%w: not one JSON value in UTF-8", ErrJSON)
	}
	w := walker{data: data}
	if err := w.value(reflect.TypeOf(v).Elem(), 0); err != nil {
		return fmt.Errorf("%w: %v", ErrJSON, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("%w: member %q cannot be a %s", ErrJSON, t.Field, t.Value)
		}
		return fmt.Errorf("%w: a member is not in its form", ErrJSON)
	}
	return nil
}

// walker goes over valid JSON beside the type that it is meant for, and holds
// object members to the fields: encoding/json would match them in any case
// and keep the last of several.
type walker struct {
	data []byte
	at   int
}

var (
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonType = reflect.TypeFor[json.Unmarshaler]()
)

func (w *walker) value(t reflect.Type, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && (reflect.PointerTo(t).Implements(textType) || reflect.PointerTo(t).Implements(jsonType)) {
		t = nil // it reads itself
	}
	switch w.peek() {
	case '{':
		return w.object(t, depth)
	case '[':
		return w.array(t, depth)
	case '"':
		w.text()
	default:
		for w.at < len(w.data) && !strings.ContainsRune(",]} \t\r\n", rune(w.data[w.at])) {
			w.at++
		}
	}
	return nil
}

func (w *walker) object(t reflect.Type, depth int) error {
	w.at++
	var seen []string
	for w.peek() != '}' {
		raw := w.text()
		var name string
		if err := json.Unmarshal(raw, &name); err != nil {
			return errors.New("a member's name cannot be read")
		}
		for _, s := range seen {
			if s == name {
				return fmt.Errorf("member %.64q is given twice", name)
			}
		}
		if len(seen) == 256 {
			return errors.New("too many members")
		}
		seen = append(seen, name)
		var of reflect.Type
		switch {
		case t == nil:
		case t.Kind() == reflect.Struct:
			if of = fieldNamed(t, name); of == nil {
				return fmt.Errorf("member %.64q is unknown", name)
			}
		case t.Kind() == reflect.Map:
			of = t.Elem()
		}
		w.peek()
		w.at++ // the colon
		if err := w.value(of, depth+1); err != nil {
			return err
		}
		if w.peek() == ',' {
			w.at++
		}
	}
	w.at++
	return nil
}

func (w *walker) array(t reflect.Type, depth int) error {
	w.at++
	var of reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		of = t.Elem()
	}
	for w.peek() != ']' {
		if err := w.value(of, depth+1); err != nil {
			return err
		}
		if w.peek() == ',' {
			w.at++
		}
	}
	w.at++
	return nil
}

// peek skips white space and returns the next byte.
func (w *walker) peek() byte {
	for w.at < len(w.data) {
		switch c := w.data[w.at]; c {
		case ' ', '\t', '\r', '\n':
			w.at++
		default:
			return c
		}
	}
	return 0
}

// text passes over a string and returns it with its quotes.
func (w *walker) text() []byte {
	w.peek()
	start := w.at
	for w.at++; w.data[w.at] != '"'; w.at++ {
		if w.data[w.at] == '\\' {
			w.at++
		}
	}
	w.at++
	return w.data[start:w.at]
}

// fieldNamed returns the type of the field with this JSON name, or nil.
func fieldNamed(t reflect.Type, name string) reflect.Type {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && tag == "":
			if of := fieldNamed(f.Type, name); of != nil {
				return of
			}
		case f.IsExported() && tag == name && tag != "-":
			return f.Type
		}
	}
	return nil
}
