package caveats

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/writ-dev/writ/capability"
)

// What single words of a condition read as.

const (
	// MaxCount is the most calls that a max-calls or a max-rate can count.
	MaxCount = 1_000_000_000_000
	// maxRatePer is the longest time that a max-rate can name.
	maxRatePer = 24 * time.Hour
	// maxHolders is the most keys of one holder caveat.
	maxHolders = 16
	// maxExtension is the most bytes of an extension's name.
	maxExtension = 64
)

// checkNames judges "NAME…" by the one name that the request has, which may be
// empty for none.
func checkNames(w *words, name string) verdict {
	result, n := denied, 0
	for {
		x, ok := w.next()
		if !ok {
			break
		}
		if n++; !x.isName() {
			return unreadable
		}
		if x.is(name) {
			result = held
		}
	}
	if n == 0 || !w.done() {
		return unreadable
	}
	return result
}

// checkClient judges "CIDR…" by the caller's address.
func checkClient(w *words, client netip.Addr) verdict {
	client = client.Unmap()
	result, n := denied, 0
	var client4 uint32
	if client.Is4() {
		b := client.As4()
		client4 = binary.BigEndian.Uint32(b[:])
	}
	for {
		x, ok := w.next()
		if !ok {
			break
		}
		n++
		if network, mask, ok := parsePrefix4(x.text); ok {
			if client.Is4() && client4&mask == network {
				result = held
			}
			continue
		}
		p, ok := parsePrefix(x)
		if !ok {
			return unreadable
		}
		if p.Contains(client) {
			result = held
		}
	}
	if n == 0 || !w.done() {
		return unreadable
	}
	return result
}

// parsePrefix reads an address or a CIDR (RFC 4632, RFC 4291) of which no bit
// beyond the prefix is set. An IPv4 address is written as one: mapped into
// IPv6 it would be a second spelling.
func parsePrefix(x word) (p netip.Prefix, ok bool) {
	if x.escaped || len(x.text) > len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128") {
		return netip.Prefix{}, false
	}
	isPrefix := false
	for _, c := range x.text {
		switch c {
		case '/':
			isPrefix = true
		case '%':
			return netip.Prefix{}, false // a zone means something on one host only
		}
	}
	var err error
	if isPrefix {
		p, err = netip.ParsePrefix(view(x.text))
	} else {
		var a netip.Addr
		a, err = netip.ParseAddr(view(x.text))
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return p, err == nil && !p.Addr().Is4In6() && p == p.Masked()
}

// parsePrefix4 is parsePrefix for what is common, "10.0.0.0/8" and
// "192.0.2.7", at a third of the cost. What it does not read may still be one.
func parsePrefix4(b []byte) (network, mask uint32, ok bool) {
	dots, field, digits := 0, uint32(0), 0
	bits := uint32(32)
	for i, c := range b {
		if d := uint32(c) - '0'; d <= 9 {
			if digits > 0 && field == 0 {
				return 0, 0, false // a leading zero, perhaps octal
			}
			field, digits = field*10+d, digits+1
			if field > 255 {
				return 0, 0, false
			}
			continue
		}
		if digits == 0 {
			return 0, 0, false
		}
		if c == '/' {
			n, ok := parseCount(b[i+1:])
			if !ok || n > 32 {
				return 0, 0, false
			}
			bits = uint32(n)
			break
		}
		if c != '.' || dots == 3 {
			return 0, 0, false
		}
		network, dots, field, digits = network<<8|field, dots+1, 0, 0
	}
	if dots != 3 || digits == 0 {
		return 0, 0, false
	}
	network = network<<8 | field
	mask = ^uint32(0) << (32 - bits)
	return network, mask, network&^mask == 0
}

// parseCount reads a decimal count up to MaxCount, without leading zeros.
func parseCount(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 13 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	for _, c := range b {
		if c -= '0'; c > 9 {
			return 0, false
		}
		n = n*10 + uint64(c)
	}
	return n, n <= MaxCount
}

// parseMaxCalls reads "N".
func parseMaxCalls(w *words) (n uint64, ok bool) {
	x, ok := w.one()
	if !ok || x.quoted {
		return 0, false
	}
	return parseCount(x.text)
}

