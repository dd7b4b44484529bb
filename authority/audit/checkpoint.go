package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	// MaxCheckpoint bounds a signed checkpoint, with whatever cosignatures, in bytes.
	MaxCheckpoint = 8 << 10
	// MaxOrigin bounds an origin, in bytes.
	MaxOrigin = 255
	// SeedSize is the length of a signing key's seed (RFC 8032), in bytes.
	SeedSize = ed25519.SeedSize

	algEd25519 = 1 // C2SP signed-note, signature types
)

// Checkpoint is the state of a log at one moment, as its signature vouches for it.
type Checkpoint struct {
	Origin string
	Size   int64 // records
	Root   Hash
}

// Origin names the log of one incarnation of a cluster. The cluster's id is 1 to 128 bytes of ASCII letters, digits, '-', '.' and '_'.
func Origin(cluster string, incarnation uint64) (string, error) {
	if cluster == "" || len(cluster) > 128 {
		return "", fmt.Errorf("%w: cluster id of %d bytes", ErrMalformed, len(cluster))
	}
	for _, c := range []byte(cluster) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_') {
			return "", fmt.Errorf("%w: cluster id has byte %#02x", ErrMalformed, c)
		}
	}
	return "writ/audit/" + cluster + "/" + strconv.FormatUint(incarnation, 10), nil
}

// checkOrigin holds an origin to what a note's key name and a checkpoint's first line can carry, and to printable ASCII.
func checkOrigin(origin string) error {
	if origin == "" || len(origin) > MaxOrigin {
		return fmt.Errorf("%w: origin of %d bytes", ErrMalformed, len(origin))
	}
	for _, c := range []byte(origin) {
		if c <= ' ' || c == '+' || c >= 0x7f {
			return fmt.Errorf("%w: origin has byte %#02x", ErrMalformed, c)
		}
	}
	return nil
}

// Text returns the text that is signed: origin, decimal size and base64 root, a line each (C2SP tlog-checkpoint).
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// parseCheckpointText is strict: the text must be what [Checkpoint.Text] makes. Extension lines are refused.
func parseCheckpointText(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(text) > MaxCheckpoint || len(lines) != 4 {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint", ErrMalformed)
	}
	c := Checkpoint{Origin: lines[0]}
	if err := checkOrigin(c.Origin); err != nil {
		return Checkpoint{}, err
	}
	var err error
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || c.Size > MaxSize {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint size", ErrMalformed)
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint root", ErrMalformed)
	}
	copy(c.Root[:], root)
	if c.Text() != text {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint is not canonical", ErrMalformed)
	}
	return c, nil
}

// ReadUnverified reads a signed checkpoint without looking at its signatures: nobody vouches for the result.
func ReadUnverified(msg []byte) (Checkpoint, error) {
	if len(msg) > MaxCheckpoint {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint of %d bytes", ErrMalformed, len(msg))
	}
	text, _, found := bytes.Cut(msg, []byte("\n\n"))
	if !found {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint has no signature", ErrMalformed)
	}
	return parseCheckpointText(string(text) + "\n")
}

// Sign returns the signed note of a checkpoint. The signer's name must be the checkpoint's origin ([ErrOrigin]). Ed25519 is
// deterministic: every node signs the same checkpoint with the same bytes.
func (c Checkpoint) Sign(signer note.Signer) ([]byte, error) {
	if signer.Name() != c.Origin {
		return nil, fmt.Errorf("%w: signer %q, log %q", ErrOrigin, signer.Name(), c.Origin)
	}
	return note.Sign(&note.Note{Text: c.Text()}, signer)
}

// VerifyCheckpoint reads a signed checkpoint and checks the verifier's signature on it. The origin must be the verifier's name.
// Errors: [ErrMalformed], [ErrSignature], [ErrOrigin].
func VerifyCheckpoint(msg []byte, verifier note.Verifier) (Checkpoint, error) {
	if len(msg) > MaxCheckpoint {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint of %d bytes", ErrMalformed, len(msg))
	}
	n, err := note.Open(msg, note.VerifierList(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	c, err := parseCheckpointText(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != verifier.Name() {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint %q, key %q", ErrOrigin, c.Origin, verifier.Name())
	}
	return c, nil
}

// Signer signs checkpoints of one origin with Ed25519. It is a [note.Signer] and prints redacted.
type Signer struct {
	_    [0]func()
	name string
	hash uint32
	key  ed25519.PrivateKey
}

// NewSigner makes the signer of an origin's checkpoints from a 32-byte seed, which it copies.
func NewSigner(origin string, seed []byte) (*Signer, error) {
	if err := checkOrigin(origin); err != nil {
		return nil, err
	}
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("%w: seed of %d bytes", ErrMalformed, len(seed))
	}
	key := ed25519.NewKeyFromSeed(seed)
	return &Signer{name: origin, hash: keyHash(origin, key.Public().(ed25519.PublicKey)), key: key}, nil
}

// keyHash is the key id of C2SP signed-note: the first 4 bytes of SHA-256(name ‖ "\n" ‖ algorithm ‖ public key).
func keyHash(name string, key ed25519.PublicKey) uint32 {
	b := append([]byte(name+"\n"), algEd25519)
	sum := sha256.Sum256(append(b, key...))
	return binary.BigEndian.Uint32(sum[:])
}

// Name returns the origin.
func (s *Signer) Name() string { return s.name }

// KeyHash returns the key id.
func (s *Signer) KeyHash() uint32 { return s.hash }

// Sign signs a note's text.
func (s *Signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// VerifierKey returns the public half in the form "origin+hash+key" that [ParseVerifier] reads; it may be given to anyone.
func (s *Signer) VerifierKey() string {
	key, err := note.NewEd25519VerifierKey(s.name, s.key.Public().(ed25519.PublicKey))
	if err != nil {
		panic("audit: " + err.Error()) // the key has the right length by construction
	}
	return key
}

// Verifier returns the verifier of this signer's checkpoints.
func (s *Signer) Verifier() note.Verifier {
	v, err := note.NewVerifier(s.VerifierKey())
	if err != nil {
		panic("audit: " + err.Error()) // the encoding is our own
	}
	return v
}

// String names the key without its secret.
func (s *Signer) String() string {
	return fmt.Sprintf("audit signer %s+%08x [redacted]", s.name, s.hash)
}

// GoString is String: %#v does not print the key.
func (s *Signer) GoString() string { return s.String() }

// Format prints String for every verb.
func (s *Signer) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue is String for log/slog.
func (s *Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON writes String, never the key.
func (s *Signer) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, s.String()), nil }

// ParseVerifier reads the verifier key that [Signer.VerifierKey] returns.
func ParseVerifier(key string) (note.Verifier, error) {
	if len(key) > MaxOrigin+64 {
		return nil, fmt.Errorf("%w: verifier key of %d bytes", ErrMalformed, len(key))
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return nil, fmt.Errorf("%w: verifier key", ErrMalformed)
	}
	if err := checkOrigin(v.Name()); err != nil {
		return nil, err
	}
	return v, nil
}
