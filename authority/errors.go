package authority

import (
	"context"
	"errors"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/raftstore"
)

// The errors of Open that an operator can act on.
var (
	// ErrKeyFile: the key file is missing, inside the data directory, or does
	// not open this node's keys. The detail says which.
	ErrKeyFile = errors.New("authority: key file")
	// ErrNotFormed: the data directory holds no cluster and Bootstrap was not given.
	ErrNotFormed = errors.New("authority: no cluster has been formed here")
	// ErrConfig: the configuration is wrong.
	ErrConfig = errors.New("authority: invalid configuration")
	// ErrUnreached: a node that has just joined was reached by no leader in
	// PeerConfig.JoinWait. Its place is kept: it goes on when it is opened again.
	ErrUnreached = errors.New("authority: no leader reaches this node")
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

func invalid(detail string) *Error { return &Error{Code: api.CodeInvalid, Detail: detail} }

// serviceError gives any error of the layers below its code.
func serviceError(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if r, ok := errors.AsType[*capability.Refusal](err); ok {
		return &Error{Code: r.Code, Detail: r.Detail}
	}
	if c, ok := errors.AsType[capability.Code](err); ok {
		return &Error{Code: c, Err: err}
	}
	if errors.Is(err, capability.ErrBadIdentifier) {
		return &Error{Code: capability.CodeMalformed, Err: err}
	}
	const again = "retry with the same request id"
	switch {
	case errors.Is(err, raftstore.ErrDiskFull):
		return &Error{Code: api.CodeDiskFull, Detail: "the authority cannot write; nothing was done", Err: err}
	case errors.Is(err, raftstore.ErrIndeterminate):
		return &Error{Code: api.CodeIndeterminate, Detail: "the change may or may not have been made", Hint: again, Err: err}
	case errors.Is(err, raftstore.ErrNotLeader):
		return &Error{Code: api.CodeNotLeader, Detail: "this node does not lead; nothing was done", Hint: "try another node", Err: err}
	case errors.Is(err, raftstore.ErrClosed):
		return &Error{Code: capability.CodeUnavailable, Detail: "the node is shutting down; nothing was done", Err: err}
	case errors.Is(err, raftstore.ErrTooLarge):
		return &Error{Code: api.CodeInvalid, Detail: "the request is too large", Err: err}
	case errors.Is(err, state.ErrUnknownCommand):
		return &Error{Code: api.CodeInvalid, Detail: "the request holds text that is not UTF-8", Err: err}
	case errors.Is(err, state.ErrStamp):
		return &Error{Code: api.CodeOverloaded, Detail: "the clock is behind the cluster's; nothing was done", Err: err}
	case errors.Is(err, state.ErrTooOld):
		return &Error{Code: api.CodeTooOld, Detail: "take a snapshot", Err: err}
	case errors.Is(err, audit.ErrRange):
		return &Error{Code: api.CodeNotFound, Detail: "outside the audit log", Err: err}
	case errors.Is(err, audit.ErrCorrupt):
		return &Error{Code: api.CodeAuditCorrupt, Detail: "the node's audit files hold what it never wrote", Hint: "keep a copy, and compare with a checkpoint kept elsewhere", Err: err}
	case errors.Is(err, audit.ErrArchived):
		return &Error{Code: api.CodeNotFound, Detail: "the record is archived; its hash remains", Err: err}
	case errors.Is(err, caveats.ErrCondition):
		return &Error{Code: api.CodeInvalid, Detail: err.Error()}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: capability.CodeUnavailable, Detail: "gave up waiting", Err: err}
	}
	return &Error{Code: api.CodeInternal, Err: err}
}
