// Package discharger answers third-party caveats of the form "attested POLICY":
// it challenges a holder's TPM, has package verifier check the evidence, and
// makes the discharge. It runs within the authority, whose replicated state is
// then its Store, and on its own (writ discharger) over a File.
//
// # Challenges cost no memory
//
// A challenge that was begun is not remembered: what the discharger needs to
// judge the answer goes to the holder, sealed under a key of its own, and comes
// back. Only a challenge that was answered well is recorded, as used, until it
// would have expired. So whoever begins ten thousand of them and finishes none
// leaves nothing behind, and delays others by no more than the computation.
//
// # Who may begin
//
// Whoever has a caveat id that this discharger can open: it was sealed by
// whoever added the caveat, and names the policy, the token's branch and the
// holder or device expected. An enrolment without a token needs a credential,
// which is the caller's business: see Begin.
package discharger
