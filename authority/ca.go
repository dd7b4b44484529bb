package authority

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
)

// The state has the CA's certificate in the public half of its key, and behind it,
// while clients may pin the CA before, what leads there: the new CA as the old one
// signed it, and the old one. Nodes send all of it, so whichever of the two a
// client pins, the chain ends there. Of the old CA the private key is gone.

// CA tells by which fingerprint clients know the cluster.
func (a *Authority) CA() (*api.CAInfo, error) {
	k := a.machine.SealedKey(state.PurposeCA, 1)
	if k == nil {
		return nil, serviceError(ErrNotFormed)
	}
	chain, err := x509.ParseCertificates(k.Public)
	if err != nil {
		return nil, serviceError(err)
	}
	hexOf := func(c *x509.Certificate) string {
		sum := sha256.Sum256(c.Raw)
		return hex.EncodeToString(sum[:])
	}
	info := &api.CAInfo{CAFingerprint: hexOf(chain[0]), NotAfter: chain[0].NotAfter}
	if len(chain) > 1 {
		info.Retiring = hexOf(chain[len(chain)-1])
	}
	return info, nil
}

// RotateCA gives the cluster another CA, by which every node has a new certificate
// at once. Unless it is to be at once, the CA before vouches for it until RetireCA.
func (a *Authority) RotateCA(ctx context.Context, c Call, req *api.CARequest) (*api.CAInfo, error) {
	return a.setCA(ctx, c, func(k *state.SealedKey, key *seal.ClusterKey) error {
		before, err := a.keys.issuer()
		if err != nil {
			return err
		}
		if len(before.chain) > 1 && !req.AtOnce {
			return &Error{Code: api.CodeConflict, Detail: "the CA before the present one is still good", Hint: "retire it first: writ keys ca retire"}
		}
		cluster := a.machine.Cluster().ID
		private, err := drawKey(a.cfg, cluster, "", k)
		if err != nil {
			return err
		}
		defer clear(private)
		if !req.AtOnce {
			cross, err := before.vouch(k.Public)
			if err != nil {
				return err
			}
			k.Public = append(append(k.Public, cross...), before.chain[0].Raw...)
		}
		k.Sealed, err = key.Seal(a.cfg.Rand, label(cluster, k), private)
		return err
	})
}

// RetireCA ends the CA before the present one: clients that still pin it are
// refused from now on. Where there is none it is no change.
func (a *Authority) RetireCA(ctx context.Context, c Call) (*api.CAInfo, error) {
	return a.setCA(ctx, c, func(k *state.SealedKey, _ *seal.ClusterKey) error {
		chain, err := x509.ParseCertificates(k.Public)
		if err != nil {
			return err
		}
		k.Public = chain[0].Raw
		return nil
	})
}

func (a *Authority) setCA(ctx context.Context, c Call, alter func(k *state.SealedKey, key *seal.ClusterKey) error) (*api.CAInfo, error) {
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindSetKey, c),
		compose: func(int64) (any, error) {
			// One whose answer was lost is answered again, though what it did is in
			// the way of doing it twice.
			if made, err := a.machine.Remembers(c.Name, c.Request); made || err != nil {
				return &state.SetKey{}, err
			}
			key, under, err := a.keys.sealer()
			if err != nil {
				return nil, err
			}
			k := a.machine.SealedKey(state.PurposeCA, 1)
			if k == nil {
				return nil, ErrNotFormed
			}
			if k.Under != under {
				return nil, &Error{Code: api.CodeConflict, Detail: "the cluster key has changed meanwhile: try again"}
			}
			err = alter(k, key)
			return &state.SetKey{Key: *k}, err
		},
	})
	if err != nil {
		return nil, err
	}
	return a.CA()
}

// vouch signs another CA's certificate, so that whoever trusts this one trusts
// what that one signs.
func (i *issuer) vouch(der []byte) ([]byte, error) {
	ca := i.chain[0]
	if ca.MaxPathLen == 0 {
		return nil, &Error{Code: api.CodeConflict, Detail: "this cluster's CA cannot vouch for another", Hint: "replace it at once, and give clients the new fingerprint"}
	}
	next, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := *next
	template.SerialNumber, template.MaxPathLen, template.MaxPathLenZero = serial, 0, true
	if template.NotAfter.After(ca.NotAfter) {
		template.NotAfter = ca.NotAfter
	}
	cross, err := x509.CreateCertificate(rand.Reader, &template, ca, next.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("signing the next CA: %w", err)
	}
	return cross, nil
}
