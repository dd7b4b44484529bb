package pop

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"sync"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// proofType is the typ of a DPoP proof (RFC 9449 section 4.2).
const proofType = "dpop+jwt"

// FactKey is the name of the fact by which a token can forbid session keys: the
// caveat `context pop is direct` beside a holder caveat. It says how the call
// proves, and nothing where no holder caveat has it proved.
const FactKey = caveats.FactProof

// The values of the fact.
const (
	FactDirect  = "direct"  // by the key itself: DPoP or a TLS client certificate
	FactSession = "session" // by a session key
)

// maxID is the most bytes of a jti.
const maxID = 256

// proof is the evidence of one call.
type proof struct {
	v *Verifier
	e Evidence

	// Set by read, and not changed afterwards.
	present   bool
	malformed error
	dpop      signed
	session   *statement // nil: none
	key       [32]byte   // thumbprint of what signs the proof
	holder    [32]byte   // thumbprint of what a holder caveat names
	facts     [1]capability.Field

	mu          sync.Mutex // guards what follows: a Grant rechecks from any goroutine
	done        bool
	err         error
	asked       bool // about a DPoP key
	wanted      bool // a nonce
	newest      bool // the nonce was the newest
	certificate bool // its thumbprint is there
	x5t         [32]byte
}

// String never shows the evidence.
func (p *proof) String() string { return "(proof redacted)" }

// GoString never shows the evidence.
func (p *proof) GoString() string { return p.String() }

// read reads the proof and verifies nothing.
func (p *proof) read() {
	if len(p.e.Proofs) == 0 {
		return
	}
	p.present = true
	p.malformed = p.parse()
}

func (p *proof) parse() (err error) {
	if len(p.e.Proofs) > 1 {
		return malformed("more than one")
	}
	n := len(p.e.Proofs[0])
	if n > MaxProof {
		return malformed("longer than 8 KiB")
	}
	text := append(make([]byte, 0, 2*n), p.e.Proofs[0]...)
	if p.dpop, err = parse(text[:n:n], text[n:], proofType); err != nil {
		return err
	}
	p.key = p.dpop.key.thumbprint()
	p.holder = p.key
	if p.dpop.session == nil {
		return nil
	}
	if p.session, err = p.v.readStatement(p.dpop.session); err != nil {
		return err
	}
	p.holder = p.session.holder
	return nil
}

// Facts are what a guard adds to the context of the call.
func (p *proof) Facts() capability.Fields {
	switch {
	case p.malformed != nil:
		return nil
	case p.session != nil:
		p.facts[0] = capability.Field{Name: FactKey, Value: capability.StringValue(FactSession)}
	case p.present || p.e.Certificate != nil:
		p.facts[0] = capability.Field{Name: FactKey, Value: capability.StringValue(FactDirect)}
	default:
		return nil
	}
	return p.facts[:]
}

// Facts are what a service that calls a verifier of tokens itself adds to the
// context of the request with this evidence. A guard does it by itself.
func Facts(p capability.HolderProof) capability.Fields {
	if own, ok := p.(*proof); ok {
		return own.Facts()
	}
	return nil
}

// Prove implements capability.HolderProof.
func (p *proof) Prove(_ context.Context, key capability.HolderKey) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch key.Method {
	case capability.HolderMTLS:
		return p.proveCertificate(key)
	case capability.HolderDPoP:
		return p.proveDPoP(key)
	}
	return malformed("a method that nobody here knows")
}

// errOtherKey is all that there is to say of a key that nobody tried to prove.
const errOtherKey = capability.CodeHolderProof

func (p *proof) proveCertificate(key capability.HolderKey) error {
	if p.e.Certificate == nil {
		return errOtherKey
	}
	if !p.certificate {
		p.x5t, p.certificate = sha256.Sum256(p.e.Certificate), true
	}
	if subtle.ConstantTimeCompare(p.x5t[:], key.Thumbprint[:]) != 1 {
		return errOtherKey
	}
	return nil
}

func (p *proof) proveDPoP(key capability.HolderKey) error {
	p.asked = true
	switch {
	case !p.present:
		return errOtherKey
	case p.malformed != nil:
		return p.malformed
	case subtle.ConstantTimeCompare(p.holder[:], key.Thumbprint[:]) != 1:
		return errOtherKey
	}
	if !p.done {
		p.done, p.err = true, p.check()
	}
	return p.err
}

