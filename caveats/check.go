package caveats

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

// Checker clears the standard vocabulary. It implements capability.Checker and
// is safe for concurrent use.
type Checker struct {
	honored    uint8 // log levels, a bit each
	extensions map[string]Extension
	rates      *RateTable
	replays    *ReplayCache
	once       func(*capability.Message) bool
}

// Option configures a Checker.
type Option func(*Checker) error

// Extension decides a service's own condition. args is what follows the name
// and one space, unparsed: well-formed words, or nothing. It returns nil if
// the condition holds and otherwise an error that carries the code of the
// refusal, such as capability.CodeContextDenied; an error without one is
// reported as unavailable. It is called at capability.StageClear and must not
// consume anything: a later caveat may still refuse.
type Extension func(cl *capability.Clearance, args string) error

// Honor says that the service fulfills log caveats of these levels (see
// LogLevels): what it logs of a call is at least what the level names. Without
// it every log caveat denies.
func Honor(levels ...string) Option {
	return func(k *Checker) error {
		for _, l := range levels {
			i := slices.Index(logLevels[:], l)
			if i < 0 {
				return fmt.Errorf("unknown log level %s (know %s)", quoted(l), strings.Join(logLevels[:], ", "))
			}
			k.honored |= 1 << i
		}
		return nil
	}
}

// WithExtension registers the condition ext:NAME. Names are permanent: what a
// name means must not change while tokens with it live.
func WithExtension(name string, f Extension) Option {
	return func(k *Checker) error {
		switch {
		case !isExtension([]byte(name)):
			return fmt.Errorf("extension name %s is not 1 to %d of a-z, 0-9, '.', '_' and '-'", quoted(name), maxExtension)
		case f == nil:
			return fmt.Errorf("extension %s has no function", name)
		case k.extensions[name] != nil:
			return fmt.Errorf("extension %s is registered twice", name)
		}
		k.extensions[name] = f
		return nil
	}
}

// WithRates has max-rate caveats counted in t, which several Checkers may
// share. Without it a Checker has a table of its own for DefaultRateEntries.
func WithRates(t *RateTable) Option {
	return func(k *Checker) error {
		if t == nil {
			return errors.New("no rate table")
		}
		k.rates = t
		return nil
	}
}

// WithReplays has a call for which once returns true, and which a request caveat
// names, accepted one time only. A nil once means the calls that are not
// idempotent by their method (RFC 9110 section 9.2.2): all but GET, HEAD,
// OPTIONS, TRACE, PUT and DELETE. Such a call must come with a token that ends,
// by its time-before, within MaxReplayWindow, for that long it is remembered.
func WithReplays(c *ReplayCache, once func(*capability.Message) bool) Option {
	return func(k *Checker) error {
		if c == nil {
			return errors.New("no replay cache")
		}
		if once == nil {
			once = notIdempotent
		}
		k.replays, k.once = c, once
		return nil
	}
}

func notIdempotent(m *capability.Message) bool {
	switch m.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return false
	}
	return true
}

// Standard returns a Checker for the whole vocabulary.
func Standard(opts ...Option) (*Checker, error) {
	k := &Checker{extensions: make(map[string]Extension)}
	for _, o := range opts {
		if err := o(k); err != nil {
			return nil, fmt.Errorf("caveats: %w", err)
		}
	}
	if k.rates == nil {
		t, err := NewRateTable(DefaultRateEntries)
		if err != nil {
			return nil, err
		}
		k.rates = t
	}
	return k, nil
}

// kind is which condition a name means.
type kind uint8

const (
	kindUnknown kind = iota
	kindTimeBefore
	kindTimeAfter
	kindAction
	kindResource
	kindArgument
	kindContext
	kindService
	kindClientIP
	kindMaxCalls
	kindMaxRate
	kindHolder
	kindRequest
	kindBranch
	kindBound
	kindDeclare
	kindDevice
	kindLog
	kindExt
)

func kindOf(name []byte) kind {
	switch string(name) {
	case "time-before":
		return kindTimeBefore
	case "time-after":
		return kindTimeAfter
	case "action":
		return kindAction
	case "resource":
		return kindResource
	case "argument":
		return kindArgument
	case "context":
		return kindContext
	case "service":
		return kindService
	case "client-ip":
		return kindClientIP
	case "max-calls":
		return kindMaxCalls
	case "max-rate":
		return kindMaxRate
	case "holder":
		return kindHolder
	case "request":
		return kindRequest
	case "branch":
		return kindBranch
	case "bound":
		return kindBound
	case "declare":
		return kindDeclare
	case "device":
		return kindDevice
	case "log":
		return kindLog
	}
	if len(name) > 4 && string(name[:4]) == "ext:" && isExtension(name[4:]) {
		return kindExt
	}
	return kindUnknown
}

