package pop

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"sync"
	"time"

	"github.com/writ-dev/writ/capability"
)

// sessionType is the typ of the statement by which a key lets another prove in
// its place.
const sessionType = "writ-session+jwt"

// MaxSession is the longest that a session key may prove in place of the key
// that signed it.
const MaxSession = 5 * time.Minute

// Session makes proofs with a key of its own, in memory, that a slow or distant
// key has signed for at most MaxSession. That is weaker than the key itself:
// who reads the process's memory can prove until the session ends. It is
// therefore marked, and a service (Config.RefuseSessions) or a token (`context
// pop is direct`) can refuse it. It renews itself when a call needs it. It is
// safe for concurrent use, and prints redacted.
type Session struct {
	key      *Key
	lifetime time.Duration
	now      func() time.Time

	mu        sync.Mutex // guards what follows
	current   *Key
	statement string
	ends      time.Time
}

// NewSession returns a session of key. Lifetime 0 is MaxSession, and so is what
// is longer. now may be nil: time.Now. Nothing is signed before the first call.
func NewSession(key *Key, lifetime time.Duration, now func() time.Time) *Session {
	if lifetime <= 0 || lifetime > MaxSession {
		lifetime = MaxSession
	}
	if now == nil {
		now = time.Now
	}
	return &Session{key: key, lifetime: lifetime, now: now}
}

// HolderKey is that of the key which signs the sessions.
func (s *Session) HolderKey() capability.HolderKey { return s.key.HolderKey() }

// String names the public key alone.
func (s *Session) String() string { return "(session of " + s.key.String() + ")" }

// GoString is String.
func (s *Session) GoString() string { return s.String() }

// Prove implements Signer.
func (s *Session) Prove(_ context.Context, c Call) (string, error) {
	if c.Issued.IsZero() {
		c.Issued = s.now()
	}
	key, statement, err := s.renewed()
	if err != nil {
		return "", err
	}
	return key.prove(c, statement)
}

// renewed returns a session key that lives for a while yet.
func (s *Session) renewed() (*Key, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.current != nil && now.Before(s.ends.Add(-s.lifetime/5)) && !now.Before(s.ends.Add(-s.lifetime-time.Minute)) {
		return s.current, s.statement, nil
	}
	key, err := GenerateKey(Ed25519)
	if err != nil {
		return nil, "", err
	}
	begins := now.Truncate(time.Second)
	ends := begins.Add(s.lifetime.Truncate(time.Second))
	print := key.public.thumbprint()
	payload := struct {
		Issued  int64             `json:"iat"`
		Expires int64             `json:"exp"`
		Confirm map[string]string `json:"cnf"`
	}{begins.Unix(), ends.Unix(), map[string]string{"jkt": base64.RawURLEncoding.EncodeToString(print[:])}}
	statement, err := s.key.sign(sessionType, "", payload)
	if err != nil {
		return nil, "", err
	}
	s.current, s.statement, s.ends = key, statement, ends
	return key, statement, nil
}

// statement is what a session proves with: that holder lets key prove.
type statement struct {
	name            [32]byte // SHA-256 of its exact text
	holder, key     [32]byte // thumbprints
	issued, expires int64    // Unix seconds
	unverified      *signed  // nil: its signature has been verified
}

// readStatement reads the statement of a session, unless the same text has been
// verified before: that costs a hash alone. Errors: it cannot be read.
func (v *Verifier) readStatement(compact []byte) (*statement, error) {
	name := sha256.Sum256(compact)
	if s := v.sessions.get(name); s != nil {
		return s, nil
	}
	j, err := parse(compact, nil, sessionType)
	if err != nil {
		return nil, err
	}
	if j.session != nil {
		return nil, malformed("a session of a session")
	}
	c, err := readClaims(j.payload)
	switch {
	case err != nil:
		return nil, err
	case !c.hasIssued || c.expires == 0 || c.expires <= c.issued || time.Duration(c.expires-c.issued) > MaxSession/time.Second:
		return nil, malformed("its session is not of at most 5 minutes")
	case !c.hasSession:
		return nil, malformed("its session names no key")
	}
	return &statement{name, j.key.thumbprint(), c.session, c.issued, c.expires, &j}, nil
}

// checkSession verifies that the statement lets key prove at now.
func (v *Verifier) checkSession(s *statement, key [32]byte, now time.Time) error {
	switch {
	case v.cfg.RefuseSessions:
		return malformed("by a session key, which the service refuses")
	case time.Unix(s.issued, 0).After(now.Add(v.cfg.Skew)):
		return malformed("its session is from the future")
	case !now.Before(time.Unix(s.expires, 0)):
		return malformed("its session has ended")
	case s.key != key:
		return malformed("its session is of another key")
	case s.unverified == nil:
		return nil
	case !s.unverified.verify():
		return malformed("its session's signature does not match")
	}
	verified := *s
	verified.unverified = nil
	v.sessions.add(&verified, now.Unix())
	return nil
}

// maxSessions is how many statements whose signature has been verified are
// remembered, so that a session costs its second signature check once. What is
// forgotten is verified again.
const maxSessions = 4096

// sessionCache remembers verified statements by their name.
type sessionCache struct {
	mu       sync.Mutex
	verified map[[32]byte]*statement // guarded by mu; what it points to does not change
}

func (c *sessionCache) get(name [32]byte) *statement {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verified[name]
}

func (c *sessionCache) add(s *statement, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.verified == nil {
		c.verified = make(map[[32]byte]*statement)
	}
	if len(c.verified) >= maxSessions {
		maps.DeleteFunc(c.verified, func(_ [32]byte, s *statement) bool { return s.expires <= now })
	}
	if len(c.verified) >= maxSessions {
		clear(c.verified) // nobody is refused for it
	}
	c.verified[s.name] = s
}
