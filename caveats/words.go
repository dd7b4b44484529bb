package caveats

import (
	"encoding/binary"
	"math/bits"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// MaxCondition is the most bytes of a condition, checked before it is read. It
// is part of the format: a longer condition is unreadable everywhere.
const MaxCondition = 4096

// maxName is the most bytes of a name: of an argument, a context fact or a
// declared fact, an action or a service.
const maxName = 128

// words reads the words of a condition one after another, in place. After the
// last one, done tells whether everything that was read was well formed; until
// it has said so nothing that was read counts.
type words struct {
	rest []byte // from the next word on, without the space before it
	more bool   // a further word must follow
	bad  bool   // what remains is unreadable
}

// word is one word, without its quotes and with its escapes.
type word struct {
	text    []byte
	quoted  bool
	escaped bool // text holds \" or \\
}

// split cuts the condition's name from its words. The name is not looked at
// further: a known one is well formed.
func split(condition []byte) (name []byte, w words) {
	if len(condition) > MaxCondition {
		return nil, words{bad: true}
	}
	for i, c := range condition {
		if c == ' ' {
			return condition[:i], words{rest: condition[i+1:], more: true}
		}
	}
	return condition, words{}
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

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// plainPrefix returns how many of the first bytes of b are plain for sure,
// looking at eight at a time: it stops at each byte below '#', at '\', DEL and
// beyond (Hacker's Delight, section 6-1; the lowest flag is exact).
func plainPrefix(b []byte) int {
	i := 0
	for ; len(b)-i >= 8; i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		y := x ^ '\\'*ones
		if stop := ((x-'#'*ones)&^x | (y-ones)&^y | x | (x + ones)) & highs; stop != 0 {
			return i + bits.TrailingZeros64(stop)/8
		}
	}
	return i
}

// next returns the next word, or false at the end and at what is unreadable.
func (w *words) next() (word, bool) {
	if !w.more {
		return word{}, false
	}
	w.more = false
	b := w.rest
	i := plainPrefix(b)
	for i < len(b) {
		switch classes[b[i]] {
		case plain:
			i++
			continue
		case blank:
			if i > 0 {
				w.rest, w.more = b[i+1:], true
				return word{text: b[:i]}, true
			}
		case quote:
			if i == 0 {
				return w.nextQuoted()
			}
		case wide:
			if n := wideLen(b[i:]); n > 0 {
				i += n
				continue
			}
		}
		i = 0
		break
	}
	if i == 0 {
		w.bad = true
		return word{}, false
	}
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
