package holder

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
)

// readEndorsement finds the certificate of an endorsement key of this kind, or
// of the first kind that has one.
func (h *Holder) readEndorsement(kind attest.Kind) error {
	kinds := attest.Kinds()
	if kind != "" {
		kinds = []attest.Kind{kind}
	}
	for _, k := range kinds {
		index := ek.CertificateIndex(k)
		if index == 0 {
			return fmt.Errorf("%w: %q is no kind of endorsement key", ErrNoEndorsement, k)
		}
		der, err := h.readNV(index)
		if errors.Is(err, tpm2.TPMRCHandle) {
			continue
		} else if err != nil {
			return fmt.Errorf("read endorsement key certificate: %w", err)
		}
		certificate, err := ek.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read endorsement key certificate: %w", err)
		}
		if h.endorsement, err = ek.Rebuild(certificate); err != nil {
			return err
		}
		h.certificate = certificate.Raw
		return nil
	}
	return fmt.Errorf("%w: looked for %v", ErrNoEndorsement, kinds)
}

// readNV reads an index that its own, empty, authorization opens.
func (h *Holder) readNV(index tpm2.TPMHandle) ([]byte, error) {
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(h.conn)
	if err != nil {
		return nil, err
	}
	contents, err := public.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	named := tpm2.NamedHandle{Handle: index, Name: public.NVName}
	size := min(int(contents.DataSize), attest.MaxCertificate)
	out := make([]byte, 0, size)
	const block = 512 // every TPM reads as much at once
	for len(out) < size {
		response, err := tpm2.NVRead{
			AuthHandle: authorized(named), NVIndex: named, Size: uint16(min(block, size-len(out))), Offset: uint16(len(out)),
		}.Execute(h.conn)
		if err != nil {
			return nil, err
		}
		if len(response.Data.Buffer) == 0 {
			return nil, errors.New("the TPM reads nothing")
		}
		out = append(out, response.Data.Buffer...)
	}
	return out, nil
}

// activate recovers the challenge's secret, where there is one.
func (h *Holder) activate(r *attest.FinishRequest, c *attest.Challenge, t [sha256.Size]byte) error {
	if len(c.Credential) == 0 {
		return nil
	}
	return h.use(&h.ak, func(ak tpm2.NamedHandle) error {
		return h.withEndorsementKey(func(endorsement tpm2.AuthHandle) error {
			response, err := tpm2.ActivateCredential{
				ActivateHandle: authorized(ak), KeyHandle: endorsement,
				CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
			}.Execute(h.conn)
			if err != nil {
				return err
			}
			r.Activation = attest.Activation(response.CertInfo.Buffer, t)
			return nil
		})
	})
}

// persistent is where the handles of persistent endorsement keys begin (TCG TPM
// 2.0 Provisioning Guidance, section 7.8).
const persistent = 0x81010000

// withEndorsementKey runs f with the endorsement key: the persistent one, where
// there is one, since making an RSA key takes hardware up to half a minute.
func (h *Holder) withEndorsementKey(f func(tpm2.AuthHandle) error) (err error) {
	var auth tpm2.Session
	if h.endorsement.Kind == attest.ECCP384 {
		auth = tpm2.PasswordAuth(nil) // H templates have userWithAuth
	} else {
		auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicySecret{
				AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
				PolicySession: session, NonceTPM: nonce,
			}.Execute(t)
			return err
		})
	}
	run := func(handle tpm2.TPMHandle) error {
		return f(tpm2.AuthHandle{Handle: handle, Name: tpm2.TPM2BName{Buffer: h.endorsement.Name}, Auth: auth})
	}
	handles, err := h.handles(persistent)
	if err != nil {
		return err
	}
	for _, handle := range handles {
		public, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(h.conn)
		if err == nil && bytes.Equal(public.Name.Buffer, h.endorsement.Name) {
			return run(handle)
		}
	}
	response, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(*ek.Template(h.endorsement.Kind))}.Execute(h.conn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.flush(response.ObjectHandle)) }()
	if !bytes.Equal(response.Name.Buffer, h.endorsement.Name) {
		return errors.New("the TPM's endorsement key is not the one of its certificate")
	}
	return run(response.ObjectHandle)
}

// quoteAttempts is how often a quote is made again because a PCR was extended
// between the quote and the reading of its value.
const quoteAttempts = 3

func (h *Holder) quote(r *attest.FinishRequest, pcrs []int, data [sha256.Size]byte) error {
	for range quoteAttempts {
		var quoted *tpm2.TPMSAttest
		err := h.use(&h.ak, func(ak tpm2.NamedHandle) error {
			response, err := tpm2.Quote{
				SignHandle: authorized(ak), QualifyingData: tpm2.TPM2BData{Buffer: data[:]},
				InScheme: ecdsaSHA256, PCRSelect: selection(pcrs),
			}.Execute(h.conn)
			if err != nil {
				return err
			}
			r.Quote, r.QuoteSignature = response.Quoted.Bytes(), tpm2.Marshal(response.Signature)
			quoted, err = response.Quoted.Contents()
			return err
		})
		if err != nil {
			return err
		}
		if r.PCRs, err = h.readPCRs(pcrs); err != nil {
			return err
		}
		info, err := quoted.Attested.Quote()
		if err != nil {
			return err
		}
		if digest := sha256.Sum256(slices.Concat(r.PCRs...)); bytes.Equal(digest[:], info.PCRDigest.Buffer) {
			return nil
		}
	}
	return errors.New("the PCRs change all the time")
}

func (h *Holder) certify(r *attest.FinishRequest, data [sha256.Size]byte) error {
	return h.use(&h.ak, func(ak tpm2.NamedHandle) error {
		return h.use(&h.holder, func(holder tpm2.NamedHandle) error {
			response, err := tpm2.Certify{
				ObjectHandle: authorized(holder), SignHandle: authorized(ak),
				QualifyingData: tpm2.TPM2BData{Buffer: data[:]}, InScheme: ecdsaSHA256,
			}.Execute(h.conn)
			if err != nil {
				return err
			}
			r.Certify, r.CertifySignature = response.CertifyInfo.Bytes(), tpm2.Marshal(response.Signature)
			return nil
		})
	})
}

// readPCRs reads PCRs, ascending, of the SHA-256 bank. A TPM gives eight at most
// at once.
func (h *Holder) readPCRs(pcrs []int) ([][]byte, error) {
	var out [][]byte
	for some := range slices.Chunk(pcrs, 8) {
		response, err := tpm2.PCRRead{PCRSelectionIn: selection(some)}.Execute(h.conn)
		if err != nil {
			return nil, err
		}
		if len(response.PCRValues.Digests) != len(some) {
			return nil, errors.New("the TPM has no such PCRs in its SHA-256 bank")
		}
		for _, d := range response.PCRValues.Digests {
			if len(d.Buffer) != sha256.Size {
				return nil, errors.New("the TPM has no such PCRs in its SHA-256 bank")
			}
			out = append(out, d.Buffer)
		}
	}
	return out, nil
}

func selection(pcrs []int) tpm2.TPMLPCRSelection {
	bitmap := make([]byte, 3)
	for _, i := range pcrs {
		bitmap[i/8] |= 1 << (i % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bitmap}}}
}
