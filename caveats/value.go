package caveats

import "github.com/writ-dev/writ/capability"

// verdict is what a condition makes of a request. The zero verdict is the one
// that denies whatever the request.
type verdict uint8

const (
	unreadable verdict = iota
	held
	denied
	missing   // denied: the value is not there, or not exactly once
	otherType // denied: the value is of a type that the condition does not compare
)

func verdictOf(ok bool) verdict {
	if ok {
		return held
	}
	return denied
}

// checkFields judges "NAME op VALUE…" by fields. All of the condition is read
// whatever the value, so that unreadable does not depend on the request.
func checkFields(w *words, fields capability.Fields) verdict {
	name, ok := w.next()
	if !ok || !name.isName() {
		return unreadable
	}
	op, ok := w.next()
	if !ok || op.quoted {
		return unreadable
	}
	v, present := fields.Get(name.text)
	result := compare(w, op.text, v)
	switch {
	case result == unreadable || !w.done():
		return unreadable
	case !present:
		return missing
	}
	return result
}

// compare judges "op VALUE…" by v.
func compare(w *words, op []byte, v capability.Value) verdict {
	switch string(op) {
	case "is":
		x, ok := w.one()
		if !ok {
			return unreadable
		}
		return equals(x, v)
	case "in":
		return oneOf(w, v)
	case "prefix":
		x, ok := w.one()
		switch {
		case !ok:
			return unreadable
		case v.Kind() != capability.KindString:
			return otherType
		}
		return verdictOf(x.prefixes(v.Text()))
	case "=", "<", "<=", ">", ">=":
		x, ok := w.one()
		if !ok || x.quoted {
			return unreadable
		}
		limit, ok := parseDecimal(view(x.text))
		if !ok {
			return unreadable
		}
		n, result := compareNumber(v, limit)
		if result != held {
			return result
		}
		switch string(op) {
		case "=":
			return verdictOf(n == 0)
		case "<":
			return verdictOf(n < 0)
		case "<=":
			return verdictOf(n <= 0)
		case ">":
			return verdictOf(n > 0)
		}
		return verdictOf(n >= 0)
	}
	return unreadable
}

func oneOf(w *words, v capability.Value) verdict {
	result, n := otherType, 0
	for {
		x, ok := w.next()
		if !ok {
			break
		}
		n++
		switch r := equals(x, v); {
		case r == unreadable:
			return unreadable
		case r == held, r == denied && result != held:
			result = r
		}
	}
	if n == 0 || !w.done() {
		return unreadable
	}
	return result
}

// equals compares a typed word with v: value and type.
func equals(x word, v capability.Value) verdict {
	kind := capability.KindString
	if !x.quoted {
		switch {
		case string(x.text) == "true", string(x.text) == "false":
			kind = capability.KindBool
		case string(x.text) == "null":
			return unreadable // would be taken for JSON's null, which equals nothing
		case isNumber(view(x.text)):
			n, ok := parseDecimal(view(x.text))
			if !ok {
				return unreadable
			}
			c, result := compareNumber(v, n)
			if result != held {
				return result
			}
			return verdictOf(c == 0)
		}
	}
	if v.Kind() != kind {
		return otherType
	}
	return verdictOf(x.is(v.Text()))
}

// compareNumber orders v against limit. The verdict is held if the two compare.
func compareNumber(v capability.Value, limit decimal) (int, verdict) {
	if v.Kind() != capability.KindNumber {
		return 0, otherType
	}
	d, ok := parseDecimal(v.Text())
	if !ok {
		return 0, denied
	}
	return d.compare(limit), held
}

// isNumber reports whether s is a number of RFC 8259 section 6.
func isNumber(s string) bool {
	return s != "" && (s[0] == '-' || '0' <= s[0] && s[0] <= '9') &&
		capability.NumberValue(s).Kind() == capability.KindNumber
}
