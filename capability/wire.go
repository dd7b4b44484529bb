package capability

// The version 2 binary format of macaroons (libmacaroons, doc/format.txt), in
// its one canonical encoding: what is accepted here re-encodes to the same
// bytes, so that a token cannot be dressed up as another.

const (
	wireVersion  = 2
	wireEOS      = 0
	wireLocation = 1
	wireID       = 2
	wireVID      = 4
	wireSig      = 6

	vidSize = 24 + 16 + 32 // nonce, Poly1305 tag, caveat key
)

// span is a stretch of the token set; MaxTokenSize fits.
type span struct{ off, n uint16 }

func (s span) of(set []byte) []byte { return set[s.off : int(s.off)+int(s.n)] }

// caveatSpan is where a caveat stands. A first-party one has no vid.
type caveatSpan struct {
	id, vid span
	loc     span
	end     uint16 // just after it
}

func (c *caveatSpan) thirdParty() bool { return c.vid.n != 0 }

// macaroonSpan is where a macaroon of the set stands; its caveats are
// caveats[first:last] of the layout.
type macaroonSpan struct {
	id          span
	start, end  uint16
	sig         uint16 // 32 bytes
	first, last uint8
}

// layout is where everything stands in a token set.
type layout struct {
	macaroons [1 + MaxDischarges]macaroonSpan
	caveats   [MaxCaveats]caveatSpan
	nm, nc    int
}

// root is the first macaroon.
func (l *layout) root() *macaroonSpan { return &l.macaroons[0] }

// find returns the index of the first discharge with this identifier, or 0.
func (l *layout) find(set, id []byte) int {
	for d := 1; d < l.nm; d++ {
		if string(l.macaroons[d].id.of(set)) == string(id) {
			return d
		}
	}
	return 0
}

// parse fills the layout, and is all that reads what nobody has authenticated.
// It hashes nothing. Errors: CodeMalformed, CodeTooLarge, or "".
func (l *layout) parse(set []byte) Code {
	if len(set) > MaxTokenSize {
		return CodeTooLarge
	}
	l.nm, l.nc = 0, 0
	for at := 0; at < len(set) || l.nm == 0; {
		if l.nm == len(l.macaroons) {
			return CodeTooLarge
		}
		next, code := l.parseMacaroon(set, at, &l.macaroons[l.nm])
		if code != "" {
			return code
		}
		l.nm++
		at = next
	}
	return ""
}

func (l *layout) parseMacaroon(set []byte, at int, m *macaroonSpan) (int, Code) {
	if at >= len(set) || set[at] != wireVersion {
		return 0, CodeMalformed
	}
	m.start, m.first = uint16(at), uint8(l.nc)
	at++
	var ok bool
	if at < len(set) && set[at] == wireLocation {
		var loc span
		if loc, at, ok = readField(set, at, wireLocation); !ok || loc.n == 0 {
			return 0, CodeMalformed
		}
	}
	if m.id, at, ok = readField(set, at, wireID); !ok {
		return 0, CodeMalformed
	}
	if at >= len(set) || set[at] != wireEOS {
		return 0, CodeMalformed
	}
	at++
	for {
		if at >= len(set) {
			return 0, CodeMalformed
		}
		if set[at] == wireEOS {
			at++
			break
		}
		if l.nc == MaxCaveats {
			return 0, CodeTooLarge
		}
		c := &l.caveats[l.nc]
		c.vid, c.loc = span{}, span{}
		if set[at] == wireLocation {
			if c.loc, at, ok = readField(set, at, wireLocation); !ok || c.loc.n == 0 {
				return 0, CodeMalformed
			}
		}
		if c.id, at, ok = readField(set, at, wireID); !ok {
			return 0, CodeMalformed
		}
		if at < len(set) && set[at] == wireVID {
			if c.vid, at, ok = readField(set, at, wireVID); !ok || c.vid.n == 0 {
				return 0, CodeMalformed
			}
		} else if c.loc.n != 0 {
			return 0, CodeMalformed // a location without a verification id
		}
		if at >= len(set) || set[at] != wireEOS {
			return 0, CodeMalformed
		}
		at++
		c.end = uint16(at)
		l.nc++
	}
	sig, at, ok := readField(set, at, wireSig)
	if !ok || sig.n != 32 {
		return 0, CodeMalformed
	}
	m.sig, m.end, m.last = sig.off, uint16(at), uint8(l.nc)
	return at, ""
}

// readField reads a field of this type, its length a minimal varint.
func readField(set []byte, at int, typ byte) (s span, next int, ok bool) {
	if at+1 >= len(set) || set[at] != typ {
		return span{}, 0, false
	}
	n := int(set[at+1])
	at += 2
	if n >= 0x80 {
		// Two bytes reach past all that fits beside the signature; a last byte
		// of 0 would be a longer spelling of a smaller number.
		if at >= len(set) || set[at] == 0 || set[at] >= 0x80 {
			return span{}, 0, false
		}
		n = n&0x7f | int(set[at])<<7
		at++
	}
	if n > len(set)-at {
		return span{}, 0, false
	}
	return span{uint16(at), uint16(n)}, at + n, true
}

// appendField appends a field with its length as a minimal varint.
func appendField(dst []byte, typ byte, data []byte) []byte {
	dst = append(dst, typ)
	n := len(data)
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	dst = append(dst, byte(n))
	return append(dst, data...)
}
