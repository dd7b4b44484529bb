package caveats

// maxExponent bounds a number's exponent. Nothing here expands it, but what
// reads the number next may.
const maxExponent = 100_000

// decimal is a JSON number (RFC 8259 section 6) taken apart in place: the
// value is 0.DIGITS × 10^exp, with DIGITS the digits of text without its
// point, beginning and ending with one that is not 0. Zero has no digits.
type decimal struct {
	negative bool
	text     string // first to last significant digit; may hold one point
	exp      int
}

// parseDecimal reads a literal. It refuses one that is not JSON's, and an
// exponent beyond ±maxExponent, whatever the digits.
func parseDecimal(s string) (d decimal, ok bool) {
	if s != "" && s[0] == '-' {
		d.negative, s = true, s[1:]
	}
	whole := digits(s)
	if whole == 0 || whole > 1 && s[0] == '0' {
		return decimal{}, false
	}
	end := whole
	if end < len(s) && s[end] == '.' {
		n := digits(s[end+1:])
		if n == 0 {
			return decimal{}, false
		}
		end += 1 + n
	}
	mantissa := s[:end]
	if s = s[end:]; s != "" {
		if s[0] != 'e' && s[0] != 'E' {
			return decimal{}, false
		}
		if d.exp, ok = parseExponent(s[1:]); !ok {
			return decimal{}, false
		}
	}
	d.exp += whole
	for mantissa != "" && (mantissa[0] == '0' || mantissa[0] == '.') {
		if mantissa[0] == '0' {
			d.exp--
		}
		mantissa = mantissa[1:]
	}
	if mantissa == "" {
		return decimal{}, true // any zero, with any sign
	}
	// Without a point before the end, trailing zeros are part of the value
	// only through exp, which counts whole digits already.
	for c := mantissa[len(mantissa)-1]; c == '0' || c == '.'; c = mantissa[len(mantissa)-1] {
		mantissa = mantissa[:len(mantissa)-1]
	}
	d.text = mantissa
	return d, true
}

func parseExponent(s string) (exp int, ok bool) {
	negative := false
	if s != "" && (s[0] == '+' || s[0] == '-') {
		negative, s = s[0] == '-', s[1:]
	}
	if s == "" || digits(s) != len(s) {
		return 0, false
	}
	for i := range len(s) {
		if exp = exp*10 + int(s[i]-'0'); exp > maxExponent {
			return 0, false
		}
	}
	if negative {
		exp = -exp
	}
	return exp, true
}

// digits counts the decimal digits that s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

// compare returns -1, 0 or +1 for a < b, a = b, a > b, exactly.
func (a decimal) compare(b decimal) int {
	if a.text == "" || b.text == "" || a.negative != b.negative {
		return order(a.sign(), b.sign())
	}
	n := a.compareMagnitude(b)
	if a.negative {
		return -n
	}
	return n
}

func (a decimal) compareMagnitude(b decimal) int {
	if a.exp != b.exp {
		return order(a.exp, b.exp)
	}
	x, y := a.text, b.text
	for {
		if x != "" && x[0] == '.' {
			x = x[1:]
		}
		if y != "" && y[0] == '.' {
			y = y[1:]
		}
		if x == "" || y == "" {
			return order(len(x), len(y)) // the last digits are not zeros
		}
		if x[0] != y[0] {
			return order(int(x[0]), int(y[0]))
		}
		x, y = x[1:], y[1:]
	}
}

// sign is -1, 0 or +1.
func (a decimal) sign() int {
	switch {
	case a.text == "":
		return 0
	case a.negative:
		return -1
	}
	return 1
}

func order(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