// FactProof is the fact that says how a call proves a holder's key (package
// caveats/pop). Where it is missing the proof is, so that a caveat about it is
// refused as holder_proof.
const FactProof = "pop"

// Check returns nil if c holds for the request, or a *capability.Refusal. It
// implements capability.Checker.
func (k *Checker) Check(cl *capability.Clearance, c capability.Caveat) error {
	name, w := split(c.Condition)
	switch kind := kindOf(name); kind {
	case kindTimeBefore:
		end, v := judgeTime(&w, cl.Request(), true)
		if v != held {
			return refusal(c, kind, v, cl.Request())
		}
		cl.EndsBy(end.millis())
		return nil
	case kindMaxCalls:
		return k.checkMaxCalls(cl, c, &w)
	case kindMaxRate:
		return k.checkMaxRate(cl, c, &w)
	case kindHolder:
		return k.checkHolder(cl, c, &w)
	case kindRequest:
		return k.checkRequest(cl, c, &w)
	case kindBranch:
		if _, ok := parseBranch(&w); !ok {
			return unknown(c)
		}
		return nil
	case kindDeclare:
		key, value, ok := parseDeclare(&w)
		if !ok || !c.Discharge {
			return unknown(c)
		}
		cl.Declare(c, key.text, value.value())
		return nil
	case kindDevice:
		d, ok := parseDevice(&w)
		if !ok {
			return unknown(c)
		}
		if cl.DeviceRevoked(d) {
			return refuse(c, capability.CodeRevoked, "the device is revoked")
		}
		return nil
	case kindLog:
		return k.checkLog(cl, c, &w)
	case kindExt:
		return k.checkExt(cl, c, name, &w)
	default:
		if v := judge(kind, &w, cl.Request()); v != held {
			return refusal(c, kind, v, cl.Request())
		}
		return nil
	}
}

// judge decides the conditions that only compare. For every other it returns
// unreadable.
func judge(kind kind, w *words, req *capability.Request) verdict {
	switch kind {
	case kindTimeBefore, kindTimeAfter:
		_, v := judgeTime(w, req, kind == kindTimeBefore)
		return v
	case kindAction:
		return checkNames(w, req.Action)
	case kindResource:
		return checkResource(w, req.Resource)
	case kindArgument:
		return checkFields(w, req.Arguments)
	case kindContext:
		return checkFields(w, req.Context)
	case kindService:
		return checkNames(w, req.Service)
	case kindClientIP:
		return checkClient(w, req.Client)
	}
	return unreadable
}

// judgeTime decides "T" by the request's moment, which must be before it, or must not.
func judgeTime(w *words, req *capability.Request, before bool) (instant, verdict) {
	x, ok := w.one()
	if !ok || x.quoted {
		return instant{}, unreadable
	}
	t, ok := parseInstant(x.text)
	if !ok {
		return instant{}, unreadable
	}
	if req.Now.IsZero() {
		return t, denied // nobody set the clock
	}
	return t, verdictOf(instantOf(req.Now).before(t) == before)
}

func (k *Checker) checkMaxCalls(cl *capability.Clearance, c capability.Caveat, w *words) error {
	n, ok := parseMaxCalls(w)
	if !ok || c.Discharge {
		return unknown(c) // in a discharge there is no chain to count through
	}
	if err := cl.Spend(c, n); err != nil {
		return refuse(c, capability.CodeOf(err), "")
	}
	return nil
}

func (k *Checker) checkMaxRate(cl *capability.Clearance, c capability.Caveat, w *words) error {
	n, per, ok := parseMaxRate(w)
	if !ok {
		return unknown(c)
	}
	switch cl.Stage() {
	case capability.StageRate:
		if !k.rates.take(cl.Identity().ID, cl.Branch(c), n, per, cl.Request().Now) {
			return refuse(c, capability.CodeRateLimited, "")
		}
	case capability.StageGiveBack:
		k.rates.giveBack(cl.Branch(c), n, per)
	default:
		cl.Later(c, capability.StageRate)
	}
	return nil
}

func (k *Checker) checkHolder(cl *capability.Clearance, c capability.Caveat, w *words) error {
	var h holders
	if !parseHolders(w, &h) {
		return unknown(c)
	}
	proving := cl.Stage() == capability.StageHolder
	alive, code, detail := 0, capability.CodeHolderProof, "no proof of a key that it names"
	for i := range h.n {
		key := &h.keys[i]
		if cl.HolderRevoked(*key) {
			continue
		}
		alive++
		proof := cl.Request().Holder
		if !proving || proof == nil {
			continue
		}
		err := proof.Prove(cl.Context(), *key)
		if err == nil {
			return nil
		}
		if r, ok := errors.AsType[*capability.Refusal](err); ok {
			detail = r.Detail // the proof of this key, and why it does not hold
		}
		if e := capability.CodeOf(err); e != capability.CodeHolderProof {
			code = e // says more than that another key was proved
		}
	}
	switch {
	case alive == 0:
		return refuse(c, capability.CodeRevoked, "every key that it names is revoked")
	case proving:
		return refuse(c, code, detail)
	}
	cl.Later(c, capability.StageHolder)
	return nil
}

