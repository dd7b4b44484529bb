package seal

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
)

const tagPeer = "writ/v1/peer"

// PeerKey derives the key by which the identity's owner proves itself to its peers:
//
//	Ed25519 from the seed HKDF-SHA256(private key, no salt, "writ/v1/peer")
//
// It is for good, as the identity is, and needs no file of its own; whoever has neither the file nor what protects it has no key either.
// It fails with [ErrDestroyed].
func (id *Identity) PeerKey() (ed25519.PrivateKey, error) {
	var key ed25519.PrivateKey
	err := id.box.use(func(private []byte) error {
		seed, err := hkdf.Key(sha256.New, private, nil, tagPeer, ed25519.SeedSize)
		if err != nil {
			return err
		}
		defer clear(seed)
		key = ed25519.NewKeyFromSeed(seed)
		return nil
	})
	return key, err
}
