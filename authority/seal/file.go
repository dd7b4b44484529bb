package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	fileVersion = 1
	// MaxIdentityFile bounds an identity file, in bytes.
	MaxIdentityFile = 8 << 10

	// KindPlain and KindPassphrase are the kinds of identity file that this package protects itself.
	KindPlain      = "plain"
	KindPassphrase = "passphrase"
)

// Protector guards an identity's private half at rest. A kind is stored in the file and finds the protector again; a TPM is one
// more kind.
type Protector interface {
	// Kind names the protection, in lower-case ASCII letters and hyphens.
	Kind() string
	// Protect encrypts a private key of [KeySize] bytes, with the recipient as associated data.
	Protect(recipient Recipient, private []byte) ([]byte, error)
	// Unprotect returns what Protect was given.
	Unprotect(recipient Recipient, protected []byte) ([]byte, error)
}

// plain leaves the private key as it is, to the file's mode.
type plain struct{}

func (plain) Kind() string { return KindPlain }

func (plain) Protect(_ Recipient, private []byte) ([]byte, error) { return bytes.Clone(private), nil }

func (plain) Unprotect(_ Recipient, protected []byte) ([]byte, error) {
	return bytes.Clone(protected), nil
}

// identityFile is the file's content: JSON, so that a person sees whose it is and how it is protected.
type identityFile struct {
	Version   int       `json:"version"`
	Kind      string    `json:"kind"`
	Recipient Recipient `json:"recipient"`
	Protected []byte    `json:"protected"`
}

func (f identityFile) encode() ([]byte, error) {
	b, err := json.MarshalIndent(f, "", "  ")
	return append(b, '\n'), err
}

// parseIdentityFile accepts only what encode writes, so that duplicate keys, unknown fields and other spellings are refused.
func parseIdentityFile(b []byte) (identityFile, error) {
	var f identityFile
	if len(b) > MaxIdentityFile {
		return f, fmt.Errorf("%w: identity file of more than %d bytes", ErrMalformed, MaxIdentityFile)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return identityFile{}, fmt.Errorf("%w: identity file is not JSON of this version", ErrMalformed)
	}
	if f.Version != fileVersion {
		return identityFile{}, fmt.Errorf("%w: identity file of version %d", ErrMalformed, f.Version)
	}
	if again, err := f.encode(); err != nil || !bytes.Equal(again, b) {
		return identityFile{}, fmt.Errorf("%w: identity file was edited", ErrMalformed)
	}
	return f, nil
}

// WriteIdentityFile stores an identity in a new file of mode 0600, durably, under the passphrase; a nil passphrase stores it plain.
// It never overwrites: an existing file is [fs.ErrExist].
func WriteIdentityFile(path string, id *Identity, passphrase []byte) error {
	if passphrase == nil {
		return WriteIdentity(path, id, plain{})
	}
	return WriteIdentity(path, id, NewPassphraseProtector(rand.Reader, func() ([]byte, error) { return passphrase, nil }))
}

// WriteIdentity is [WriteIdentityFile] with a protector.
func WriteIdentity(path string, id *Identity, p Protector) error {
	f := identityFile{Version: fileVersion, Kind: p.Kind(), Recipient: id.recipient}
	err := id.box.use(func(key []byte) (err error) {
		f.Protected, err = p.Protect(id.recipient, key)
		return err
	})
	if err != nil {
		return err
	}
	b, err := f.encode()
	if err != nil {
		return err
	}
	if len(b) > MaxIdentityFile {
		return fmt.Errorf("%w: protector %q made %d bytes", ErrMalformed, f.Kind, len(f.Protected))
	}
	return writeNew(path, b)
}

// writeNew creates a file that holds all of b after a crash, or is not there.
func writeNew(path string, b []byte) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	_, err = file.Write(b)
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ReadIdentityFile reads an identity, plain or under a passphrase, which it asks for only in the second case; a nil function refuses.
// A file that group or others can reach is [ErrPermissions]. Files of other kinds are for the protectors that are given.
func ReadIdentityFile(path string, passphrase func() ([]byte, error), others ...Protector) (*Identity, error) {
	protectors := append([]Protector{plain{}}, others...)
	if passphrase != nil {
		protectors = append(protectors, NewPassphraseProtector(rand.Reader, passphrase))
	}
	return ReadIdentity(path, protectors...)
}

// ReadIdentity reads an identity with whichever protector is of the file's kind; where none is, it fails with [ErrKind].
func ReadIdentity(path string, protectors ...Protector) (*Identity, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	f, err := parseIdentityFile(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range protectors {
		if p.Kind() != f.Kind {
			continue
		}
		private, err := p.Unprotect(f.Recipient, f.Protected)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		defer clear(private)
		id, err := identityFromBytes(private)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if id.recipient != f.Recipient {
			return nil, fmt.Errorf("%s: %w: private key is not the recipient's", path, ErrMalformed)
		}
		return id, nil
	}
	return nil, fmt.Errorf("%s: %w: %q", path, ErrKind, f.Kind)
}

// readPrivate reads a small regular file that only its owner can reach. It looks at the file that it opened, not at the path.
func readPrivate(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o (hint: chmod 600 %s)", ErrPermissions, path, mode, path)
	}
	return io.ReadAll(io.LimitReader(file, MaxIdentityFile+1))
}
