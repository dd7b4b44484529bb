package holder

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest/internal/tpm"
)

// A sealed secret is a version (1 byte), the length of the object's public area
// (2 bytes, big-endian), that area (TPMT_PUBLIC), and its private area as the TPM
// encrypted it (TPM2B_PRIVATE without its size).
const (
	sealVersion = 1
	tagSealAuth = "writ/v1/tpm-seal"

	// MaxSecret bounds what Seal takes, in bytes (MAX_SYM_DATA).
	MaxSecret = 128
)

// ErrSealed: what is to be unsealed is not what Seal made for this context.
var ErrSealed = errors.New("the sealed secret is damaged, or was sealed for something else")

// Seal seals a secret to a TPM: nothing but this TPM opens it, until its owner
// clears it. Whoever may use the TPM can, so it keeps a copied file from being
// worth anything, and not the machine from its root. The boot state plays no
// part, so that an update does not lock anybody out. context must be given again
// to Unseal; between the program and the TPM the secret is encrypted. address is
// as Config.TPM takes it.
func Seal(address string, secret, context []byte) (sealed []byte, err error) {
	if len(secret) == 0 || len(secret) > MaxSecret {
		return nil, fmt.Errorf("a secret of %d bytes cannot be sealed", len(secret))
	}
	err = withStorage(address, func(h *Holder, parent tpm2.AuthHandle, public tpm2.TPMTPublic) error {
		parent.Auth = tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Salted(parent.Handle, public))
		made, err := tpm2.Create{
			ParentHandle: parent,
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: sealAuth(context)},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
			}),
		}.Execute(h.conn)
		if err != nil {
			return err
		}
		object := made.OutPublic.Bytes()
		sealed = binary.BigEndian.AppendUint16([]byte{sealVersion}, uint16(len(object)))
		sealed = append(append(sealed, object...), made.OutPrivate.Buffer...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("seal to the TPM: %w", err)
	}
	return sealed, nil
}

// Unseal returns what Seal was given for the same context. Errors: ErrSealed,
// ErrOtherTPM, and those of the TPM.
func Unseal(address string, sealed, context []byte) (secret []byte, err error) {
	object, private, err := parseSealed(sealed)
	if err != nil {
		return nil, err
	}
	err = withStorage(address, func(h *Holder, parent tpm2.AuthHandle, public tpm2.TPMTPublic) (err error) {
		loaded, err := tpm2.Load{ParentHandle: parent, InPrivate: tpm2.TPM2BPrivate{Buffer: private}, InPublic: object}.Execute(h.conn)
		switch {
		case errors.Is(err, tpm2.TPMRCIntegrity), errors.Is(err, tpm2.TPMRCSize), errors.Is(err, tpm2.TPMRCInsufficient):
			return fmt.Errorf("%w, or damaged: %w", ErrOtherTPM, err)
		case err != nil:
			return err
		}
		defer func() { err = errors.Join(err, h.flush(loaded.ObjectHandle)) }()
		session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth(sealAuth(context)), tpm2.AESEncryption(128, tpm2.EncryptOut),
			tpm2.Salted(parent.Handle, public))
		opened, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: session}}.Execute(h.conn)
		if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
			return ErrSealed
		}
		if err == nil {
			secret = opened.OutData.Buffer
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("unseal with the TPM: %w", err)
	}
	return secret, nil
}

// parseSealed takes a sealed secret apart. Errors: ErrSealed.
func parseSealed(sealed []byte) (object tpm2.TPM2BPublic, private []byte, err error) {
	if len(sealed) < 3 || sealed[0] != sealVersion {
		return object, nil, ErrSealed
	}
	n := int(binary.BigEndian.Uint16(sealed[1:]))
	if n == 0 || n >= len(sealed)-3 {
		return object, nil, ErrSealed
	}
	object = tpm2.BytesAs2B[tpm2.TPMTPublic](sealed[3 : 3+n])
	if _, err := object.Contents(); err != nil {
		return object, nil, ErrSealed
	}
	return object, sealed[3+n:], nil
}

// sealAuth is what the TPM asks for to unseal: it holds the secret to its context.
// It has no zero byte, at which go-tpm takes it to end, while the TPM does so only at
// its end.
func sealAuth(context []byte) []byte {
	sum := sha256.Sum256(append([]byte(tagSealAuth), context...))
	for i, b := range sum {
		if b == 0 {
			sum[i] = 1
		}
	}
	return sum[:]
}

// withStorage runs f with the storage key of a TPM.
func withStorage(address string, f func(h *Holder, parent tpm2.AuthHandle, public tpm2.TPMTPublic) error) (err error) {
	if address == "" {
		address = tpm.DefaultDevice
	}
	conn, err := tpm.Open(address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	h := &Holder{conn: conn}
	return h.exclusive(func() error {
		return h.underStorage(func(parent tpm2.AuthHandle) error {
			read, err := tpm2.ReadPublic{ObjectHandle: parent.Handle}.Execute(conn)
			if err != nil {
				return err
			}
			public, err := read.OutPublic.Contents()
			if err != nil {
				return err
			}
			return f(h, parent, *public)
		})
	})
}