// parseMaxRate reads "N/D".
func parseMaxRate(w *words) (n uint64, per time.Duration, ok bool) {
	x, ok := w.one()
	if !ok || x.quoted {
		return 0, 0, false
	}
	count, d, ok := bytes.Cut(x.text, []byte{'/'})
	if !ok || len(d) < 2 {
		return 0, 0, false
	}
	unit := time.Second
	switch d[len(d)-1] {
	case 's':
	case 'm':
		unit = time.Minute
	case 'h':
		unit = time.Hour
	default:
		return 0, 0, false
	}
	n, ok1 := parseCount(count)
	units, ok2 := parseCount(d[:len(d)-1])
	if !ok1 || !ok2 || n == 0 || units == 0 || units > uint64(maxRatePer/unit) {
		return 0, 0, false
	}
	return n, time.Duration(units) * unit, true
}

// base64Strict decodes digests: one spelling for each.
var base64Strict = base64.RawURLEncoding.Strict()

// parseDigest reads 32 bytes in unpadded base64url.
func parseDigest(b []byte) (d [32]byte, ok bool) {
	if len(b) != 43 {
		return d, false
	}
	n, err := base64Strict.Decode(d[:], b)
	return d, err == nil && n == len(d)
}

// parseRequest reads "HASH".
func parseRequest(w *words) (hash [32]byte, ok bool) {
	x, ok := w.one()
	if !ok || x.quoted {
		return hash, false
	}
	return parseDigest(x.text)
}

// parseHolderKey reads "jkt:…" or "x5t:…".
func parseHolderKey(x word) (k capability.HolderKey, ok bool) {
	if x.quoted || len(x.text) != 4+43 {
		return k, false
	}
	switch string(x.text[:4]) {
	case "jkt:":
		k.Method = capability.HolderDPoP
	case "x5t:":
		k.Method = capability.HolderMTLS
	default:
		return k, false
	}
	k.Thumbprint, ok = parseDigest(x.text[4:])
	return k, ok
}

// holders are the keys of one caveat, read in place.
type holders struct {
	keys [maxHolders]capability.HolderKey
	n    int
}

// parseHolders reads "K…" into h.
func parseHolders(w *words, h *holders) bool {
	for {
		x, ok := w.next()
		if !ok {
			break
		}
		if h.n == maxHolders {
			return false
		}
		if h.keys[h.n], ok = parseHolderKey(x); !ok {
			return false
		}
		h.n++
	}
	return h.n > 0 && w.done()
}

// parseDevice reads "ID".
func parseDevice(w *words) (d capability.DeviceID, ok bool) {
	x, ok := w.one()
	if !ok || x.quoted {
		return d, false
	}
	d, err := capability.ParseDeviceID(view(x.text))
	return d, err == nil
}

// parseBranch reads "NONCE [LABEL]".
func parseBranch(w *words) (label word, ok bool) {
	nonce, ok := w.next()
	if !ok || nonce.quoted || !isNonce(nonce.text) {
		return word{}, false
	}
	if w.done() {
		return word{}, true
	}
	label, ok = w.one()
	return label, ok && !label.quoted && capability.ValidName(label.text, capability.MaxLabel)
}

// isNonce reports whether b is 96 bits in lower-case hexadecimal.
func isNonce(b []byte) bool {
	if len(b) != 24 {
		return false
	}
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseBound reads "BRANCH".
func parseBound(w *words) (b capability.BranchID, ok bool) {
	x, ok := w.one()
	if !ok || x.quoted {
		return b, false
	}
	b, err := capability.ParseBranchID(view(x.text))
	return b, err == nil
}

// parseDeclare reads "KEY VALUE".
func parseDeclare(w *words) (key, value word, ok bool) {
	if key, ok = w.next(); !ok || !key.isName() {
		return word{}, word{}, false
	}
	value, ok = w.one()
	return key, value, ok
}

// logLevels from the least to the strictest, as package capability orders them.
var logLevels = [...]string{"minimal", "metadata", "full"}

// LogLevels returns the levels that a log caveat can name, from the least to
// the strictest: minimal is that the call happened, when, and by which token
// and branch; metadata adds subject, action, resource and outcome; full adds
// the arguments.
func LogLevels() []string { return slices.Clone(logLevels[:]) }

// parseLog reads "LEVEL".
func parseLog(w *words) (level string, ok bool) {
	x, ok := w.one()
	if !ok || x.quoted {
		return "", false
	}
	for _, l := range logLevels {
		if string(x.text) == l {
			return l, true
		}
	}
	return "", false
}

// isExtension reports whether b can follow "ext:".
func isExtension(b []byte) bool {
	if len(b) == 0 || len(b) > maxExtension {
		return false
	}
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}
