package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"testing"
)

func TestPeerKey(t *testing.T) {
	// The derivation is permanent: peers pin the key.
	id, err := identityFromBytes(bytes.Repeat([]byte{7}, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	key, err := id.PeerKey()
	if err != nil {
		t.Fatal(err)
	}
	const want = "e456381e07c5d1982f7f3f9d732581eb210029d7058448e7bcbafccd9ef58713"
	if got := hex.EncodeToString(key[32:]); got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
	other, err := GenerateIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := other.PeerKey(); err != nil || k.Equal(key) {
		t.Errorf("two identities have one peer key, or: %v", err)
	}
	id.Destroy()
	if _, err := id.PeerKey(); !errors.Is(err, ErrDestroyed) {
		t.Errorf("of a destroyed identity: %v", err)
	}
}
