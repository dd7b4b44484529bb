package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func secret(passphrase string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(passphrase), nil }
}

// cheap is a passphrase protector that does not spend a second and 64 MiB.
func cheap(passphrase string) *PassphraseProtector {
	p := NewPassphraseProtector(rand.Reader, secret(passphrase))
	p.cost = argonCost{time: 1, memory: 64, threads: 1}
	return p
}

func TestIdentityFiles(t *testing.T) {
	id := value(GenerateIdentity(rand.Reader))(t)
	dir := t.TempDir()
	plainPath, sealedPath := filepath.Join(dir, "plain"), filepath.Join(dir, "sealed")
	must(t, WriteIdentityFile(plainPath, id, nil))
	must(t, WriteIdentityFile(sealedPath, id, []byte("correct horse"))) // the real cost, once
	for _, path := range []string{plainPath, sealedPath} {
		if info := value(os.Stat(path))(t); info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		before := value(os.ReadFile(path))(t)
		if err := WriteIdentityFile(path, id, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("written over: %v", err)
		}
		if !bytes.Equal(before, value(os.ReadFile(path))(t)) {
			t.Errorf("%s was changed", path)
		}
	}
	unasked := func() ([]byte, error) {
		t.Error("asked for the passphrase of a plain file")
		return nil, nil
	}
	if got := value(ReadIdentityFile(plainPath, unasked))(t); got.Recipient() != id.Recipient() {
		t.Error("plain file holds another identity")
	}
	if got := value(ReadIdentityFile(sealedPath, secret("correct horse")))(t); got.Recipient() != id.Recipient() {
		t.Error("sealed file holds another identity")
	}
	if _, err := ReadIdentityFile(sealedPath, nil); !errors.Is(err, ErrKind) {
		t.Errorf("sealed file without a passphrase: %v", err)
	}
	if _, err := ReadIdentityFile(filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := ReadIdentityFile(dir, nil); err == nil {
		t.Error("read a directory")
	}
	private := value(id.box.key[:], nil)(t)
	if b := value(os.ReadFile(sealedPath))(t); bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString(private)[:20])) {
		t.Error("the private key lies open in a sealed file")
	}
}

func TestPassphrase(t *testing.T) {
	id := value(GenerateIdentity(rand.Reader))(t)
	path := filepath.Join(t.TempDir(), "id")
	must(t, WriteIdentity(path, id, cheap("correct horse")))
	value(ReadIdentity(path, cheap("correct horse")))(t)
	for _, wrong := range []string{"correct hors", "correct horse ", "Correct horse"} {
		if _, err := ReadIdentity(path, cheap(wrong)); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", maxPassphrase+1)} {
		if _, err := ReadIdentity(path, cheap(bad)); err == nil {
			t.Errorf("passphrase of %d bytes was taken", len(bad))
		}
		if err := WriteIdentity(path+"2", id, cheap(bad)); err == nil {
			t.Errorf("wrote under a passphrase of %d bytes", len(bad))
		}
	}
	if err := WriteIdentityFile(path+"3", id, []byte{}); err == nil {
		t.Error("an empty passphrase made a file")
	}
	cancelled := errors.New("cancelled")
	failing := NewPassphraseProtector(rand.Reader, func() ([]byte, error) { return nil, cancelled })
	if _, err := ReadIdentity(path, failing); !errors.Is(err, cancelled) {
		t.Errorf("a prompt that was cancelled: %v", err)
	}
}

func TestIdentityFilePermissions(t *testing.T) {
	id := value(GenerateIdentity(rand.Reader))(t)
	path := filepath.Join(t.TempDir(), "id")
	must(t, WriteIdentityFile(path, id, nil))
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o610, 0o601, 0o666} {
		must(t, os.Chmod(path, mode))
		_, err := ReadIdentityFile(path, nil)
		if !errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	for _, mode := range []fs.FileMode{0o600, 0o400} {
		must(t, os.Chmod(path, mode))
		value(ReadIdentityFile(path, nil))(t)
	}
}

