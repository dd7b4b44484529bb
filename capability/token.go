package capability

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"gopkg.in/macaroon.v2"
)

// Token is a token set: a macaroon and the discharges that go with it. It is
// immutable; nothing about it is authenticated until a Verifier has said so.
// It prints redacted: Text is the way to the credential.
type Token struct{ raw []byte }

// mintLocation is the location hint of what is made here. Nobody vouches for it;
// it is there because pymacaroons writes an empty location where there is none,
// and an empty field is not canonical: with it, what that library narrows
// verifies.
const mintLocation = "writ"

// Mint makes a token. id.Issued is set to len(conditions). Errors:
// ErrBadIdentifier, CodeTooLarge, CodeMalformed for a condition that is empty.
func Mint(key *RootKey, id Identifier, conditions ...string) (*Token, error) {
	caveats := make([]NewCaveat, len(conditions))
	for i, c := range conditions {
		caveats[i].Condition = c
	}
	return MintCaveats(key, id, caveats...)
}

// NewCaveat is a caveat to mint a token with: a first-party condition, or a
// third-party caveat if ThirdParty is not nil.
type NewCaveat struct {
	Condition string // first-party

	ThirdParty *ThirdParty
	To         DischargerPublicKey
	Location   string // a hint that nobody vouches for; may be empty
}

// MintCaveats is Mint for an issued prefix that may hold third-party caveats:
// only what discharges of these declare enters a grant.
func MintCaveats(key *RootKey, id Identifier, caveats ...NewCaveat) (*Token, error) {
	id.Issued = len(caveats)
	if id.Issued > MaxCaveats {
		return nil, CodeTooLarge
	}
	raw, err := id.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	m, err := macaroon.New(key.secret[:], raw, mintLocation, macaroon.V2)
	if err != nil {
		return nil, err
	}
	for _, c := range caveats {
		if c.ThirdParty != nil {
			err = addThirdParty(m, c.To, c.Location, *c.ThirdParty)
		} else {
			err = addCondition(m, c.Condition)
		}
		if err != nil {
			return nil, err
		}
	}
	return newToken(m, nil)
}

func addCondition(m *macaroon.Macaroon, condition string) error {
	if condition == "" {
		return &Refusal{Code: CodeMalformed, Detail: "an empty condition"}
	}
	return m.AddFirstPartyCaveat([]byte(condition))
}

// newToken serializes m, followed by discharges that are serialized already,
// and holds it to the bounds.
func newToken(m *macaroon.Macaroon, discharges []byte) (*Token, error) {
	raw, err := m.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return decode(append(raw, discharges...))
}

// decode takes ownership of set.
func decode(set []byte) (*Token, error) {
	var l layout
	if code := l.parse(set); code != "" {
		return nil, code
	}
	return &Token{raw: set}, nil
}

// Parse reads the text form, strictly. Errors: CodeMalformed, CodeTooLarge.
func Parse(text string) (*Token, error) {
	set, code := decodeText(nil, text)
	if code != "" {
		return nil, code
	}
	return decode(set)
}

// Decode reads the binary form, strictly. Errors: CodeMalformed, CodeTooLarge.
func Decode(set []byte) (*Token, error) {
	if len(set) > MaxTokenSize {
		return nil, CodeTooLarge
	}
	return decode(slices.Clone(set))
}

// Text is the credential in text form.
func (t *Token) Text() string { return string(appendText(nil, t.raw)) }

// Bytes is the credential in binary form (a copy).
func (t *Token) Bytes() []byte { return slices.Clone(t.raw) }

const tokenRedacted = "(token redacted)"

// String, GoString, Format, LogValue and MarshalText never show the credential.
func (t Token) String() string               { return tokenRedacted }
func (t Token) GoString() string             { return tokenRedacted }
func (t Token) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(tokenRedacted)) }
func (t Token) LogValue() slog.Value         { return slog.StringValue(tokenRedacted) }
func (t Token) MarshalText() ([]byte, error) { return []byte(tokenRedacted), nil }

// open returns the root for appending, and the discharges as they stand.
func (t *Token) open() (root *macaroon.Macaroon, discharges []byte, err error) {
	var l layout
	if code := l.parse(t.raw); code != "" {
		return nil, nil, code
	}
	end := l.root().end
	root = new(macaroon.Macaroon)
	if err := root.UnmarshalBinary(t.raw[:end]); err != nil {
		return nil, nil, CodeMalformed
	}
	return root, t.raw[end:], nil
}

