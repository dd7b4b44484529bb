package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// Exit codes; the help topic exit-codes tells them.
const (
	exitOK    = 0
	exitError = 1
	exitDeny  = 2
)

// failure is an error as a person and a program see it.
type failure struct {
	Code    string `json:"code"`           // stable
	Message string `json:"error"`          // lower case, no full stop
	Hint    string `json:"hint,omitempty"` // what the user can do
	Ref     string `json:"reference,omitempty"`

	exit  int // 0: exitError
	quiet bool
}

func (f *failure) Error() string { return f.Message }

// usage is a failure of the command line itself.
func usage(cmd *cobra.Command, format string, args ...any) *failure {
	return &failure{Code: "usage", Message: fmt.Sprintf(format, args...), Hint: "see " + cmd.CommandPath() + " --help"}
}

// fail wraps err with what was being done, keeping its code and hint.
func fail(doing string, err error) error {
	f := *explain(err)
	f.Message = doing + ": " + f.Message
	return &f
}

// denied ends the process with exitDeny after the decision was printed.
func denied(code capability.Code) error {
	return &failure{Code: string(code), Message: string(code), exit: exitDeny, quiet: true}
}

// explainers turn errors of the packages below into failures; each file that
// talks to such a package knows its errors. The first that answers wins.
var explainers = []func(error) *failure{explainBackup, explainNode, explainAudit, explainPossession, explainClient, explainCaveats, explainCapability, explainSystem}

// explain finds the code, the message and the hint of any error.
func explain(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	for _, e := range explainers {
		if f := e(err); f != nil {
			return f
		}
	}
	return &failure{Code: "error", Message: lower(err.Error())}
}

var capabilityHints = map[capability.Code]string{
	capability.CodeMalformed:       "a token begins with writ_ and is one unbroken word; was it cut, or wrapped over lines?",
	capability.CodeTooLarge:        "a token set has at most 16 KiB, 64 caveats and 16 discharges",
	capability.CodeUnknownCaveat:   "writ help caveats lists the conditions",
	capability.CodeUnavailable:     "writ doctor looks at the authority from here",
	capability.CodeRevoked:         "whoever owns the work can issue a new token: writ mint",
	capability.CodeExpired:         "ask for a new token: writ mint",
	capability.CodeBudgetExhausted: "the calls are spent; ask for a new token: writ mint",
}

func explainCapability(err error) *failure {
	var code capability.Code
	if c, ok := errors.AsType[capability.Code](err); ok {
		code = c
	} else if r, ok := errors.AsType[*capability.Refusal](err); ok {
		code = r.Code
	} else {
		return nil
	}
	message := lower(err.Error())
	if says := refusals[code]; says != "" && message == string(code) {
		message += ": " + says
	}
	return &failure{Code: string(code), Message: message, Hint: capabilityHints[code]}
}

func explainCaveats(err error) *failure {
	switch {
	case errors.Is(err, caveats.ErrCondition):
		return &failure{Code: "invalid_caveat", Message: lower(err.Error()), Hint: capabilityHints[capability.CodeUnknownCaveat]}
	case errors.Is(err, caveats.ErrResource):
		return &failure{Code: "invalid_resource", Message: lower(err.Error()), Hint: "a resource is segments apart by slashes, such as files/q3"}
	}
	return nil
}

func explainSystem(err error) *failure {
	msg := lower(err.Error())
	var opErr *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		return &failure{Code: "interrupted", Message: "interrupted"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &failure{Code: "unreachable", Message: msg, Hint: "is the authority running there? writ dev --detach starts a throw-away one"}
	case errors.Is(err, syscall.EADDRINUSE):
		return &failure{Code: "address_in_use", Message: msg, Hint: "another process listens there; choose another address with --listen"}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &failure{Code: "disk_full", Message: msg, Hint: "free some space; nothing acknowledged is lost"}
	case errors.Is(err, fs.ErrNotExist):
		return &failure{Code: "not_found", Message: msg, Hint: "check the path"}
	case errors.Is(err, fs.ErrExist):
		return &failure{Code: "exists", Message: msg, Hint: "it is never overwritten; choose another path or move it away"}
	case errors.Is(err, fs.ErrPermission):
		return &failure{Code: "permission", Message: msg, Hint: "check who owns the file and its directory"}
	case errors.As(err, &opErr), errors.Is(err, context.DeadlineExceeded):
		return &failure{Code: "unreachable", Message: msg, Hint: "check WRIT_ADDR; writ doctor looks at the authority from here"}
	}
	return nil
}

// report prints err for whoever ran the command and returns the exit code.
func (a *app) report(err error) int {
	f := explain(err)
	if !f.quiet {
		if a.output == outputJSON {
			_ = writeJSON(a.stderr, f)
		} else {
			fmt.Fprintf(a.stderr, "writ: %s\n", safe(f.Message))
			if f.Hint != "" {
				fmt.Fprintf(a.stderr, "  hint: %s\n", safe(f.Hint))
			}
			if f.Ref != "" {
				fmt.Fprintf(a.stderr, "  reference: %s\n", safe(f.Ref))
			}
		}
	}
	if f.exit != 0 {
		return f.exit
	}
	return exitError
}
