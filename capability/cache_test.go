package capability_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

func TestPrefixCacheHits(t *testing.T) {
	c := capability.NewTestCache(t, 16, keyring{testKey()}, wordChecker{})
	tok := mint(t, "ok 1", "ok 2", "ok 3")
	c.Want(t, tok, 0) // never seen
	c.Want(t, tok, 4) // the identifier and three caveats
	narrow := must[*capability.Token](t)(tok.AttenuateExact("ok 4"))
	c.Want(t, narrow, 4)
	c.Want(t, must[*capability.Token](t)(narrow.AttenuateExact("ok 5")), 4)
	c.Want(t, mint(t, "ok 1", "ok 2", "ok 3"), 4)
	// A sibling shares what it shares. (Issued is in the identifier.)
	c.Want(t, must[*capability.Token](t)(mint(t, "ok 1", "ok 2", "ok x").AttenuateExact("ok")), 3)
	// Another caveat of the same length, another order, a shorter chain.
	c.Want(t, mint(t, "ok 2", "ok 1", "ok 3"), 1)
	id := testIdentifier()
	id.Subject = "agent-43"
	c.Want(t, must[*capability.Token](t)(capability.Mint(testKey(), id, "ok 1", "ok 2", "ok 3")), 0)
}

// A refusal fills nothing: neither a forgery nor a caveat that denies.
func TestPrefixCacheIsFilledByGrantsAlone(t *testing.T) {
	c := capability.NewTestCache(t, 16, keyring{testKey()}, wordChecker{})
	denied := mint(t, "ok 1", "ok 2", "deny")
	forged := denied.Bytes()
	forged[len(forged)-1] ^= 1
	for range 2 {
		c.WantCode(t, must[*capability.Token](t)(capability.Decode(forged)), 0, capability.CodeBadSignature)
		c.WantCode(t, denied, 0, capability.CodeActionDenied)
	}
	// The presented signature finds nothing and proves nothing.
	good := mint(t, "ok 1", "ok 2", "ok 3")
	c.Want(t, good, 0)
	stolen := good.Bytes()
	copy(stolen[len(stolen)-32:], make([]byte, 32))
	c.WantCode(t, must[*capability.Token](t)(capability.Decode(stolen)), 4, capability.CodeBadSignature)
	longer := must[*capability.Token](t)(good.AttenuateExact("ok 4")).Bytes()
	copy(longer[len(longer)-32:], good.Bytes()[len(good.Bytes())-32:])
	c.WantCode(t, must[*capability.Token](t)(capability.Decode(longer)), 4, capability.CodeBadSignature)
}

// changing hands out whatever key it has now.
type changing struct{ key *capability.RootKey }

func (c *changing) Key([]byte, uint32, uint32) *capability.RootKey { return c.key }

func TestPrefixCacheDiesWithTheKey(t *testing.T) {
	keys := &changing{testKey()}
	c := capability.NewTestCache(t, 16, keys, wordChecker{})
	tok := mint(t, "ok", "ok", "ok")
	c.Want(t, tok, 0)
	keys.key = testKey() // the same secret, fetched again
	c.Want(t, tok, 4)
	keys.key = nil
	c.WantCode(t, tok, 0, capability.CodeUnknownKey)
	keys.key = capability.NewRootKey([32]byte{0xff})
	c.WantCode(t, tok, 0, capability.CodeBadSignature)
	keys.key = testKey()
	c.Want(t, tok, 0) // it was dropped, not hidden
}

func TestPrefixCacheDiesWithTheToken(t *testing.T) {
	f := newFeed()
	c := capability.NewTestCache(t, 16, keyring{testKey()}, wordChecker{}, capability.WithRevocations(f, 0))
	tok := mint(t, "ok", "ok", "ok")
	c.Want(t, tok, 0)
	c.Now = testIdentifier().NotAfter
	c.WantCode(t, tok, 4, capability.CodeExpired)
	c.Now = now
	c.Want(t, tok, 0)
	f.RevokeToken(testIdentifier().ID, never)
	c.WantCode(t, tok, 4, capability.CodeRevoked)
	c.WantCode(t, tok, 0, capability.CodeRevoked)
}

