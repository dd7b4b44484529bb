package capability

import "encoding/base64"

// sextet is the value of a base64url digit (RFC 4648 section 5), or 0xff.
var sextet = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		t[c] = byte(i)
	}
	return t
}()

// appendText appends the text form of a token set.
func appendText(dst, set []byte) []byte {
	dst = append(dst, TextPrefix...)
	return base64.RawURLEncoding.AppendEncode(dst, set)
}

// decodeText appends what text stands for. It is stricter than encoding/base64:
// no line breaks, no padding, and no set bits past the last byte, so that a
// token has one spelling. Errors: CodeMalformed, CodeTooLarge, or "".
func decodeText(dst []byte, text string) ([]byte, Code) {
	if len(text) > MaxTextSize {
		return dst, CodeTooLarge
	}
	if len(text) < len(TextPrefix) || text[:len(TextPrefix)] != TextPrefix {
		return dst, CodeMalformed
	}
	text = text[len(TextPrefix):]
	n := len(text) * 6 / 8
	if len(text)%4 == 1 || len(dst)+n > MaxTokenSize {
		if len(dst)+n > MaxTokenSize {
			return dst, CodeTooLarge
		}
		return dst, CodeMalformed
	}
	start := len(dst)
	dst = grow(dst, n)
	out := dst[start:]
	var bad byte
	for len(text) >= 4 && len(out) >= 3 {
		a, b, c, d := sextet[text[0]], sextet[text[1]], sextet[text[2]], sextet[text[3]]
		bad |= a | b | c | d
		out[0], out[1], out[2] = a<<2|b>>4, b<<4|c>>2, c<<6|d
		text, out = text[4:], out[3:]
	}
	switch len(text) {
	case 2:
		a, b := sextet[text[0]], sextet[text[1]]
		if bad |= a | b; b&0x0f != 0 {
			bad = 0xff
		}
		out[0] = a<<2 | b>>4
	case 3:
		a, b, c := sextet[text[0]], sextet[text[1]], sextet[text[2]]
		if bad |= a | b | c; c&0x03 != 0 {
			bad = 0xff
		}
		out[0], out[1] = a<<2|b>>4, b<<4|c>>2
	}
	if bad&0x80 != 0 {
		return dst[:start], CodeMalformed
	}
	return dst, ""
}

// grow returns b longer by n bytes, whose content is undefined.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	return append(b, make([]byte, n)...)
}
