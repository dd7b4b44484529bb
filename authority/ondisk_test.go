package authority

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
)

// drawn is a source of randomness that remembers what keys it gave.
type drawn struct {
	mu   sync.Mutex
	keys [][]byte // guarded by mu
}

func (d *drawn) Read(b []byte) (int, error) {
	n, err := rand.Read(b)
	if n == seal.KeySize {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.keys = append(d.keys, bytes.Clone(b))
	}
	return n, err
}

// TestNoSecretOnDisk: the data directory of a node that has seen every kind of key
// change, and has compacted its log, holds none of what its key file opens, nor
// what makes a token whole, in any of the forms that it could be written in.
func TestNoSecretOnDisk(t *testing.T) {
	cfg := testConfig(t)
	source := new(drawn)
	cfg.Rand = source
	recovery, err := seal.GenerateIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Recovery = recovery.Recipient().String()
	a, formed, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{}
	token := func(name, text string) {
		raw := parse(t, text).Bytes()
		secrets[name+"'s signature"] = raw[len(raw)-32:]
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root := callerOf(t, a, formed.RootToken)
	// opened has every key that there is now.
	opened := func(when string) {
		for name, p := range map[string]openedName{
			"master": {state.PurposeMaster, 1}, "second master": {state.PurposeMaster, 2}, "admin secret": {state.PurposeAdmin, state.AdminEpoch},
			"audit seed": {state.PurposeAudit, 1}, "discharger's key": {state.PurposeDischarger, 1},
		} {
			s, err := a.keys.secret(p.purpose, p.epoch)
			must(err)
			secrets[when+" "+name], err = s.Expose()
			must(err)
		}
		ca, err := a.keys.issuer()
		must(err)
		secrets[when+" CA key"], err = ca.key.Bytes()
		must(err)
		keys, err := a.Keys(t.Context(), root, []string{"corp"})
		must(err)
		for _, k := range keys.Keys {
			secrets[fmt.Sprintf("%s key of corp, epoch %d", when, k.Epoch)] = k.Secret
		}
	}
	token("the root token", formed.RootToken)
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	must(err)
	token("a token", issued.Token)
	service, err := a.AddService(t.Context(), Call{Caller: root}, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	must(err)
	secrets["the join secret"] = []byte(strings.TrimPrefix(service.JoinSecret, JoinPrefix))
	joined, err := a.Join(t.Context(), Call{}, &api.JoinRequest{Name: "files", JoinSecret: service.JoinSecret})
	must(err)
	token("a service's credential", joined.Token)
	_, err = a.Rotate(t.Context(), Call{Caller: root})
	must(err)
	opened("the first")
	_, err = a.RotateClusterKey(t.Context(), Call{Caller: root})
	must(err)
	_, err = a.RotateCA(t.Context(), Call{Caller: root}, &api.CARequest{AtOnce: true})
	must(err)
	opened("the second")
	must(a.Compact(t.Context()))
	_, err = a.Issue(t.Context(), Call{Caller: root}, issueRequest("action write"))
	must(err)
	closeNode(t, a)
	identity, err := seal.ReadIdentityFile(cfg.KeyFile, nil)
	must(err)
	peer, err := identity.PeerKey()
	must(err)
	secrets["the node's key for its peers"] = peer[:ed25519.SeedSize]
	for i, k := range source.keys { // cluster keys and the node's own among them
		secrets[fmt.Sprintf("what was drawn as number %d", i)] = k
	}
	if len(secrets) < 20 {
		t.Fatalf("only %d secrets are looked for", len(secrets))
	}

	files, snapshots := 0, 0
	must(filepath.WalkDir(cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if filepath.Ext(path) == ".snap" { // one frame of zstd behind header and description
			snapshots++
			plain, err := zstd.NewReader(bytes.NewReader(b[16+binary.BigEndian.Uint32(b[12:]):]))
			if err != nil {
				return err
			}
			defer plain.Close()
			var state bytes.Buffer
			if _, err := state.ReadFrom(plain); state.Len() < len(b)/2 {
				return fmt.Errorf("%s was not read: %w", path, err)
			}
			b = append(b, state.Bytes()...)
		}
		for name, secret := range secrets {
			for _, form := range formsOf(secret) {
				if bytes.Contains(b, form) {
					t.Errorf("%s holds %s, as %q", path, name, form)
				}
			}
		}
		return nil
	}))
	if files < 5 || snapshots != 1 {
		t.Fatalf("%d files, %d snapshots", files, snapshots)
	}
	// By itself the directory does not start: neither without a key file nor with another.
	for _, copied := range []string{"gone", "another"} {
		dir := filepath.Join(t.TempDir(), "copy")
		must(os.CopyFS(dir, os.DirFS(cfg.Dir)))
		must(os.Chmod(dir, 0o700))
		elsewhere := cfg
		elsewhere.Dir, elsewhere.KeyFile, elsewhere.Bootstrap = dir, filepath.Join(t.TempDir(), "key"), false
		if copied == "another" {
			other := testConfig(t)
			n, _ := openNode(t, other)
			closeNode(t, n)
			elsewhere.KeyFile = other.KeyFile
		}
		if _, _, err := Open(t.Context(), elsewhere); err == nil {
			t.Errorf("a copy starts, the key file %s", copied)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(elsewhere.KeyFile), "key")); copied == "gone" && !os.IsNotExist(err) {
			t.Errorf("a key file was made: %v", err)
		}
	}
}

// formsOf is a secret as it could be written: itself, in hexadecimal, and in base64
// by itself or within something longer.
func formsOf(secret []byte) [][]byte {
	text := hex.EncodeToString(secret)
	forms := [][]byte{secret, []byte(text), []byte(strings.ToUpper(text))}
	for i := range 3 {
		part := secret[i : i+24] // of whole groups
		forms = append(forms, base64.StdEncoding.AppendEncode(nil, part), base64.URLEncoding.AppendEncode(nil, part))
	}
	return forms
}