// It is bounded, over all and for each token.
func TestPrefixCacheBounds(t *testing.T) {
	c := capability.NewTestCache(t, 8, keyring{testKey()}, wordChecker{})
	for i := range 100 {
		c.Verify(t, mint(t, fmt.Sprint("ok ", i), "ok", "ok", "ok"))
	}
	if n := c.Entries(); n > 2 || n == 0 {
		t.Errorf("one token has %d entries, want at most 2", n)
	}
	for i := range 100 {
		id := testIdentifier()
		id.ID = capability.NewTokenID(int64(i), [10]byte{byte(i)})
		c.Verify(t, must[*capability.Token](t)(capability.Mint(testKey(), id, "ok")))
	}
	if n := c.Entries(); n > 8 || n < 5 {
		t.Errorf("%d entries, want about 8 and never more", n)
	}
	// Narrowed anew for every call, a token adds nothing.
	c = capability.NewTestCache(t, 8, keyring{testKey()}, wordChecker{})
	tok := mint(t, "ok", "ok")
	c.Verify(t, tok)
	for i := range 20 {
		c.Want(t, must[*capability.Token](t)(tok.AttenuateExact(fmt.Sprint("ok ", i), "ok")), 3)
	}
	if n := c.Entries(); n != 1 {
		t.Errorf("%d entries, want 1", n)
	}
}

// Discharges are verified against the chain that comes from the cache, and
// verified every time.
func TestPrefixCacheWithDischarges(t *testing.T) {
	k := discharger(t, 1)
	c := capability.NewTestCache(t, 8, keyring{testKey()}, wordChecker{})
	tok := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k.Public(), "", approved("x")))
	d := discharge(t, k, tok, 0)
	c.Want(t, with(t, tok, d), 0)
	c.Want(t, with(t, tok, d), 3)
	c.WantCode(t, tok, 3, capability.CodeDischargeRequired)
	forged := d.Bytes()
	forged[len(forged)-1] ^= 1
	c.WantCode(t, with(t, tok, must[*capability.Token](t)(capability.Decode(forged))), 3, capability.CodeDischargeInvalid)
	c.WantCode(t, with(t, tok, discharge(t, k, tok, 0, "deny")), 3, capability.CodeActionDenied)
}

func TestPrefixCacheInParallel(t *testing.T) {
	v := verifier(t, capability.UnsafeWithoutRevocations(), capability.WithPrefixCache(8))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			g, req := new(capability.Grant), &capability.Request{Now: now}
			for i := range 300 {
				id := testIdentifier()
				id.ID = capability.NewTokenID(int64(i%20), [10]byte{byte(i % 20)})
				tok, err := capability.Mint(testKey(), id, "ok", fmt.Sprint("ok ", i%3), []string{"ok", "deny"}[(i+w)%2])
				if err != nil {
					t.Error(err)
					return
				}
				want := []capability.Code{"", capability.CodeActionDenied}[(i+w)%2]
				if got := capability.CodeOf(v.Verify(context.Background(), g, tok.Bytes(), req)); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestAnswerCache(t *testing.T) {
	f, r := newFeed(), &remote{v: verifier(t)}
	v := must[*capability.Verifier](t)(capability.NewKeylessVerifier(r, []string{"corp"}, wordChecker{},
		capability.WithRevocations(f, 0), capability.WithAnswerCache(8, time.Minute)))
	g := new(capability.Grant)
	at := func(tok *capability.Token, when time.Time, want capability.Code, asked int) {
		t.Helper()
		before := r.asked
		wantCode(t, v.Verify(t.Context(), g, tok.Bytes(), &capability.Request{Now: when}), want)
		if r.asked-before != asked {
			t.Fatalf("asked the authority %d times, want %d", r.asked-before, asked)
		}
	}
	tok := mint(t, "ok")
	at(tok, now, "", 1)
	at(tok, now.Add(time.Second), "", 0)
	if g.Branch() != tok.Branch() {
		t.Error("the remembered answer has other branches")
	}
	at(mint(t, "ok 2"), now, "", 1)
	narrow := must[*capability.Token](t)(tok.AttenuateExact("ok"))
	at(narrow, now, "", 1) // exactly these bytes
	forged := tok.Bytes()
	forged[len(forged)-1] ^= 1
	bad := must[*capability.Token](t)(capability.Decode(forged))
	at(bad, now, capability.CodeBadSignature, 1)
	at(bad, now, capability.CodeBadSignature, 1) // a refusal is not remembered
	at(tok, now.Add(time.Minute), "", 1)         // too old
	at(tok, now.Add(-time.Second), "", 1)        // the clock stepped back
	at(tok, testIdentifier().NotAfter.Add(-1), "", 1)
	at(tok, testIdentifier().NotAfter, capability.CodeExpired, 1)
	f.RevokeToken(testIdentifier().ID, never)
	at(narrow, now, capability.CodeRevoked, 0)
	if _, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, wordChecker{},
		capability.UnsafeWithoutRevocations(), capability.WithAnswerCache(8, time.Minute)); err == nil {
		t.Error("an answer cache for a verifier with keys")
	}
	if _, err := capability.NewKeylessVerifier(r, []string{"corp"}, wordChecker{},
		capability.UnsafeWithoutRevocations(), capability.WithPrefixCache(8)); err == nil {
		t.Error("a prefix cache for a verifier without keys")
	}
}
