package client

import (
	"fmt"
	"strconv"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// Error is a refusal by the authority. It carries the problem's code:
// errors.Is(err, capability.CodeRevoked) and capability.CodeOf work on it.
type Error struct {
	Problem    api.Problem
	Addr       string        // the node that refused
	RetryAfter time.Duration // what the node asked for; 0: nothing
}

// Error renders the refusal on one line, quoted against terminal and log injection.
func (e *Error) Error() string {
	s := string(e.Problem.Code)
	if e.Problem.Detail != "" {
		s += ": " + quoted(e.Problem.Detail)
	}
	if e.Problem.Reference != "" {
		s += " (reference " + quoted(e.Problem.Reference) + ")"
	}
	return s
}

// Unwrap is the problem's code.
func (e *Error) Unwrap() error { return e.Problem.Code }

// quoted returns s as it is if it prints as itself.
func quoted(s string) string {
	if q := strconv.QuoteToASCII(s); q[1:len(q)-1] != s {
		return q
	}
	return s
}

// retryable says whether doing the same again, with the same request id, can help.
func (e *Error) retryable() bool {
	switch e.Problem.Code {
	case api.CodeOverloaded:
		return true
	}
	return e.elsewhere() || e.Problem.Status == 502 || e.Problem.Status == 504
}

// elsewhere says whether it is the node that cannot, so that another may, or
// the same in a moment: without a leader, behind, or going down.
func (e *Error) elsewhere() bool {
	switch e.Problem.Code {
	case api.CodeNotLeader, api.CodeIndeterminate:
		return true
	case capability.CodeStaleRevocations, capability.CodeUnavailable:
		return e.Problem.Status == 503
	}
	return false
}

// malformed is an answer that is no answer.
func malformed(addr string, err error) error {
	return fmt.Errorf("%w from %s: %v", ErrResponse, addr, err)
}