func (k *Checker) checkRequest(cl *capability.Clearance, c capability.Caveat, w *words) error {
	want, ok := parseRequest(w)
	if !ok {
		return unknown(c)
	}
	switch cl.Stage() {
	case capability.StageRate:
		return k.checkReplay(cl, c, want)
	case capability.StageGiveBack:
		k.replays.forget(want)
		return nil
	}
	m := cl.Request().Message
	if m == nil || RequestHash(m) != want {
		return refuse(c, capability.CodeRequestMismatch, "")
	}
	cl.BindRequest()
	if k.replays != nil && k.once(m) {
		cl.Later(c, capability.StageRate)
	}
	return nil
}

// checkReplay accepts a request once. It runs late, so that a call refused for
// another reason may be tried again.
func (k *Checker) checkReplay(cl *capability.Clearance, c capability.Caveat, hash [32]byte) error {
	now, ends := cl.Request().Now, time.UnixMilli(cl.Ends())
	if ends.Sub(now) > MaxReplayWindow {
		return refuse(c, capability.CodeRequestMismatch,
			"a call that is accepted once needs a time-before within "+MaxReplayWindow.String())
	}
	if err := k.replays.use(cl.Identity().ID, hash, now, ends); err != nil {
		return refuse(c, capability.CodeOf(err), "")
	}
	return nil
}

func (k *Checker) checkLog(cl *capability.Clearance, c capability.Caveat, w *words) error {
	level, ok := parseLog(w)
	if !ok {
		return unknown(c)
	}
	if k.honored&(1<<slices.Index(logLevels[:], level)) == 0 {
		return refuse(c, capability.CodeObligation, "the service does not honor this level")
	}
	cl.ObligeLog(level)
	return nil
}

func (k *Checker) checkExt(cl *capability.Clearance, c capability.Caveat, name []byte, w *words) error {
	args := string(w.rest)
	f := k.extensions[string(name[len("ext:"):])]
	if f == nil || !w.skip() {
		return unknown(c)
	}
	err := f(cl, args)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*capability.Refusal](err); ok {
		return err
	}
	return refuse(c, capability.CodeOf(err), quoted(err.Error()))
}

func refuse(c capability.Caveat, code capability.Code, detail string) error {
	return &capability.Refusal{Code: code, Caveat: string(c.Condition), Detail: detail}
}

func unknown(c capability.Caveat) error {
	return refuse(c, capability.CodeUnknownCaveat, "")
}

// refusal explains what judge denied. It names arguments and facts and never
// shows their values, which may be secrets.
func refusal(c capability.Caveat, kind kind, v verdict, req *capability.Request) error {
	if v == unreadable {
		return unknown(c)
	}
	switch kind {
	case kindTimeBefore:
		return refuse(c, capability.CodeExpired, "now is "+req.Now.UTC().Format(timeLayout))
	case kindTimeAfter:
		return refuse(c, capability.CodeNotYetValid, "now is "+req.Now.UTC().Format(timeLayout))
	case kindAction:
		return refuse(c, capability.CodeActionDenied, "the action is "+orNone(req.Action))
	case kindResource:
		return refuse(c, capability.CodeResourceDenied, "the resource is "+orNone(strings.Join(req.Resource, "/")))
	case kindArgument:
		return refuse(c, capability.CodeArgumentDenied, "the argument "+fieldDetail(v))
	case kindContext:
		if v == missing && strings.HasPrefix(string(c.Condition), "context "+FactProof+" ") {
			return refuse(c, capability.CodeHolderProof, "no proof of possession came with the call")
		}
		return refuse(c, capability.CodeContextDenied, "the fact "+fieldDetail(v))
	case kindService:
		return refuse(c, capability.CodeServiceDenied, "the service is "+orNone(req.Service))
	case kindClientIP:
		if !req.Client.IsValid() {
			return refuse(c, capability.CodeClientDenied, "the client's address is not known")
		}
		return refuse(c, capability.CodeClientDenied, "the client is "+quoted(req.Client.String()))
	}
	return unknown(c)
}

// timeLayout is RFC 3339 in UTC with no more fraction than there is.
const timeLayout = "2006-01-02T15:04:05.999999999Z"

func fieldDetail(v verdict) string {
	switch v {
	case missing:
		return "is missing, or there more than once"
	case otherType:
		return "is of another type"
	}
	return "does not satisfy it"
}

func orNone(s string) string {
	if s == "" {
		return "not known"
	}
	return quoted(s)
}
