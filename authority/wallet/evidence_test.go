package wallet_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"math/big"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/discharger"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/caveats/attest"
)

// TestEvidenceIsCheckedAgain: years later, an auditor needs nothing but the audit
// record to see that the TPM has quoted and certified for this token's caveat,
// policy and posture, and that the holder key was there.
func TestEvidenceIsCheckedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	operator, err := wallet.Open(wallet.Config{
		Attester: r.machine.holder, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: r.root}, Posture: attest.Posture{Agent: "agent"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operator.Enroll(t.Context(), wallet.OwnLocation, "prod"); err != nil {
		t.Fatal(err)
	}
	token := r.mint(nil)
	r.discharge(r.machine, token)
	caveats := map[string]attest.Digest{
		"enroll": sha256.Sum256(nil), "attest": sha256.Sum256(token.Missing()[0].CaveatID),
	}

	records, err := r.root.AuditRecords(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, raw := range records.Records {
		var rec struct {
			Action        string              `json:"action"`
			Audience      string              `json:"audience"`
			Policy        string              `json:"policy"`
			PolicyVersion uint64              `json:"policy_version"`
			Evidence      discharger.Evidence `json:"evidence"`
		}
		if err := json.Unmarshal(raw, &rec); err != nil {
			t.Fatal(err)
		}
		caveat, ours := caveats[rec.Action]
		if !ours {
			continue
		}
		checked++
		if rec.Action == "enroll" {
			rec.Audience = api.AdminAudience
		}
		e := rec.Evidence
		transcript := (&attest.Transcript{
			Audience: rec.Audience, ChallengeID: e.Challenge, Nonce: e.Nonce, CaveatHash: caveat, EKName: e.EKName,
			AKName: nameOf(e.AK), HolderName: nameOf(e.Holder), Policy: rec.Policy, PolicyVersion: rec.PolicyVersion, PostureHash: sha256.Sum256(e.Posture),
		}).Hash()
		quote, certify := attest.QuoteData(transcript), attest.CertifyData(transcript)
		values := sha256.Sum256(bytes.Join(e.PCRs, nil))
		if !bytes.Contains(e.Quote, quote[:]) || !bytes.HasSuffix(e.Quote, values[:]) || !signed(e.AK, sha256.Sum256(e.Quote), e.QuoteSignature) {
			t.Errorf("%s: the quote", rec.Action)
		}
		if !bytes.Contains(e.Certify, certify[:]) || !bytes.Contains(e.Certify, nameOf(e.Holder)) || !signed(e.AK, sha256.Sum256(e.Certify), e.CertifySignature) {
			t.Errorf("%s: the certification", rec.Action)
		}
		if !signed(e.Holder, transcript, e.Signature) {
			t.Errorf("%s: the holder key's signature", rec.Action)
		}
	}
	if checked != 2 {
		t.Errorf("%d records of evidence", checked)
	}
}

// nameOf is the TPM Name of a public area.
func nameOf(public []byte) attest.Name {
	digest := sha256.Sum256(public)
	return append(attest.Name{0x00, 0x0b}, digest[:]...)
}

// signed checks a TPMT_SIGNATURE by the P-256 key at the end of a TPMT_PUBLIC:
// 0018 000b 0020 r 0020 s, and 0020 x 0020 y.
func signed(public []byte, digest [32]byte, signature []byte) bool {
	if len(public) < 68 || len(signature) != 72 {
		return false
	}
	xy := public[len(public)-66:]
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, xy[:32]...), xy[34:]...))
	if err != nil {
		return false
	}
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[6:38]), new(big.Int).SetBytes(signature[40:]))
}
