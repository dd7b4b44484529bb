package seal

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
)

// Text forms. A key of 32 bytes and a checksum of 3 make 56 characters of base32 without padding; the alphabet is Crockford's, which
// leaves out i, l, o and u. The checksum is the start of SHA-256(prefix ‖ key): of random mistakes, one in 2^24 goes unnoticed,
// and one kind of key is never taken for another.
const (
	recipientPrefix = "writ-recipient-"
	recoveryPrefix  = "WRIT-RECOVERY-"

	checksumSize = 3
	textSize     = 56 // characters after the prefix, without the hyphens
	groupSize    = 4  // characters between hyphens, in a recovery identity
)

var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

func encodeText(prefix string, key []byte) string {
	sum := sha256.Sum256(append([]byte(prefix), key...))
	return crockford.EncodeToString(append(append(make([]byte, 0, len(key)+checksumSize), key...), sum[:checksumSize]...))
}

// decodeText reads the 56 lower-case characters after a prefix.
func decodeText(prefix, text string) ([]byte, error) {
	if len(text) != textSize {
		return nil, fmt.Errorf("%w: %s… needs %d characters after that, not %d", ErrMalformed, prefix, textSize, len(text))
	}
	// The length is checked first because base32 skips line breaks, of which none can then be left.
	b, err := crockford.DecodeString(text)
	if err != nil || len(b) != KeySize+checksumSize {
		return nil, fmt.Errorf("%w: %s… has a character that is not in its alphabet (no i, l, o, u)", ErrMalformed, prefix)
	}
	if encodeText(prefix, b[:KeySize]) != text {
		return nil, fmt.Errorf("%w: %s… was mistyped: its checksum does not match", ErrMalformed, prefix)
	}
	return b[:KeySize], nil
}

// String returns the recipient's text form, "writ-recipient-…".
func (r Recipient) String() string { return recipientPrefix + encodeText(recipientPrefix, r.key[:]) }

// MarshalText returns the text form.
func (r Recipient) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is [ParseRecipient].
func (r *Recipient) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRecipient(string(b))
	return err
}

// ParseRecipient reads exactly what [Recipient.String] writes.
func ParseRecipient(s string) (Recipient, error) {
	text, found := strings.CutPrefix(s, recipientPrefix)
	if !found {
		return Recipient{}, fmt.Errorf("%w: a recipient begins with %s", ErrMalformed, recipientPrefix)
	}
	key, err := decodeText(recipientPrefix, text)
	if err != nil {
		return Recipient{}, err
	}
	return RecipientFromBytes(key)
}

// RecoveryText returns the private key in the form that an operator writes down and locks away: "WRIT-RECOVERY-" and 14 groups of
// 4 characters. Whoever reads it opens every key of the cluster.
func (id *Identity) RecoveryText() (string, error) {
	var text string
	err := id.box.use(func(key []byte) error {
		text = strings.ToUpper(encodeText(recoveryPrefix, key))
		return nil
	})
	if err != nil {
		return "", err
	}
	out := strings.TrimSuffix(recoveryPrefix, "-")
	for ; text != ""; text = text[groupSize:] {
		out += "-" + text[:groupSize]
	}
	return out, nil
}

// ParseRecovery reads exactly what [Identity.RecoveryText] writes. Errors never quote the input.
func ParseRecovery(s string) (*Identity, error) {
	grouped, found := strings.CutPrefix(s, recoveryPrefix)
	if !found {
		return nil, fmt.Errorf("%w: a recovery identity begins with %s", ErrMalformed, recoveryPrefix)
	}
	const groups = textSize / groupSize
	if len(grouped) != textSize+groups-1 {
		return nil, fmt.Errorf("%w: a recovery identity has %d groups of %d characters", ErrMalformed, groups, groupSize)
	}
	text := make([]byte, 0, textSize)
	for i := range groups {
		at := i * (groupSize + 1)
		if i > 0 && grouped[at-1] != '-' {
			return nil, fmt.Errorf("%w: a recovery identity has groups of %d characters with hyphens between them", ErrMalformed, groupSize)
		}
		text = append(text, grouped[at:at+groupSize]...)
	}
	if upper := strings.ToUpper(string(text)); upper != string(text) {
		return nil, fmt.Errorf("%w: a recovery identity is in upper case", ErrMalformed)
	}
	key, err := decodeText(recoveryPrefix, strings.ToLower(string(text)))
	if err != nil {
		return nil, err
	}
	return identityFromBytes(key)
}