// Attenuate returns a narrower token: these conditions are appended, after a
// branch caveat that keeps siblings apart unless one is among them. A branch
// caveat without a nonce, "branch" or "branch LABEL", is given one; a label is
// 1 to MaxLabel bytes of visible ASCII. It needs no key. Errors: CodeTooLarge,
// CodeMalformed.
func (t *Token) Attenuate(conditions ...string) (*Token, error) {
	out := make([]string, 0, 1+len(conditions))
	branched := false
	for _, c := range conditions {
		if rest, ok := branchCondition(c); ok {
			branched = true
			var err error
			if c, err = completeBranch(rest); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	if !branched {
		c, err := completeBranch("")
		if err != nil {
			return nil, err
		}
		out = slices.Insert(out, 0, c)
	}
	return t.AttenuateExact(out...)
}

// MaxLabel is the most bytes of a branch caveat's label.
const MaxLabel = 64

// nonceDigits is how many hexadecimal digits the 96 bits of a branch's nonce take.
const nonceDigits = 24

// completeBranch gives a branch caveat its nonce unless it has one.
func completeBranch(rest string) (string, error) {
	if len(rest) >= nonceDigits && isNonce(rest[:nonceDigits]) && (len(rest) == nonceDigits || rest[nonceDigits] == ' ') {
		return "branch " + rest, nil
	}
	if rest != "" && (!ValidName(rest, MaxLabel) || strings.ContainsAny(rest, `"\`)) {
		return "", &Refusal{Code: CodeMalformed, Caveat: "branch " + rest,
			Detail: `a branch's label is 1 to 64 visible ASCII characters, without " and \`}
	}
	var nonce [nonceDigits / 2]byte
	if _, err := io.ReadFull(rand.Reader, nonce[:]); err != nil {
		return "", err
	}
	c := "branch " + hex.EncodeToString(nonce[:])
	if rest != "" {
		c += " " + rest
	}
	return c, nil
}

func isNonce(s string) bool {
	for i := range len(s) {
		if unhex(s[i]) > 15 {
			return false
		}
	}
	return true
}

// AttenuateExact is Attenuate without the added branch caveat: equal
// narrowings are then one branch.
func (t *Token) AttenuateExact(conditions ...string) (*Token, error) {
	m, discharges, err := t.open()
	if err != nil {
		return nil, err
	}
	for _, c := range conditions {
		if err := addCondition(m, c); err != nil {
			return nil, err
		}
	}
	return newToken(m, discharges)
}

// WithDischarges returns the token with discharges appended, unbound ones as
// they are (their bound caveat ties them). Errors: CodeTooLarge.
func (t *Token) WithDischarges(discharges ...*Token) (*Token, error) {
	set := slices.Clone(t.raw)
	for _, d := range discharges {
		set = append(set, d.raw...)
		if len(set) > MaxTokenSize {
			return nil, CodeTooLarge
		}
	}
	return decode(set)
}

// Root returns the token without its discharges, and the discharges.
func (t *Token) Root() (root *Token, discharges []*Token) {
	var l layout
	if l.parse(t.raw) != "" {
		return t, nil
	}
	for _, m := range l.macaroons[1:l.nm] {
		discharges = append(discharges, &Token{raw: slices.Clone(t.raw[m.start:m.end])})
	}
	return &Token{raw: slices.Clone(t.raw[:l.root().end])}, discharges
}

// Branch is the branch id of the root as it stands: the only one that can be
// told from the token alone, since it does not hold a shorter prefix's
// signature.
func (t *Token) Branch() BranchID {
	var l layout
	if l.parse(t.raw) != "" {
		return BranchID{}
	}
	return branchOf((*[32]byte)(t.raw[l.root().sig:]))
}

// Inspection is what a token says of itself. Nobody has authenticated it.
type Inspection struct {
	Identifier  Identifier // zero if IsDischarge
	IsDischarge bool       // the first macaroon has no token's identifier: it is a discharge
	Branch      BranchID
	Caveats     []InspectedCaveat
	Discharges  []InspectedDischarge
	Size        int // bytes in binary form
}

// InspectedCaveat is one unauthenticated caveat.
type InspectedCaveat struct {
	Condition  string // first-party: the condition
	ThirdParty bool
	CaveatID   []byte // third-party: the sealed id
	Location   string // third-party: a hint that nobody vouches for
}

// InspectedDischarge is one unauthenticated discharge.
type InspectedDischarge struct {
	CaveatID []byte
	Caveats  []InspectedCaveat
}

// Inspect reads the token without a key. Errors: CodeMalformed.
func (t *Token) Inspect() (*Inspection, error) {
	var l layout
	if code := l.parse(t.raw); code != "" {
		return nil, code
	}
	in := &Inspection{Branch: t.Branch(), Caveats: t.inspect(&l, 0), Size: len(t.raw)}
	if id, err := ParseIdentity(l.root().id.of(t.raw)); err == nil {
		in.Identifier = id.Identifier()
	} else {
		in.IsDischarge = true
	}
	for d := 1; d < l.nm; d++ {
		in.Discharges = append(in.Discharges, InspectedDischarge{
			CaveatID: slices.Clone(l.macaroons[d].id.of(t.raw)), Caveats: t.inspect(&l, d),
		})
	}
	return in, nil
}

func (t *Token) inspect(l *layout, m int) []InspectedCaveat {
	var out []InspectedCaveat
	for _, c := range l.caveats[l.macaroons[m].first:l.macaroons[m].last] {
		id := c.id.of(t.raw)
		if !c.thirdParty() {
			out = append(out, InspectedCaveat{Condition: string(id)})
			continue
		}
		out = append(out, InspectedCaveat{
			ThirdParty: true, CaveatID: slices.Clone(id), Location: string(c.loc.of(t.raw)),
		})
	}
	return out
}
