package capability

// Token is a token set: a macaroon and the discharges that go with it. It is
// immutable; nothing about it is authenticated until a Verifier has said so.
// It prints redacted: Text is the way to the credential.
type Token struct{ raw []byte }

// Mint makes a token. id.Issued is set to len(conditions). Errors:
// ErrBadIdentifier, CodeTooLarge, CodeMalformed for a condition that is empty.
func Mint(key *RootKey, id Identifier, conditions ...string) (*Token, error) { panic("stub") }

// Parse reads the text form, strictly. Errors: CodeMalformed, CodeTooLarge.
func Parse(text string) (*Token, error) { panic("stub") }

// Decode reads the binary form, strictly. Errors: CodeMalformed, CodeTooLarge.
func Decode(set []byte) (*Token, error) { panic("stub") }

// Text is the credential in text form.
func (t *Token) Text() string { panic("stub") }

// Bytes is the credential in binary form (a copy).
func (t *Token) Bytes() []byte { panic("stub") }

// String never shows the credential.
func (t *Token) String() string { return "(token redacted)" }

// Attenuate returns a narrower token: these conditions are appended, after a
// branch caveat that keeps siblings apart unless one is among them.
// It needs no key. Errors: CodeTooLarge, CodeMalformed.
func (t *Token) Attenuate(conditions ...string) (*Token, error) { panic("stub") }

// AttenuateExact is Attenuate without the added branch caveat: equal
// narrowings are then one branch.
func (t *Token) AttenuateExact(conditions ...string) (*Token, error) { panic("stub") }

// WithDischarges returns the token with discharges appended, unbound ones as
// they are (their bound caveat ties them).
func (t *Token) WithDischarges(discharges ...*Token) (*Token, error) { panic("stub") }

// Branch is the branch id of the root as it stands.
func (t *Token) Branch() BranchID { panic("stub") }

// Branches returns the ids of points that can be told from the token alone:
// only the last, since a shorter prefix's signature is not in it.

// Inspection is what a token says of itself. Nobody has authenticated it.
type Inspection struct {
	Identifier Identifier
	Branch     BranchID
	Caveats    []InspectedCaveat
	Discharges []InspectedDischarge
	Size       int // bytes in binary form
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

// Inspect reads the token without a key.
func (t *Token) Inspect() (*Inspection, error) { panic("stub") }
