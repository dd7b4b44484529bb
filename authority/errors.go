package authority

import (
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// Error is a refusal, or a failure, of one of the authority's services.
type Error struct {
	Code   api.Code
	Detail string // what the caller may know
	Hint   string // what the caller can do
	Err    error  // what lies beneath, for the log; may be nil
}

func (e *Error) Error() string {
	s := string(e.Code)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is(err, code) true, and capability.CodeOf find the code.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Code}
	}
	return []error{e.Code, e.Err}
}

var _ error = capability.Code("")