// check verifies the proof (RFC 9449 section 4.3), cheapest first, and records
// it as used when everything else has held.
func (p *proof) check() error {
	now := p.v.cfg.Now()
	c, err := readClaims(p.dpop.payload)
	if err != nil {
		return err
	}
	if err := p.checkCall(&c); err != nil {
		return err
	}
	if err := c.checkTime(now, p.v.cfg.MaxAge, p.v.cfg.Skew); err != nil {
		return err
	}
	if n := p.v.cfg.Nonces; n != nil {
		ok, newest := n.Check(string(c.nonce), now)
		if p.newest = newest; !ok {
			p.wanted = true
			return malformed("a nonce of the server is missing, or too old")
		}
	}
	if p.session != nil {
		if err := p.v.checkSession(p.session, p.key, now); err != nil {
			return err
		}
	}
	if !p.dpop.verify() {
		return malformed("its signature does not match")
	}
	// By key and jti, never by the text: an ECDSA signature has a twin.
	h := sha256.New()
	h.Write(p.key[:])
	h.Write(c.id)
	var id [32]byte
	h.Sum(id[:0])
	until := time.Unix(c.issued, 0).Add(p.v.cfg.MaxAge + time.Second)
	return p.v.replays[p.key[0]%replayShards].Use(id, now, until)
}

// checkCall holds the claims to the call that the proof came with.
func (p *proof) checkCall(c *claims) error {
	if string(c.method) != p.e.Method {
		return malformed("for another method")
	}
	htu, ok := splitURI(string(c.uri))
	if !ok {
		return malformed("its htu is no absolute URI")
	}
	if !p.v.ours(htu, target{p.e.Scheme, p.e.Authority, p.e.Path}) {
		return malformed("for another origin")
	}
	if !samePath(htu.path, p.e.Path) {
		return malformed("for another path")
	}
	var buf [1 << 10]byte // most tokens fit, and stay off the heap
	ath := sha256.Sum256(append(buf[:0], p.e.Token...))
	if !c.hasToken || subtle.ConstantTimeCompare(ath[:], c.token[:]) != 1 {
		return malformed("for another token")
	}
	return nil
}

// ours reports whether the URI's origin is one that the service is reached under.
func (v *Verifier) ours(htu, call target) bool {
	if v.cfg.UnsafeTrustHost {
		return htu.sameOrigin(call)
	}
	for _, o := range v.origins {
		if htu.sameOrigin(o) {
			return true
		}
	}
	return false
}

// reason is the error of a challenge (RFC 9449 sections 7.1 and 9), or "".
func (p *proof) reason() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.wanted:
		return "use_dpop_nonce"
	case p.asked && p.present && !p.proved():
		return "invalid_dpop_proof"
	}
	return ""
}

// proved is for whoever holds mu.
func (p *proof) proved() bool { return p.done && p.err == nil }

func (p *proof) wantsNonce() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted
}

func (p *proof) hasNewestNonce() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newest
}

// claims are the payload of a proof, or of a session's statement.
type claims struct {
	method, uri, id, nonce []byte
	issued                 int64
	expires, notBefore     int64 // 0: not there
	hasIssued              bool
	token                  [32]byte // ath
	hasToken               bool
	session                [32]byte // cnf.jkt
	hasSession             bool
}

var errClaim = malformed("a claim cannot be read")

// readClaims reads a payload. Claims that nobody here knows are ignored (RFC
// 7519 section 4).
func readClaims(payload []byte) (c claims, err error) {
	m, err := object(payload)
	if err != nil {
		return c, err
	}
	for {
		name, value, err := m.next()
		if err != nil {
			return c, err
		}
		if name == nil {
			return c, nil
		}
		ok := true
		switch string(name) {
		case "htm":
			c.method, ok = text(value)
		case "htu":
			c.uri, ok = text(value)
		case "jti":
			c.id, ok = text(value)
		case "nonce":
			c.nonce, ok = text(value)
		case "iat":
			c.issued, ok = seconds(value)
			c.hasIssued = true
		case "exp":
			c.expires, ok = seconds(value)
			ok = ok && c.expires > 0
		case "nbf":
			c.notBefore, ok = seconds(value)
		case "ath":
			c.token, c.hasToken = decode32(value)
			ok = c.hasToken
		case "cnf":
			c.session, c.hasSession = readConfirmation(value)
			ok = c.hasSession
		}
		if !ok {
			return c, errClaim
		}
	}
}

// readConfirmation reads {"jkt":…} (RFC 9449 section 6.1).
func readConfirmation(value []byte) (thumbprint [32]byte, found bool) {
	if value[0] != '{' {
		return thumbprint, false
	}
	for m := nested(value); ; {
		name, value, err := m.next()
		if name == nil {
			return thumbprint, found && err == nil
		}
		if string(name) == "jkt" {
			if thumbprint, found = decode32(value); !found {
				return thumbprint, false
			}
		}
	}
}

// checkTime holds a proof to its window.
func (c *claims) checkTime(now time.Time, age, skew time.Duration) error {
	switch {
	case len(c.id) == 0 || len(c.id) > maxID:
		return malformed("no jti, or one of more than 256 bytes")
	case !c.hasIssued:
		return malformed("no iat")
	case now.Add(-age).After(time.Unix(c.issued, 0).Add(time.Second - 1)):
		return malformed("too old")
	case time.Unix(c.issued, 0).After(now.Add(skew)):
		return malformed("from the future")
	case c.expires != 0 && now.Unix() >= c.expires:
		return malformed("its exp is past")
	case c.notBefore > now.Add(skew).Unix():
		return malformed("its nbf is ahead")
	}
	return nil
}
