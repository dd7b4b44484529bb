package pop

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

// ErrKey is wrapped by every error about a key that cannot prove.
var ErrKey = errors.New("pop: not a key for proofs")

// Call is what a proof is made for.
type Call struct {
	Method string // htm, such as "GET"
	URI    string // absolute; htu is what is left of it without query and fragment
	Token  string // text of the token, exactly as it will be presented
	Nonce  string // of the server, or empty

	Issued time.Time // iat; zero is now
	ID     string    // jti; "" is 128 random bits
}

// String never shows the token.
func (c Call) String() string { return c.Method + " " + c.URI }

// GoString never shows the token.
func (c Call) GoString() string { return c.String() }

// Signer makes proofs. A *Key does with the key itself, a *Session with a
// short-lived one that the key has signed.
type Signer interface {
	// HolderKey is what a holder caveat names.
	HolderKey() capability.HolderKey
	// Prove makes a DPoP proof for one call. ctx is for keys that are slow.
	Prove(ctx context.Context, c Call) (string, error)
}

// Key makes proofs with a private key, which may be in memory, in a file
// (ReadKeyFile) or in a device. It is safe for concurrent use if the
// crypto.Signer is. It prints redacted.
type Key struct {
	signer crypto.Signer
	public publicKey
}

// GenerateKey returns a fresh key, in memory only: what an agent makes when it
// starts, and what dies with it.
func GenerateKey(a Algorithm) (*Key, error) {
	switch a {
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return NewKey(private)
	case ES256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return NewKey(private)
	}
	return nil, fmt.Errorf("%w: algorithm %d", ErrKey, a)
}

// NewKey returns a key that signs with s, such as one in a TPM: an Ed25519 key,
// or a P-256 key whose signatures are ASN.1 as crypto.Signer has it. Errors: ErrKey.
func NewKey(s crypto.Signer) (*Key, error) {
	if s == nil {
		return nil, ErrKey
	}
	k := &Key{signer: s}
	switch pub := s.Public().(type) {
	case ed25519.PublicKey:
		if len(pub) != ed25519.PublicKeySize {
			return nil, ErrKey
		}
		k.public.alg = Ed25519
		copy(k.public.x[:], pub)
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		if err != nil || pub.Curve != elliptic.P256() || len(point) != 65 {
			return nil, fmt.Errorf("%w: want P-256", ErrKey)
		}
		k.public.alg = ES256
		copy(k.public.x[:], point[1:33])
		copy(k.public.y[:], point[33:])
	default:
		return nil, fmt.Errorf("%w: %T", ErrKey, pub)
	}
	return k, nil
}

// Algorithm is the kind of key.
func (k *Key) Algorithm() Algorithm { return k.public.alg }

// Public is the public key, an ed25519.PublicKey or an *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.signer.Public() }

// HolderKey is "jkt:" and the key's thumbprint (RFC 7638).
func (k *Key) HolderKey() capability.HolderKey {
	return capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: k.public.thumbprint()}
}

// JWK is the public key as a JWK (RFC 7517), in the form of which the
// thumbprint is taken.
func (k *Key) JWK() string { return string(k.public.appendJWK(nil)) }

// String names the public key alone.
func (k *Key) String() string { return "(key " + k.HolderKey().String() + ")" }

// GoString is String.
func (k *Key) GoString() string { return k.String() }

// Prove implements Signer.
func (k *Key) Prove(_ context.Context, c Call) (string, error) { return k.prove(c, "") }

func (k *Key) prove(c Call, session string) (string, error) {
	if i := strings.IndexAny(c.URI, "?#"); i >= 0 {
		c.URI = c.URI[:i]
	}
	if _, ok := splitURI(c.URI); !ok || c.Method == "" {
		return "", fmt.Errorf("pop: no proof can be made for %q %q", c.Method, c.URI)
	}
	if c.Issued.IsZero() {
		c.Issued = time.Now()
	}
	if c.ID == "" {
		c.ID = freshID()
	}
	payload := struct {
		Method string `json:"htm"`
		URI    string `json:"htu"`
		Issued int64  `json:"iat"`
		ID     string `json:"jti"`
		Token  string `json:"ath,omitempty"`
		Nonce  string `json:"nonce,omitempty"`
	}{Method: c.Method, URI: c.URI, Issued: c.Issued.Unix(), ID: c.ID, Nonce: c.Nonce}
	if c.Token != "" {
		ath := sha256.Sum256([]byte(c.Token))
		payload.Token = base64.RawURLEncoding.EncodeToString(ath[:])
	}
	return k.sign(proofType, session, payload)
}

// freshID is 128 random bits in base64url.
func freshID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// sign makes a compact JWS with the public key in its header.
func (k *Key) sign(typ, session string, payload any) (string, error) {
	header := []byte(`{"typ":"` + typ + `","alg":"` + k.public.alg.String() + `","jwk":`)
	header = k.public.appendJWK(header)
	if session != "" { // a compact JWS: nothing to escape
		header = append(header, `,"`+sessionMember+`":"`+session+`"`...)
	}
	header = append(header, '}')
	body, err := json.Marshal(payload)
	if err != nil {
		return "", err
	}
	message := base64.RawURLEncoding.AppendEncode(nil, header)
	message = append(message, '.')
	message = base64.RawURLEncoding.AppendEncode(message, body)
	sig, err := k.signature(message)
	if err != nil {
		return "", fmt.Errorf("pop: signing: %w", err)
	}
	message = append(message, '.')
	message = base64.RawURLEncoding.AppendEncode(message, sig)
	if len(message) > MaxProof {
		return "", fmt.Errorf("pop: a proof of %d characters: longer than %d", len(message), MaxProof)
	}
	return string(message), nil
}

// signature signs as JOSE does: 64 bytes for either algorithm.
func (k *Key) signature(message []byte) ([]byte, error) {
	if k.public.alg == Ed25519 {
		return k.signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	hash := sha256.Sum256(message)
	der, err := k.signer.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) != 0 || rs.R.Sign() <= 0 || rs.S.Sign() <= 0 || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return nil, errors.New("the signer's signature is not that of a P-256 key")
	}
	sig := make([]byte, 64)
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return sig, nil
}
