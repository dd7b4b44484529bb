package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Posture is what a holder says of itself. Its hash is in the transcript, so
// that the quote signs it; the statement is still only the holder's word.
type Posture struct {
	Agent       string  `json:"agent"`                  // the agent's name
	Version     string  `json:"version,omitempty"`      // the agent's version
	ProcessHash *Digest `json:"process_hash,omitempty"` // SHA-256 of the agent's executable
	HostID      string  `json:"host_id,omitempty"`
	OS          string  `json:"os,omitempty"`    // such as "debian"
	Patch       string  `json:"patch,omitempty"` // the OS's version or patch level, such as "12.7"
}

// maxPostureField is the most bytes of one text in a statement.
const maxPostureField = 200

// Encode returns the statement as it is sent and hashed.
func (p *Posture) Encode() ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// DecodePosture reads a statement of at most MaxPosture bytes, strictly.
// Errors: *Refusal.
func DecodePosture(document []byte) (*Posture, error) {
	p := new(Posture)
	if err := decode(document, MaxPosture, p); err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return p, nil
}

// Check accepts printable texts of at most 200 bytes, and demands the agent's name.
func (p *Posture) Check() error {
	if p.Agent == "" {
		return refuse(ReasonMalformed, "a posture statement names its agent")
	}
	for _, s := range []string{p.Agent, p.Version, p.HostID, p.OS, p.Patch} {
		if len(s) > maxPostureField {
			return refuse(ReasonTooLarge, "a text of %d bytes in the posture statement, at most %d", len(s), maxPostureField)
		}
		if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return refuse(ReasonMalformed, "the posture statement has text that is not printable")
		}
	}
	return nil
}

// Digest is a SHA-256, in text 64 lower-case hexadecimal digits.
type Digest [sha256.Size]byte

// String returns the hexadecimal form.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText returns the hexadecimal form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts 64 lower-case hexadecimal digits. Errors: *Refusal.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) || strings.Trim(string(text), "0123456789abcdef") != "" {
		return refuse(ReasonMalformed, "a digest is %d lower-case hexadecimal digits", 2*len(d))
	}
	_, err := hex.Decode(d[:], text)
	return err
}
