package caveats

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

// Describe says in plain English what condition demands. It shows nothing that
// a terminal could take for a command. For what no verifier can read it says
// so. It does not say whether the condition is authentic.
func Describe(condition string) string {
	kind, w := read([]byte(condition))
	if check := w; kind == kindUnknown || !readable(kind, &check) {
		return quoted(condition) + " cannot be read: every verifier refuses"
	}
	switch kind {
	case kindTimeBefore:
		return "only before " + describeTime(&w)
	case kindTimeAfter:
		return "only from " + describeTime(&w) + " on"
	case kindAction:
		return "only the " + describeNames("action", &w)
	case kindService:
		return "only at the " + describeNames("service", &w)
	case kindResource:
		return "only on " + either(w.texts(describePattern))
	case kindClientIP:
		return "only from " + either(w.texts(plainText))
	case kindArgument:
		name, _ := w.next()
		return "only if the argument " + printable(string(name.value())) + " " + describeTest(&w)
	case kindContext:
		name, _ := w.next()
		return "only where the service says that " + printable(string(name.value())) + " " + describeTest(&w)
	case kindMaxCalls:
		n, _ := parseMaxCalls(&w)
		return describeCalls(n) + " with this token and all that are derived from it here"
	case kindMaxRate:
		n, per, _ := parseMaxRate(&w)
		return describeCalls(n) + " each " + describePeriod(per) + " at any one verifier"
	case kindHolder:
		keys := w.texts(plainText)
		if len(keys) == 1 {
			return "only with proof of the key " + keys[0]
		}
		return "only with proof of one of the keys " + either(keys)
	case kindRequest:
		return "only for the one request with the hash " + either(w.texts(plainText))
	case kindBranch:
		if label, _ := parseBranch(&w); len(label.text) > 0 {
			return "always true: a branch of its own, labeled " + printable(string(label.text))
		}
		return "always true: a branch of its own"
	case kindBound:
		return "in a discharge: only with a token that passes through branch " + either(w.texts(plainText))
	case kindDeclare:
		key, value, _ := parseDeclare(&w)
		return "in a discharge: declares that " + printable(string(key.value())) + " is " + printable(string(value.value()))
	case kindDevice:
		return "only while the device " + either(w.texts(plainText)) + " is not revoked"
	case kindLog:
		level, _ := parseLog(&w)
		return "only at a service that logs the call, at level " + level + " at least"
	}
	name, _, _ := strings.Cut(condition, " ")
	s := "only where the service's own condition " + strings.TrimPrefix(name, "ext:") + " holds"
	if args := w.texts(func(x word) string { return printable(string(x.value())) }); len(args) > 0 {
		s += " for " + strings.Join(args, " ")
	}
	return s
}

// texts renders the words that are left.
func (w *words) texts(render func(word) string) (texts []string) {
	for {
		x, ok := w.next()
		if !ok {
			return texts
		}
		texts = append(texts, render(x))
	}
}

// plainText is for words of which the grammar leaves only visible ASCII.
func plainText(x word) string { return string(x.text) }

func either(texts []string) string {
	last := len(texts) - 1
	if last < 1 {
		return strings.Join(texts, "")
	}
	return strings.Join(texts[:last], ", ") + " or " + texts[last]
}

func describeNames(what string, w *words) string {
	names := w.texts(func(x word) string { return printable(string(x.value())) })
	if len(names) > 1 {
		what += "s"
	}
	return what + " " + either(names)
}

func describeTime(w *words) string {
	x, _ := w.next()
	t, _ := parseInstant(x.text)
	return t.time().Format("2006-01-02 15:04:05.999999999") + " UTC"
}

func describePattern(x word) string {
	p := string(x.value())
	if p == "**" {
		return "any resource"
	}
	base, below := strings.CutSuffix(p, "/**")
	s := printable(base)
	if below {
		s = "everything below " + s
	}
	if strings.Contains("/"+base+"/", "/*/") {
		s += " (* is any one segment)"
	}
	return s
}

func describeTest(w *words) string {
	op, _ := w.next()
	if string(op.text) == "prefix" {
		return "begins with " + either(w.texts(func(x word) string { return printable(string(x.value())) }))
	}
	values := w.texts(describeValue)
	switch string(op.text) {
	case "is":
		return "is " + values[0]
	case "in":
		return "is " + either(values)
	case "=":
		return "equals " + values[0]
	case "<":
		return "is less than " + values[0]
	case "<=":
		return "is at most " + values[0]
	case ">":
		return "is more than " + values[0]
	}
	return "is at least " + values[0]
}

func describeValue(x word) string {
	s := string(x.value())
	if !x.quoted && (s == "true" || s == "false" || capability.NumberValue(s).Kind() == capability.KindNumber) {
		return s
	}
	return printable(s)
}

func describeCalls(n uint64) string {
	switch n {
	case 0:
		return "no calls at all"
	case 1:
		return "at most 1 call"
	}
	return "at most " + strconv.FormatUint(n, 10) + " calls"
}

func describePeriod(d time.Duration) string {
	unit, name := time.Second, "second"
	if d%time.Hour == 0 {
		unit, name = time.Hour, "hour"
	} else if d%time.Minute == 0 {
		unit, name = time.Minute, "minute"
	}
	if d == unit {
		return name
	}
	return fmt.Sprintf("%d %ss", d/unit, name)
}
