package caveats

import (
	"strings"
	"unicode/utf8"

	"github.com/writ-dev/writ/capability"
)

// Usage is how one condition is written.
type Usage struct {
	Condition string // its name
	Syntax    string // for a person; the grammar is in the package documentation
	Meaning   string
	Example   string // valid, in a discharge if nowhere else
}

// usages is indexed by kind.
var usages = [...]Usage{
	kindTimeBefore: {"time-before", "time-before TIME", "now is before TIME (RFC 3339)", "time-before 2026-01-02T15:04:05Z"},
	kindTimeAfter:  {"time-after", "time-after TIME", "now is TIME or later (RFC 3339)", "time-after 2026-01-02T15:04:05+01:00"},
	kindAction:     {"action", "action NAME…", "the action is one of these", "action read list"},
	kindResource:   {"resource", "resource PATTERN…", "the resource matches one of these; * is one segment, a last ** one or more", "resource files/q3 files/reports/**"},
	kindArgument:   {"argument", "argument NAME is|in|prefix|=|<|<=|>|>= VALUE…", "an argument of the call passes the test", "argument amount <= 100.00"},
	kindContext:    {"context", "context KEY is|in|prefix|=|<|<=|>|>= VALUE…", "a fact that the service supplies passes the test", "context environment is staging"},
	kindService:    {"service", "service NAME…", "the service is one of these", "service billing"},
	kindClientIP:   {"client-ip", "client-ip CIDR…", "the caller's address is in one of these", "client-ip 10.0.0.0/8 2001:db8::/32"},
	kindMaxCalls:   {"max-calls", "max-calls N", "at most N calls through this point of the delegation tree", "max-calls 3"},
	kindMaxRate:    {"max-rate", "max-rate N/D", "at most N calls in each D, such as 1s, 5m or 24h, at one verifier", "max-rate 10/1m"},
	kindHolder:     {"holder", "holder KEY…", "the call proves possession of one of these keys, jkt:THUMBPRINT or x5t:THUMBPRINT", "holder jkt:0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
	kindRequest:    {"request", "request HASH", "the call is the one with this hash", "request 47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"},
	kindBranch:     {"branch", "branch NONCE [LABEL]", "always true; keeps siblings apart", "branch 000102030405060708090a0b helper"},
	kindBound:      {"bound", "bound BRANCH", "in a discharge: the token passes through this branch", "bound 000102030405060708090a0b0c0d0e0f"},
	kindDeclare:    {"declare", "declare KEY VALUE", "in a discharge: a fact", "declare policy prod-7"},
	kindDevice:     {"device", "device ID", "the device is not revoked", "device 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"},
	kindLog:        {"log", "log minimal|metadata|full", "the service logs the call at this level at least", "log metadata"},
	kindExt:        {"ext:NAME", "ext:NAME [WORD…]", "a service's own condition holds", "ext:region eu"},
}

// Vocabulary returns how each condition is written.
func Vocabulary() []Usage { return append([]Usage(nil), usages[kindUnknown+1:]...) }

// Validate returns nil if a verifier can accept condition in a token: it is
// known and can be read. A condition ext:NAME is taken on trust of its name.
// Errors: ErrCondition, saying what is wrong and what would be right.
func Validate(condition string) error { return validate(condition, false) }

// ValidateDischarge is Validate for a condition in a discharge.
func ValidateDischarge(condition string) error { return validate(condition, true) }

func validate(condition string, discharge bool) error {
	if len(condition) > MaxCondition {
		return invalid("%d bytes are more than %d", len(condition), MaxCondition)
	}
	kind, w := read([]byte(condition))
	if kind == kindUnknown {
		if why := lexicalFault(condition); why != "" {
			return invalid("%s: %s", quoted(condition), why)
		}
		return unknownName(condition)
	}
	if !readable(kind, &w) {
		why := lexicalFault(condition)
		if why == "" {
			why = fault(kind, condition)
		}
		u := &usages[kind]
		return invalid("%s: %s; it is written %s, such as: %s", quoted(condition), why, u.Syntax, u.Example)
	}
	switch {
	case !discharge && (kind == kindBound || kind == kindDeclare):
		return invalid("%s stands in discharges only", usages[kind].Condition)
	case discharge && kind == kindMaxCalls:
		return invalid("max-calls cannot stand in a discharge")
	}
	return nil
}

// read tells the condition's kind and leaves its words to be read.
func read(condition []byte) (kind, words) {
	name, w := split(condition)
	return kindOf(name), w
}

// readable reads the words of a condition as Check does, without a request:
// whether they can be read does not depend on one.
func readable(kind kind, w *words) (ok bool) {
	switch kind {
	case kindMaxCalls:
		_, ok = parseMaxCalls(w)
	case kindMaxRate:
		_, _, ok = parseMaxRate(w)
	case kindHolder:
		var h holders
		ok = parseHolders(w, &h)
	case kindRequest:
		_, ok = parseRequest(w)
	case kindBranch:
		_, ok = parseBranch(w)
	case kindBound:
		_, ok = parseBound(w)
	case kindDeclare:
		_, _, ok = parseDeclare(w)
	case kindDevice:
		_, ok = parseDevice(w)
	case kindLog:
		_, ok = parseLog(w)
	case kindExt:
		ok = w.skip()
	default:
		ok = judge(kind, w, &capability.Request{}) != unreadable
	}
	return ok
}

// lexicalFault says why condition is not words, or nothing if it is.
func lexicalFault(condition string) string {
	w := words{rest: []byte(condition), more: true}
	switch {
	case w.skip():
		return ""
	case condition == "":
		return "it is empty"
	case !utf8.ValidString(condition):
		return "it is not valid UTF-8"
	case strings.ContainsFunc(condition, func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f }):
		return "it holds a control character"
	case strings.HasPrefix(condition, " ") || strings.HasSuffix(condition, " ") || strings.Contains(condition, "  "):
		return "words are separated by exactly one space, with none before the first and after the last"
	}
	return `a word with a space, '"' or '\' is written in double quotes, with \" and \\ inside`
}

