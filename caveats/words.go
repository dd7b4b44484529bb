package caveats

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// Bounds on one condition, checked before it is read. They are part of the
// format: a longer condition is unreadable everywhere.
const (
	// MaxCondition is the most bytes of a condition.
	MaxCondition = 4096
	// MaxWords is the most words of a condition, its name included.
	MaxWords = 65
	// maxName is the most bytes of a name: of an argument, a context fact, a
	// declared fact, an extension or a label.
	maxName = 128
)

// words reads the words of a condition one after another, in place. After the
// last one, done tells whether everything that was read was well formed; until
// it has said so nothing that was read counts.
type words struct {
	rest []byte // from the next word on, without the space before it
	left int    // words that may still be read
	bad  bool   // what remains is unreadable
	more bool   // a further word must follow
}

// word is one word, without its quotes and with its escapes.
type word struct {
	text    []byte
	quoted  bool
	escaped bool // text holds \" or \\
}

// split cuts the condition's name from its words. It returns nil for a name
// that is not a bare word.
func split(condition []byte) (name []byte, w words) {
	if len(condition) > MaxCondition {
		return nil, words{bad: true}
	}
	w = words{rest: condition, left: MaxWords, more: len(condition) > 0}
	first, ok := w.next()
	if !ok || first.quoted {
		return nil, words{bad: true}
	}
	return first.text, w
}

// byte classes, so that the common byte costs one look-up
const (
	plain   = iota
	blank   // ends a bare word
	quote   // neither begins nor ends anything within a bare word
	escape  // only within quotes
	control // never
	wide    // begins, or claims to begin, a longer UTF-8 sequence
)

var classes = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c < ' ' || c == 0x7f:
			t[c] = control
		case c == ' ':
			t[c] = blank
		case c == '"':
			t[c] = quote
		case c == '\\':
			t[c] = escape
		case c >= utf8.RuneSelf:
			t[c] = wide
		}
	}
	return t
}()

// wideLen returns the length of the multi-byte character at the start of b, or
// 0 if it is not valid UTF-8 or is a C1 control character.
func wideLen(b []byte) int {
	r, n := utf8.DecodeRune(b)
	if n < 2 || r <= 0x9f {
		return 0
	}
	return n
}

// next returns the next word, or false at the end and at what is unreadable.
func (w *words) next() (word, bool) {
	if !w.more {
		return word{}, false
	}
	w.more = false
	if w.left--; w.left < 0 || len(w.rest) == 0 {
		w.bad = true
		return word{}, false
	}
	if w.rest[0] == '"' {
		return w.nextQuoted()
	}
	b, i := w.rest, 0
	for i < len(b) {
		switch classes[b[i]] {
		case plain:
			i++
			continue
		case wide:
			if n := wideLen(b[i:]); n > 0 {
				i += n
				continue
			}
		case blank:
			if i > 0 {
				w.rest, w.more = b[i+1:], true
				return word{text: b[:i]}, true
			}
		}
		w.bad = true
		return word{}, false
	}
	w.rest = nil
	return word{text: b}, true
}

func (w *words) nextQuoted() (word, bool) {
	b, i, escaped := w.rest, 1, false
scan:
	for i < len(b) {
		switch classes[b[i]] {
		case plain, blank:
			i++
			continue
		case wide:
			if n := wideLen(b[i:]); n > 0 {
				i += n
				continue
			}
		case escape:
			if i+1 < len(b) && (b[i+1] == '"' || b[i+1] == '\\') {
				i, escaped = i+2, true
				continue
			}
		case quote:
			if after := b[i+1:]; len(after) == 0 {
				w.rest = nil
			} else if after[0] == ' ' {
				w.rest, w.more = after[1:], true
			} else {
				break scan
			}
			return word{text: b[1:i], quoted: true, escaped: escaped}, true
		}
		break
	}
	w.bad = true
	return word{}, false
}

// done reports whether the condition was read to its end and was well formed.
func (w *words) done() bool { return !w.bad && !w.more }

// skip reads to the end, and reports whether all was well formed.
func (w *words) skip() bool {
	for {
		if _, ok := w.next(); !ok {
			return w.done()
		}
	}
}

// one returns the only word that is left.
func (w *words) one() (word, bool) {
	x, ok := w.next()
	return x, ok && w.done()
}

// is reports whether the word reads s.
func (x word) is(s string) bool {
	if !x.escaped {
		return string(x.text) == s
	}
	n := x.begins(s)
	return n == len(x.text)
}

// prefixes reports whether s begins with the word.
func (x word) prefixes(s string) bool {
	if !x.escaped {
		return len(x.text) <= len(s) && string(x.text) == s[:len(x.text)]
	}
	for i := 0; i < len(x.text); i++ {
		if x.text[i] == '\\' {
			i++
		}
		if s == "" || s[0] != x.text[i] {
			return false
		}
		s = s[1:]
	}
	return true
}

// begins returns how many bytes of an escaped word's text spell s, -1 if they
// do not begin with it.
func (x word) begins(s string) int {
	i := 0
	for j := 0; j < len(s); j++ {
		if i < len(x.text) && x.text[i] == '\\' {
			i++
		}
		if i >= len(x.text) || x.text[i] != s[j] {
			return -1
		}
		i++
	}
	return i
}

// value returns what the word reads. It allocates only for an escaped word.
func (x word) value() []byte {
	if !x.escaped {
		return x.text
	}
	v := make([]byte, 0, len(x.text))
	for i := 0; i < len(x.text); i++ {
		if x.text[i] == '\\' {
			i++
		}
		v = append(v, x.text[i])
	}
	return v
}

// isName reports whether the word can name something: it reads 1 to maxName
// bytes and needs no escape.
func (x word) isName() bool {
	return len(x.text) > 0 && len(x.text) <= maxName && !x.escaped
}

// view is b as a string without a copy, for parsers that take a string and
// keep none of it. The token's bytes do not change while it is being cleared.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Quote returns text as one word of a condition: bare where it can be, in
// quotes otherwise. Errors: ErrCondition for text that no word can hold,
// because it is not valid UTF-8, has control characters or is too long.
func Quote(text string) (string, error) {
	if len(text) > MaxCondition/2 {
		return "", invalid("a word of %d bytes is too long", len(text))
	}
	bare := text != ""
	for i := 0; i < len(text); {
		switch classes[text[i]] {
		case control:
			return "", invalid("%s holds a control character", quoted(text))
		case wide:
			n := wideLen([]byte(text[i:min(len(text), i+utf8.UTFMax)]))
			if n == 0 {
				return "", invalid("%s is not valid UTF-8 or holds a control character", quoted(text))
			}
			i += n
			continue
		case blank, quote, escape:
			bare = false
		}
		i++
	}
	if bare {
		return text, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`, nil
}

// quoteTyped is Quote for the text of an argument's value: what would read as
// a number, a truth value or null is quoted, so that it stays text.
func quoteTyped(text string) (string, error) {
	if text == "true" || text == "false" || text == "null" || isNumber(text) {
		return `"` + text + `"`, nil
	}
	return Quote(text)
}

// quoted renders foreign text for an explanation: on one line, printable, short.
func quoted(s string) string {
	const most = 120
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

// printable renders foreign text for a person: as it is where every character
// is a printable one, quoted otherwise.
func printable(s string) string {
	for _, r := range s {
		if r == utf8.RuneError || r == '"' || r == '\\' || !unicode.IsPrint(r) {
			return quoted(s)
		}
	}
	return `"` + s + `"`
}
