package capability

import (
	"crypto/sha256"
	"crypto/subtle"
	"strings"

	"golang.org/x/crypto/nacl/secretbox"
)

// checkDischarges verifies the discharges of a root whose chain has verified:
// each answers exactly one third-party caveat, and none is left over. A nil h
// is a keyless verifier: MACs are then the authority's word, and structure and
// bound caveats are checked all the same.
func (g *Grant) checkDischarges(h *hasher) Code {
	root := g.layout.root()
	if g.layout.nm == 1 && root.last == 0 {
		return ""
	}
	clear(g.discharged[:g.layout.nm])
	id, _ := ParseIdentity(root.id.of(g.buf))
	for i := range root.last {
		c := &g.layout.caveats[i]
		if !c.thirdParty() {
			continue
		}
		var sig *[32]byte
		if h != nil {
			sig = g.sigAt(int(i))
		}
		if code := g.checkDischarge(h, c, sig, int(i), i < id.Issued); code != "" {
			return code
		}
	}
	for d := 1; d < g.layout.nm; d++ {
		if !g.discharged[d].used {
			return CodeDischargeInvalid
		}
	}
	return ""
}

// checkDischarge verifies the discharge of one third-party caveat, whose chain
// had the signature sig before it. point is the root's point that the caveat
// hangs on. The recursion ends because a discharge is used once.
func (g *Grant) checkDischarge(h *hasher, c *caveatSpan, sig *[32]byte, point int, issued bool) Code {
	set := g.buf
	var key [32]byte
	if h != nil && !openVID(&key, sig, c.vid.of(set)) {
		return CodeDischargeInvalid
	}
	d := g.layout.find(set, c.id.of(set))
	if d == 0 {
		return CodeDischargeRequired
	}
	use := &g.discharged[d]
	if use.used {
		return CodeDischargeInvalid
	}
	m := &g.layout.macaroons[d]
	*use = dischargeUse{used: true, issued: issued, said: m.first}
	for i := m.first; i < m.last; i++ {
		if c := &g.layout.caveats[i]; !c.thirdParty() && isBound(c.id.of(set)) {
			use.said = i
			break
		}
	}
	if h != nil {
		h.sum(&key, &key, m.id.of(set))
	}
	for i := m.first; i < m.last; i++ {
		c := &g.layout.caveats[i]
		if c.thirdParty() {
			if code := g.checkDischarge(h, c, &key, point, issued && i < use.said); code != "" {
				return code
			}
		}
		if h != nil {
			h.caveat(&key, &key, set, c)
		}
	}
	bound, holds := g.checkBound(m, point)
	if !holds {
		return CodeDischargeInvalid
	}
	if h != nil && !g.tied(h, &key, set[m.sig:m.sig+32], bound) {
		return CodeDischargeInvalid
	}
	return ""
}

// tied reports whether a discharge's signature is that of its chain, and the
// discharge is tied to this root: by macaroon.v2's Bind, or, its signature
// being the chain's own, by a bound caveat that holds.
func (g *Grant) tied(h *hasher, chain *[32]byte, sig []byte, bound bool) bool {
	root := g.sigAt(g.points() - 1)
	if subtle.ConstantTimeCompare(chain[:], sig) == 1 {
		return bound || subtle.ConstantTimeCompare(root[:], sig) == 1 // what Bind leaves alone
	}
	var zero, want [32]byte
	h.sum2(&want, &zero, root[:], chain[:])
	return subtle.ConstantTimeCompare(want[:], sig) == 1
}

const boundWord = "bound"

// isBound reports whether a condition is a bound caveat, well-formed or not.
func isBound(condition []byte) bool {
	n := len(boundWord)
	return len(condition) >= n && string(condition[:n]) == boundWord && (len(condition) == n || condition[n] == ' ')
}

// checkBound reports whether a discharge has a bound caveat, and whether each
// that it has names a point that the root passes through.
func (g *Grant) checkBound(m *macaroonSpan, point int) (bound, holds bool) {
	for i := m.first; i < m.last; i++ {
		c := &g.layout.caveats[i]
		condition := c.id.of(g.buf)
		if c.thirdParty() || !isBound(condition) {
			continue
		}
		bound = true
		var want BranchID
		if len(condition) != len(boundWord)+1+32 || !hexBranch(&want, condition[len(boundWord)+1:]) {
			return true, false
		}
		if !g.passes(want, point) {
			return true, false
		}
	}
	return bound, true
}

// passes reports whether the root passes through b; guess is tried first.
func (g *Grant) passes(b BranchID, guess int) bool {
	if g.branchAt(guess) == b {
		return true
	}
	for i := range g.points() {
		if g.branchAt(i) == b {
			return true
		}
	}
	return false
}

func hexBranch(b *BranchID, s []byte) bool {
	for i := range b {
		hi, lo := unhex(s[2*i]), unhex(s[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		b[i] = hi<<4 | lo
	}
	return true
}

// openVID opens a verification id: the caveat key, sealed with NaCl's secretbox
// under the signature before the caveat, as every macaroon library does.
func openVID(key, sig *[32]byte, vid []byte) bool {
	if len(vid) != vidSize {
		return false
	}
	nonce := [24]byte(vid)
	_, ok := secretbox.Open(key[:0], vid[len(nonce):], &nonce, sig)
	return ok
}

const dischargePointTag = "writ/v1/discharge-point"

// dischargePoint names a caveat of a discharge by what the MAC covers: the
// discharge's identifier and every condition through it.
func (g *Grant) dischargePoint(c Caveat) BranchID {
	h := sha256.New()
	h.Write([]byte(dischargePointTag))
	m := &g.layout.macaroons[c.macaroon]
	add := func(s span) {
		h.Write([]byte{byte(s.n >> 8), byte(s.n)})
		h.Write(s.of(g.buf))
	}
	add(m.id)
	for i := m.first; i <= c.index; i++ {
		add(g.layout.caveats[i].vid)
		add(g.layout.caveats[i].id)
	}
	return BranchID(h.Sum(nil)[:16])
}

// BoundCondition is the condition that ties a discharge to a point of the root.
func BoundCondition(b BranchID) string { return boundWord + " " + b.String() }

// branchCondition reports whether a condition is a branch caveat, and its rest.
func branchCondition(condition string) (rest string, ok bool) {
	if condition == "branch" {
		return "", true
	}
	return strings.CutPrefix(condition, "branch ")
}
