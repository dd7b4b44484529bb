package capability

import (
	"crypto/subtle"
	"slices"
)

// signatureSize is how long a macaroon's signature field is: type, length, signature.
const signatureSize = 2 + 32

// Unsigned is the root macaroon without its signature. It is no credential:
// who holds the root key makes it one again with Remint.
func (t *Token) Unsigned() []byte {
	var l layout
	if l.parse(t.raw) != "" {
		return nil // no Token holds such a set
	}
	return slices.Clone(t.raw[:l.root().end-signatureSize])
}

// Remint signs what Unsigned returned: with the same key it is the same token,
// byte for byte. Errors: CodeMalformed, CodeTooLarge.
func Remint(key *RootKey, unsigned []byte) (*Token, error) {
	if len(unsigned) > MaxTokenSize-signatureSize {
		return nil, CodeTooLarge
	}
	set := make([]byte, 0, len(unsigned)+signatureSize)
	set = append(set, unsigned...)
	set = append(set, wireSig, 32)
	set = append(set, make([]byte, 32)...)
	var l layout
	if code := l.parse(set); code != "" {
		return nil, code
	}
	if l.nm != 1 {
		return nil, CodeMalformed
	}
	sig, _ := l.chain(key, set, nil)
	copy(set[l.root().sig:], sig[:])
	return &Token{raw: set}, nil
}

// chain computes the root's chain over set and appends the branch id of every
// point to branches: of the identifier first, then of each caveat.
func (l *layout) chain(key *RootKey, set []byte, branches []BranchID) ([32]byte, []BranchID) {
	var h hasher
	h.init()
	root, sig := l.root(), key.derived
	h.sum(&sig, &sig, root.id.of(set))
	branches = append(branches, branchOf(&sig))
	for _, c := range l.caveats[root.first:root.last] {
		if c.thirdParty() {
			h.sum2(&sig, &sig, c.vid.of(set), c.id.of(set))
		} else {
			h.sum(&sig, &sig, c.id.of(set))
		}
		branches = append(branches, branchOf(&sig))
	}
	return sig, branches
}

// VerifyChain verifies the MAC chain of the root macaroon alone, and returns
// the branch id of every point: of the identifier first, then of each caveat. No
// discharge, caveat or lifetime is looked at: it says that the chain was minted
// under this key and what has been appended, and nothing about what it allows.
// Errors: CodeBadSignature.
func (t *Token) VerifyChain(key *RootKey) ([]BranchID, error) {
	var l layout
	if code := l.parse(t.raw); code != "" {
		return nil, code
	}
	sig, branches := l.chain(key, t.raw, nil)
	if subtle.ConstantTimeCompare(sig[:], t.raw[l.root().sig:][:32]) != 1 {
		return nil, CodeBadSignature
	}
	return branches, nil
}