func TestAlteredIdentityFile(t *testing.T) {
	id := value(GenerateIdentity(rand.Reader))(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "id")
	must(t, WriteIdentity(path, id, cheap("p")))
	good := value(os.ReadFile(path))(t)
	bad := filepath.Join(dir, "bad")
	read := func(b []byte) error {
		must(t, os.WriteFile(bad, b, 0o600))
		_, err := ReadIdentity(bad, plain{}, cheap("p"))
		return err
	}
	must(t, read(good))
	for at := range good {
		altered := slices.Clone(good)
		altered[at] ^= 1
		if read(altered) == nil {
			t.Errorf("byte %d altered", at)
		}
	}
	text := string(good)
	for name, edited := range map[string]string{
		"unknown field":  strings.Replace(text, "{", `{"more": 1,`, 1),
		"duplicate":      strings.Replace(text, `"kind"`, `"version": 1, "kind"`, 1),
		"other case":     strings.Replace(text, `"kind"`, `"Kind"`, 1),
		"trailing":       text + " ",
		"two documents":  text + text,
		"later version":  strings.Replace(text, `"version": 1`, `"version": 2`, 1),
		"too long":       strings.Repeat(" ", MaxIdentityFile) + text,
		"empty":          "",
		"another's name": strings.Replace(text, id.Recipient().String(), value(GenerateIdentity(rand.Reader))(t).Recipient().String(), 1),
	} {
		if err := read([]byte(edited)); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := read([]byte(strings.Replace(text, KindPassphrase, "tpm", 1))); !errors.Is(err, ErrKind) {
		t.Errorf("another kind: %v", err)
	}
	// A plain file whose private key is not the recipient's.
	var f identityFile
	must(t, json.Unmarshal(good, &f))
	f.Kind, f.Protected = KindPlain, sequence(KeySize)
	if err := read(value(f.encode())(t)); !errors.Is(err, ErrMalformed) {
		t.Errorf("another's private key: %v", err)
	}
}

// A hostile file cannot make its reader spend without bound.
func TestArgonBounds(t *testing.T) {
	id := value(GenerateIdentity(rand.Reader))(t)
	good := value(cheap("p").Protect(id.Recipient(), id.box.key[:]))(t)
	for name, change := range map[string]func([]byte){
		"time 0":    func(b []byte) { binary.BigEndian.PutUint32(b[1:], 0) },
		"time":      func(b []byte) { binary.BigEndian.PutUint32(b[1:], maxArgonTime+1) },
		"memory":    func(b []byte) { binary.BigEndian.PutUint32(b[5:], maxArgonMemory+1) },
		"memory 0":  func(b []byte) { binary.BigEndian.PutUint32(b[5:], 0) },
		"threads":   func(b []byte) { b[9] = maxArgonThreads + 1 },
		"threads 0": func(b []byte) { b[9] = 0 },
		"format":    func(b []byte) { b[0]++ },
	} {
		bad := slices.Clone(good)
		change(bad)
		asked := false
		p := NewPassphraseProtector(rand.Reader, func() ([]byte, error) {
			asked = true
			return []byte("p"), nil
		})
		if _, err := p.Unprotect(id.Recipient(), bad); !errors.Is(err, ErrMalformed) || asked {
			t.Errorf("%s: %v, asked for the passphrase: %t", name, err, asked)
		}
	}
	other := value(GenerateIdentity(rand.Reader))(t)
	if _, err := cheap("p").Unprotect(other.Recipient(), good); !errors.Is(err, ErrPassphrase) {
		t.Errorf("under another recipient: %v", err)
	}
	for size := range good {
		if _, err := cheap("p").Unprotect(id.Recipient(), good[:size]); !errors.Is(err, ErrMalformed) {
			t.Errorf("first %d bytes: %v", size, err)
		}
	}
}

func FuzzIdentityFile(f *testing.F) {
	id := value(GenerateIdentity(new(counting)))(f)
	for _, file := range []identityFile{
		{fileVersion, KindPlain, id.Recipient(), sequence(KeySize)},
		{fileVersion, "tpm", id.Recipient(), nil},
	} {
		f.Add(value(file.encode())(f))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := parseIdentityFile(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := value(file.encode())(t); !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, encodes as %q", b, again)
		}
	})
}
