// Package capability makes, narrows, reads and verifies Writ's tokens.
//
// A token is a macaroon (Birgisson et al., NDSS 2014) in the version 2 binary
// format of libmacaroons. Its identifier says who it is for and until when; each
// caveat appended since only narrows what it allows; and the signature of a
// chain of HMACs over all of these is what makes it a credential. Anyone who
// holds a token can narrow it offline, and nobody can widen it.
//
// # What to call first
//
// An authority calls Mint. A holder calls Token.Attenuate before it passes a
// token on. A service builds one Verifier with NewVerifier, with its keys, its
// audiences, a Checker (package caveats has the usual vocabulary) and its
// revocations, and calls Verify or VerifyText with a Request that says what the
// call means; the Grant then says who may do it. A service without keys uses
// NewKeylessVerifier. Token.Inspect shows what a token says of itself without a
// key, and means nothing until a Verifier has agreed.
//
// A third-party caveat (Token.AddThirdParty) asks for somebody else's word. The
// discharger opens its id (DischargerKey.OpenCaveat), judges, and answers with
// OpenedCaveat.Discharge; the holder sends the discharge along
// (Token.WithDischarges).
//
// # Verifying
//
// Verify decides in this order: the bounds (MaxTokenSize, MaxCaveats,
// MaxDischarges); the key, by audience, epoch and generation; the chain's MAC;
// the discharges' MACs, and that each is bound to this token; then not-after;
// revocations; caveats; proof of the holder's key; the registry; and last what
// is consumed: rates, and then budgets, all of them or none. Until the MAC has
// succeeded nothing but malformed, too_large, unknown_key and bad_signature is
// said, so that there is nothing to probe. Errors carry a Code.
//
// It walks the received bytes and computes the HMACs over those same bytes. A
// token has one encoding: what other libraries accept and would write
// differently (trailing bytes, lengths that are not minimal, empty fields, an
// older format inside the set) is refused. With a Grant that is reused it does not
// allocate.
//
// A branch id (BranchID) names a point of a token's delegation tree: the first 16
// bytes of SHA-256("writ/v1/branch" ‖ the chain's signature there). Revoking
// one kills that branch and everything derived from it, and its siblings live.
//
// # Discharges
//
// A discharge is tied to the token that it was asked for in one of two ways: its
// signature is bound to the root's by macaroon.v2's Bind, which dies with the
// next narrowing; or it holds a caveat "bound BRANCH" that names a point the
// root passes through, which survives it. One with neither is refused. In what
// OpenedCaveat.Discharge makes, the bound caveat comes last: what a holder
// appends after it narrows like any caveat, but declares nothing.
//
// # What it does not promise
//
// With HMAC, who can verify can mint. A service that holds an audience's keys could
// forge tokens for that audience, and nothing else; services that do not
// trust each other with that share no audience, or verify without keys.
//
// A token is a bearer credential unless a caveat binds it to a key, and it is
// not encrypted: everyone who sees it reads its caveats. Locations are hints that
// nobody vouches for. Whoever adds a third-party caveat knows its caveat key and
// could discharge it: only those that the minter added (MintCaveats) prove
// anything to others.
//
// A Verifier decides on the facts that its Request holds: whether they are what the
// service then does is the service's to get right (package guard helps). It
// says nothing about calls that are under way when a revocation arrives.
package capability
