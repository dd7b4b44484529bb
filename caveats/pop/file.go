package pop

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrKeyFile is wrapped by every error about what is in a key file, or who else
// may read it.
var ErrKeyFile = errors.New("pop: not a key file that can be used")

// maxKeyFile is the most bytes of a key file.
const maxKeyFile = 4 << 10

const keyBlock = "PRIVATE KEY"

// WriteKeyFile writes the key, which must be one in memory, to a new file of
// mode 0600: PKCS #8 in PEM (RFC 5958, RFC 7468), as other tools read it.
// Errors: fs.ErrExist, ErrKeyFile for a key that is in a device.
func WriteKeyFile(path string, k *Key) (err error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrKeyFile, err)
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
	defer clear(text)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(path)
		}
	}()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadKeyFile reads what WriteKeyFile wrote. A file that others than its owner
// can read or write is refused. Errors: ErrKeyFile, and those of opening it.
func ReadKeyFile(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no regular file", ErrKeyFile, path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, others can get at it (chmod 600)", ErrKeyFile, path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	defer clear(text)
	k, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// ParseKey reads a key file's text: one PEM block of PKCS #8 and nothing else.
// Errors: ErrKeyFile, ErrKey.
func ParseKey(text []byte) (*Key, error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrKeyFile, maxKeyFile)
	}
	if !bytes.HasPrefix(text, []byte("-----BEGIN "+keyBlock+"-----\n")) {
		return nil, fmt.Errorf("%w: it does not begin with a private key in PEM", ErrKeyFile)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != keyBlock || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("%w: not exactly one private key in PEM", ErrKeyFile)
	}
	defer clear(block.Bytes)
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: not PKCS #8", ErrKeyFile)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: %T", ErrKey, private)
	}
	return NewKey(signer)
}
