package pop

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
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

// checkSession verifies the statement of a session whose key is session.
func (v *Verifier) checkSession(s *signed, compact []byte, session [32]byte, now time.Time) error {
	if v.cfg.RefuseSessions {
		return malformed("by a session key, which the service refuses")
	}
	c, err := readClaims(s.payload)
	switch {
	case err != nil:
		return err
	case !c.hasIssued || c.expires == 0 || c.expires <= c.issued || time.Duration(c.expires-c.issued) > MaxSession/time.Second:
		return malformed("its session is not of at most 5 minutes")
	case time.Unix(c.issued, 0).After(now.Add(v.cfg.Skew)):
		return malformed("its session is from the future")
	case !now.Before(time.Unix(c.expires, 0)):
		return malformed("its session has ended")
	case !c.hasSession || c.session != session:
		return malformed("its session is of another key")
	}
	name := sha256.Sum256(compact)
	if v.sessions.has(name) {
		return nil
	}
	if !s.verify() {
		return malformed("its session's signature does not match")
	}
	v.sessions.add(name, c.expires, now.Unix())
	return nil
}

// maxSessions is how many statements whose signature has been verified are
// remembered, so that a session costs its second signature check once. What is
// forgotten is verified again.
const maxSessions = 4096

// sessionCache remembers verified statements by the SHA-256 of their exact text.
type sessionCache struct {
	mu   sync.Mutex
	ends map[[32]byte]int64 // exp, Unix seconds; guarded by mu
}

func (c *sessionCache) has(name [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.ends[name]
	return ok
}

func (c *sessionCache) add(name [32]byte, ends, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ends == nil {
		c.ends = make(map[[32]byte]int64)
	}
	if len(c.ends) >= maxSessions {
		for n, e := range c.ends {
			if e <= now {
				delete(c.ends, n)
			}
		}
	}
	if len(c.ends) >= maxSessions {
		clear(c.ends) // nobody is refused for it
	}
	c.ends[name] = ends
}
