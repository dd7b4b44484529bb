package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
	if deep(data) {
		return fmt.Errorf("%w: nested too deeply", ErrJSON)
	}
	err := json.Unmarshal(data, v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	// The library's own texts quote values: no more is taken from its errors than
	// which member is wrong, and how.
	if e, ok := errors.AsType[*json.SemanticError](err); ok {
		switch at := member(e.JSONPointer); e.Err {
		case json.ErrUnknownName:
			return fmt.Errorf("%w: %s is unknown", ErrJSON, at)
		case nil:
			return fmt.Errorf("%w: %s cannot be %s", ErrJSON, at, kind(e.JSONKind))
		default:
			return fmt.Errorf("%w: %s is not in its form", ErrJSON, at)
		}
	}
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok && e.Err == jsontext.ErrDuplicateName {
		return fmt.Errorf("%w: %s is given twice", ErrJSON, member(e.JSONPointer))
	}
	return fmt.Errorf("%w: not one JSON value in UTF-8", ErrJSON)
}

// deep reports whether data is nested beyond maxDepth. The library would take
// 10,000 levels, and to say where in them an error is it copies the path of each
// level: the square of what a stranger has sent.
func deep(data []byte) bool {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; i < len(data) && data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			if depth++; depth > maxDepth {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}

// member names a place in the value: member "agent.name".
func member(p jsontext.Pointer) string {
	if p == "" {
		return "the value"
	}
	return fmt.Sprintf("member %.64q", strings.Join(slices.Collect(p.Tokens()), "."))
}

func kind(k jsontext.Kind) string {
	switch k {
	case jsontext.KindBeginObject:
		return "an object"
	case jsontext.KindBeginArray:
		return "an array"
	case jsontext.KindString:
		return "a string"
	case jsontext.KindNumber:
		return "a number"
	}
	return k.String() // null, true, false
}
