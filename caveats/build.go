package caveats

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

// The builders write conditions. What they return has passed Validate, so that
// a verifier can read it; errors are ErrCondition's.

// TimeBefore is the condition that now is before t. Moments outside the years
// 0 to 9999 do not exist in RFC 3339: they become the nearest that does.
func TimeBefore(t time.Time) string { return "time-before " + formatTime(t) }

// TimeAfter is the condition that now is t or later. See TimeBefore.
func TimeAfter(t time.Time) string { return "time-after " + formatTime(t) }

func formatTime(t time.Time) string {
	t = t.UTC()
	switch {
	case t.Year() < 0:
		t = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	case t.Year() > 9999:
		t = time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	}
	return t.Format(timeLayout)
}

// Action is the condition that the request's action is one of these.
func Action(actions ...string) (string, error) { return build("action", actions...) }

// Resource is the condition that the request's resource matches one of these
// patterns, such as "files/q3", "files/*/meta" and "files/reports/**".
func Resource(patterns ...string) (string, error) { return build("resource", patterns...) }

// Service is the condition that the service is one of these.
func Service(names ...string) (string, error) { return build("service", names...) }

// ClientIP is the condition that the caller's address is in one of these, each
// an address or a CIDR.
func ClientIP(prefixes ...string) (string, error) { return build("client-ip", prefixes...) }

// Argument is the condition that the argument name passes a test: op is "is",
// "in", "prefix" (of strings), "=", "<", "<=", ">" or ">=" (of numbers). "in"
// takes one value or more, the others exactly one.
func Argument(name, op string, values ...capability.Value) (string, error) {
	return buildTest("argument", name, op, values)
}

// Context is Argument for a fact that the service supplies.
func Context(key, op string, values ...capability.Value) (string, error) {
	return buildTest("context", key, op, values)
}

// MaxCalls is the condition that at most n calls pass through its point of the
// delegation tree.
func MaxCalls(n uint64) (string, error) {
	return checked("max-calls " + strconv.FormatUint(n, 10))
}

// MaxRate is the condition that at most n calls at once pass a verifier, and n
// more in each per, which is a whole number of seconds up to 24 hours.
func MaxRate(n uint64, per time.Duration) (string, error) {
	if per%time.Second != 0 {
		return "", invalid("a max-rate counts in whole seconds, not %v", per)
	}
	unit, suffix := time.Second, "s"
	if per%time.Hour == 0 {
		unit, suffix = time.Hour, "h"
	} else if per%time.Minute == 0 {
		unit, suffix = time.Minute, "m"
	}
	return checked(fmt.Sprintf("max-rate %d/%d%s", n, per/unit, suffix))
}

// Holder is the condition that the call proves possession of one of these keys.
func Holder(keys ...capability.HolderKey) (string, error) {
	c := "holder"
	for _, k := range keys {
		c += " " + k.String()
	}
	return checked(c)
}

// Request is the condition that the call is the one with this hash (see
// RequestHash).
func Request(hash [32]byte) string {
	return "request " + base64.RawURLEncoding.EncodeToString(hash[:])
}

// Device is the condition that a device is not revoked.
func Device(id capability.DeviceID) string { return "device " + id.String() }

// Branch is the condition, always true, that keeps this narrowing apart from
// every other. rand gives 12 bytes; label may be empty.
func Branch(rand io.Reader, label string) (string, error) {
	var nonce [12]byte
	if _, err := io.ReadFull(rand, nonce[:]); err != nil {
		return "", err
	}
	c := "branch " + hex.EncodeToString(nonce[:])
	if label != "" {
		c += " " + label
	}
	return checked(c)
}

// Declare is a fact that a discharge declares.
func Declare(key, value string) (string, error) {
	c, err := join("declare", key, value)
	if err != nil {
		return "", err
	}
	return c, ValidateDischarge(c)
}

// Log is the condition that the service logs the call at this level at least.
func Log(level string) (string, error) { return build("log", level) }

// Ext is a service's own condition.
func Ext(name string, words ...string) (string, error) { return build("ext:"+name, words...) }

// Complete is Validate for a condition that a person typed: "branch" and
// "branch LABEL" come back with a nonce from rand, everything else as it is.
func Complete(rand io.Reader, condition string) (string, error) {
	if condition == "branch" {
		return Branch(rand, "")
	}
	label, ok := strings.CutPrefix(condition, "branch ")
	if ok && Validate(condition) != nil {
		return Branch(rand, label)
	}
	return checked(condition)
}

func build(name string, args ...string) (string, error) {
	c, err := join(name, args...)
	if err != nil {
		return "", err
	}
	return checked(c)
}

func join(name string, args ...string) (string, error) {
	for _, a := range args {
		q, err := Quote(a)
		if err != nil {
			return "", err
		}
		name += " " + q
	}
	return name, nil
}

func buildTest(condition, name, op string, values []capability.Value) (string, error) {
	c, err := join(condition, name)
	if err != nil {
		return "", err
	}
	c += " " + op
	for _, v := range values {
		text := v.Text()
		switch v.Kind() {
		case capability.KindNumber, capability.KindBool:
			if op == "prefix" {
				return "", invalid("prefix compares strings, not %s", quoted(text))
			}
		case capability.KindString:
			quote := quoteTyped
			if op == "prefix" {
				quote = Quote
			}
			if text, err = quote(text); err != nil {
				return "", err
			}
		default:
			return "", invalid("no condition compares null, objects or arrays")
		}
		c += " " + text
	}
	return checked(c)
}

func checked(condition string) (string, error) {
	if err := Validate(condition); err != nil {
		return "", err
	}
	return condition, nil
}