// unknownName names the condition that was probably meant.
func unknownName(condition string) error {
	name, _, _ := strings.Cut(condition, " ")
	if strings.HasPrefix(name, "ext:") {
		return invalid("%s: an extension's name is 1 to %d of a-z, 0-9, '.', '_' and '-'", quoted(name), maxExtension)
	}
	var known []string
	for _, u := range Vocabulary() {
		if distance(name, u.Condition) <= 2 {
			return invalid("no condition is called %s; did you mean %s?", quoted(name), u.Condition)
		}
		known = append(known, u.Condition)
	}
	return invalid("no condition is called %s; there are: %s", quoted(name), strings.Join(known, ", "))
}

// fault says what is wrong with words that are well formed.
func fault(kind kind, condition string) string {
	_, w := split([]byte(condition))
	for {
		x, ok := w.next()
		if !ok {
			break
		}
		why := ""
		switch kind {
		case kindResource:
			why = patternFault(x)
		case kindClientIP:
			why = prefixFault(x)
		case kindHolder:
			if _, ok := parseHolderKey(x); !ok {
				why = "is not a key's thumbprint"
			}
		}
		if why != "" {
			return quoted(string(x.value())) + " " + why
		}
	}
	return "what follows " + usages[kind].Condition + " cannot be read"
}

func patternFault(x word) string {
	p := string(x.value())
	switch {
	case matchPattern(x, nil) != unreadable:
		return ""
	case strings.HasPrefix(p, "/"):
		return "begins with a slash: a resource does not"
	case strings.HasSuffix(p, "/") || strings.Contains(p, "//"):
		return "has an empty segment: for everything below, write /**"
	case strings.Contains(p, "**"):
		return "has ** elsewhere than as its last segment"
	case strings.Contains(p, "*"):
		return "has a star that is only part of a segment"
	}
	return "has a segment that nothing matches: '.', '..', or with '\\', '%' or their like"
}

func prefixFault(x word) string {
	if _, ok := parsePrefix(x); ok {
		return ""
	}
	return "is not an address or a CIDR without bits set beyond its prefix, zone or mapped IPv4"
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	if len(a) > 32 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
