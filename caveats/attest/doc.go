// Package attest is what a holder and a discharger of Writ say to each other
// when a third-party caveat demands that "the holder runs on a TPM-attested
// machine that satisfies policy P": the messages, the transcript that binds
// them, the posture statement, the policy document and the result.
//
// In RATS terms (RFC 9334, passport model) the holder is the attester, the
// discharger the verifier and the discharge the attestation result. Package
// holder speaks to the TPM and package verifier checks the evidence; only these
// two import a TPM library.
//
// # The protocol
//
// The holder sends a BeginRequest: the caveat id, the endorsement key's
// certificate and the public areas of an attestation key (AK) and of the key
// that it will prove on every call. The discharger answers with a Challenge: a
// nonce, and a secret that only the TPM with that endorsement key gives up,
// and only to a key of exactly that Name. The holder sends a FinishRequest,
// whose parts all name the transcript: an HMAC under the secret, a quote of the
// policy's PCRs, the AK's certification of the holder key, and the holder key's
// own signature.
//
// The wire carries raw TPM structures (TPMT_PUBLIC, TPMS_ATTEST,
// TPMT_SIGNATURE: TPM 2.0 Library, Part 2), without the sizes of a TPM2B, in
// the base64 of encoding/json, so that any TPM stack can be the holder.
//
// # What it does not stop
//
// A relay to another, genuine TPM that the holder controls; a copied state file
// of a virtual TPM; whoever is root on the machine using the holder key until
// the next attestation; a bus interposer. PCRs tell how a machine booted and
// not how an agent behaves, and what a posture statement says is the holder's
// word, signed. One TPM can have several endorsement keys, and is a device for
// each: name one kind in the policy, or revoke all.
package attest
