package caveats

import (
	"io"
	"net/http"
	"time"

	"github.com/writ-dev/writ/capability"
)

// Checker is the standard vocabulary as a capability.Checker.
type Checker struct{}

// Option configures a Checker.
type Option func(*Checker) error

// Extension decides a service's own condition, ext:NAME.
type Extension func(cl *capability.Clearance, args string) error

// Honor says that the service honors log caveats of these levels.
func Honor(levels ...string) Option { panic("stub") }

// WithExtension registers ext:NAME.
func WithExtension(name string, f Extension) Option { panic("stub") }

// WithRates has max-rate caveats counted in t rather than in a table of the Checker's own.
func WithRates(t *RateTable) Option { panic("stub") }

// WithReplays has request caveats on calls that are not idempotent accepted once.
func WithReplays(c *ReplayCache) Option { panic("stub") }

// Standard returns a Checker for the whole vocabulary.
func Standard(opts ...Option) (*Checker, error) { panic("stub") }

// Check implements capability.Checker.
func (k *Checker) Check(cl *capability.Clearance, c capability.Caveat) error { panic("stub") }

// Validate returns nil if a verifier can accept condition in a token: it is
// known and readable. An ext: condition is taken on trust of its name.
func Validate(condition string) error { panic("stub") }

// ValidateDischarge is Validate for a condition of a discharge.
func ValidateDischarge(condition string) error { panic("stub") }

// Complete is Validate for what a person typed: "branch" and "branch LABEL"
// come back with a fresh nonce, everything else as it is.
func Complete(rand io.Reader, condition string) (string, error) { panic("stub") }

// Describe says in plain English what condition demands. It is terminal-safe.
func Describe(condition string) string { panic("stub") }

// Builders.
func TimeBefore(t time.Time) string                                        { panic("stub") }
func TimeAfter(t time.Time) string                                         { panic("stub") }
func Action(actions ...string) (string, error)                             { panic("stub") }
func Resource(patterns ...string) (string, error)                          { panic("stub") }
func Argument(name, op string, values ...capability.Value) (string, error) { panic("stub") }
func Context(key, op string, values ...capability.Value) (string, error)   { panic("stub") }
func Service(names ...string) (string, error)                              { panic("stub") }
func ClientIP(prefixes ...string) (string, error)                          { panic("stub") }
func MaxCalls(n uint64) (string, error)                                    { panic("stub") }
func MaxRate(n uint64, per time.Duration) (string, error)                  { panic("stub") }
func Holder(keys ...capability.HolderKey) (string, error)                  { panic("stub") }
func Device(id capability.DeviceID) string                                 { panic("stub") }
func Branch(rand io.Reader, label string) (string, error)                  { panic("stub") }
func Request(hash [32]byte) string                                         { panic("stub") }
func Declare(key, value string) (string, error)                            { panic("stub") }
func Log(level string) (string, error)                                     { panic("stub") }
func Ext(name string, words ...string) (string, error)                     { panic("stub") }
func Quote(word string) (string, error)                                    { panic("stub") }

// LocalBudgets is a capability.Budgets that counts in this process only.
type LocalBudgets struct{}

// NewLocalBudgets counts at most maxEntries budgets at a time. A nil now is time.Now.
func NewLocalBudgets(maxEntries int, now func() time.Time) (*LocalBudgets, error) { panic("stub") }

// RateTable holds the token buckets of max-rate caveats.
type RateTable struct{}

// NewRateTable holds at most maxEntries buckets that are not full.
func NewRateTable(maxEntries int) (*RateTable, error) { panic("stub") }

// ReplayCache remembers requests that were served.
type ReplayCache struct{}

// NewReplayCache remembers at most maxEntries requests at a time.
func NewReplayCache(maxEntries int) (*ReplayCache, error) { panic("stub") }

// Use records hash until a moment. Errors: CodeReplayed, CodeUnavailable when full.
func (r *ReplayCache) Use(hash [32]byte, now, until time.Time) error { panic("stub") }

// NonceHeader carries the nonce of a request caveat.
const NonceHeader = "Writ-Nonce"

// RequestHash is the hash that a request caveat names.
func RequestHash(m *capability.Message) [32]byte { panic("stub") }

// OutgoingMessage is what a server will receive for r; the body is buffered, up to maxBody bytes.
func OutgoingMessage(r *http.Request, maxBody int64) (*capability.Message, error) { panic("stub") }

// IncomingMessage is the call as a server received it; bodyDigest is the SHA-256 of the body.
func IncomingMessage(r *http.Request, bodyDigest [32]byte) (*capability.Message, error) {
	panic("stub")
}

// Binder narrows tokens to one request.
type Binder struct {
	MaxBody  int64            // 0: 1 MiB
	Lifetime time.Duration    // 0: 30 s
	Now      func() time.Time // nil: time.Now
	Rand     io.Reader        // nil: crypto/rand.Reader
}

// Bind returns t narrowed to r alone, sets r's nonce header and buffers its body.
func (b *Binder) Bind(r *http.Request, t *capability.Token) (*capability.Token, error) { panic("stub") }

// Limits bounds what ParseArguments reads. Zero values are the defaults.
type Limits struct {
	MaxSize      int  // bytes; 0: 64 KiB
	MaxDepth     int  // 0: 32
	MaxMembers   int  // members and elements over all; 0: 1024
	ExactNumbers bool // the handler reads numbers exactly, not as float64
}

// ParseArguments reads a JSON object strictly. canonical is what to hand to the handler.
func ParseArguments(json []byte, limits Limits) (args capability.Fields, canonical []byte, err error) {
	panic("stub")
}

// SplitResource splits "files/q3" into segments, strictly.
func SplitResource(path string) ([]string, error) { panic("stub") }

// SplitURLPath splits the escaped path of a URL, "/files/q%20three", strictly.
func SplitURLPath(escaped string) ([]string, error) { panic("stub") }
