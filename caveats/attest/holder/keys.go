package holder

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest"
)

// key is a key of the TPM that is loaded for each use and then flushed: without a
// resource manager there is room for three, whoever they are of. In between it
// is a saved context, which loads quickly until the TPM is reset.
type key struct {
	load func() (tpm2.TPMHandle, error) // makes it, or loads its blob

	raw     []byte // TPMT_PUBLIC
	name    attest.Name
	context *tpm2.TPMSContext
}

// exclusive runs the commands of one operation. A TPM without a resource manager
// is shared with other processes: where it is full it waits for them, and then
// makes room, since what is left is of a process that was killed.
func (h *Holder) exclusive(operation func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for delay := 10 * time.Millisecond; delay < 200*time.Millisecond; delay *= 2 {
		if err := operation(); !errors.Is(err, tpm2.TPMRCObjectMemory) {
			return err
		}
		time.Sleep(delay)
	}
	if err := h.flushTransient(); err != nil {
		return err
	}
	return operation()
}

// use loads k, runs f and flushes k.
func (h *Holder) use(k *key, f func(tpm2.NamedHandle) error) (err error) {
	var handle tpm2.TPMHandle
	loaded := false
	if k.context != nil {
		if response, err := (tpm2.ContextLoad{Context: *k.context}).Execute(h.conn); err == nil {
			handle, loaded = response.LoadedHandle, true
		} else if k.context = nil; errors.Is(err, tpm2.TPMRCObjectMemory) {
			return err
		}
	}
	if !loaded {
		if handle, err = k.load(); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, h.flush(handle)) }()
	if k.context == nil {
		public, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(h.conn)
		if err != nil {
			return err
		}
		if k.raw != nil && string(k.name) != string(public.Name.Buffer) {
			return errors.New("the TPM has made another key than before")
		}
		k.raw, k.name = public.OutPublic.Bytes(), public.Name.Buffer
		saved, err := tpm2.ContextSave{SaveHandle: handle}.Execute(h.conn)
		if err != nil {
			return err
		}
		k.context = &saved.Context
	}
	return f(tpm2.NamedHandle{Handle: handle, Name: tpm2.TPM2BName{Buffer: k.name}})
}

func (h *Holder) flush(handle tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: handle}.Execute(h.conn)
	return err
}

// flushTransient flushes every transient object that this connection can see.
func (h *Holder) flushTransient() error {
	handles, err := h.handles(uint32(tpm2.TPMHTTransient) << 24)
	if err != nil {
		return err
	}
	for _, handle := range handles {
		if err := h.flush(handle); err != nil {
			return err
		}
	}
	return nil
}

// handles lists up to 64 handles of the TPM from first on, of first's type.
func (h *Holder) handles(first uint32) ([]tpm2.TPMHandle, error) {
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(h.conn)
	if err != nil {
		return nil, err
	}
	list, err := response.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

// signing is a P-256 key that its TPM makes and keeps, and that signs.
func signing(restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, SignEncrypt: true, Restricted: restricted,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

var ecdsaSHA256 = tpm2.TPMTSigScheme{
	Scheme:  tpm2.TPMAlgECDSA,
	Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
}

func authorized(n tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: n.Handle, Name: n.Name, Auth: tpm2.PasswordAuth(nil)}
}

// makeAK makes the attestation key. In the owner's hierarchy it would see false
// counters.
func (h *Holder) makeAK() (tpm2.TPMHandle, error) {
	return h.primary(tpm2.TPMRHEndorsement, signing(true))
}

func (h *Holder) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (tpm2.TPMHandle, error) {
	response, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(h.conn)
	if err != nil {
		return 0, err
	}
	return response.ObjectHandle, nil
}

// underStorage runs f with the storage key that is the holder key's parent.
func (h *Holder) underStorage(f func(parent tpm2.AuthHandle) error) (err error) {
	response, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(h.conn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.flush(response.ObjectHandle)) }()
	return f(authorized(tpm2.NamedHandle{Handle: response.ObjectHandle, Name: response.Name}))
}

func (h *Holder) createHolderKey() (*blob, error) {
	b := new(blob)
	return b, h.underStorage(func(parent tpm2.AuthHandle) error {
		response, err := tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(signing(false))}.Execute(h.conn)
		if err != nil {
			return err
		}
		b.Public, b.Private = response.OutPublic.Bytes(), response.OutPrivate.Buffer
		return nil
	})
}

func (h *Holder) loadHolderKey(b *blob) (handle tpm2.TPMHandle, err error) {
	err = h.underStorage(func(parent tpm2.AuthHandle) error {
		response, err := tpm2.Load{
			ParentHandle: parent, InPrivate: tpm2.TPM2BPrivate{Buffer: b.Private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](b.Public),
		}.Execute(h.conn)
		if errors.Is(err, tpm2.TPMRCIntegrity) {
			return fmt.Errorf("%w: %w", ErrOtherTPM, err)
		} else if err != nil {
			return err
		}
		handle = response.ObjectHandle
		return nil
	})
	return handle, err
}

// sign signs a digest with the holder key and returns a TPMT_SIGNATURE.
func (h *Holder) sign(digest [sha256.Size]byte) (signature []byte, err error) {
	err = h.use(&h.holder, func(n tpm2.NamedHandle) error {
		response, err := tpm2.Sign{
			KeyHandle: authorized(n), Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: ecdsaSHA256,
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(h.conn)
		if err != nil {
			return err
		}
		signature = tpm2.Marshal(response.Signature)
		return nil
	})
	return signature, err
}

// Key is the holder key, for pop.NewKey. Each signature is one of the TPM.
func (h *Holder) Key() crypto.Signer { return h.signer }

// signer is the holder key as the standard library knows keys.
type signer struct {
	h      *Holder
	public *ecdsa.PublicKey
}

// Public is an *ecdsa.PublicKey on P-256.
func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign signs a SHA-256 digest. rand is not used: the TPM draws its own.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("the TPM's holder key signs SHA-256 digests alone")
	}
	var raw []byte
	if err := s.h.exclusive(func() (err error) { raw, err = s.h.sign([sha256.Size]byte(digest)); return err }); err != nil {
		return nil, fmt.Errorf("sign with the TPM: %w", err)
	}
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](raw)
	if err != nil {
		return nil, err
	}
	pair, err := signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(pair.SignatureR.Buffer), new(big.Int).SetBytes(pair.SignatureS.Buffer),
	})
}

func publicKey(raw []byte) (*ecdsa.PublicKey, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return nil, err
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, err
	}
	uncompressed := append([]byte{4}, new(big.Int).SetBytes(point.X.Buffer).FillBytes(make([]byte, 32))...)
	uncompressed = append(uncompressed, new(big.Int).SetBytes(point.Y.Buffer).FillBytes(make([]byte, 32))...)
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
}
