package authority

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/raftstore"
)

// Whoever has a member's key file is that member, also while its node is stopped:
// the peers of node.json are asked over the same connections as a node asks, and
// the one that leads answers.

// askPeersFor is how long peers are asked for one that can answer.
const askPeersFor = 10 * time.Second

// rootRequest asks for a new root token.
type rootRequest struct {
	Node string `json:"node"` // who asks, however it comes to the leader
}

type rootAnswer struct {
	Token string `json:"token"`
}

// IsMember reports whether the node in a directory is one of a cluster that has
// other nodes, as far as it knows.
func IsMember(dir string) (bool, error) {
	file, err := readNodeFile(dir)
	return file != nil && len(file.Peers) > 0, err
}

// MemberRoot is RootReset for a node of a cluster, running or not: its peers are
// asked with the key in cfg.KeyFile, and whichever leads issues the token. Errors:
// ErrConfig, ErrKeyFile, raftstore's, and what the leader answers.
func MemberRoot(ctx context.Context, cfg Config) (string, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return "", err
	}
	identity, err := openIdentity(cfg, false)
	if err != nil {
		return "", err
	}
	defer identity.Destroy()
	if file, err := readNodeFile(cfg.Dir); err != nil {
		return "", err
	} else if file != nil {
		if err := file.own(cfg, identity); err != nil {
			return "", err
		}
	}
	var answer rootAnswer
	return answer.Token, askPeers(ctx, cfg, identity, methodRoot, rootRequest{Node: cfg.NodeID}, &answer)
}

// askPeers has the cluster's leader answer a call of a member. The peers that
// node.json names are tried in turn; whichever is asked passes it on.
func askPeers(ctx context.Context, cfg Config, identity *seal.Identity, method byte, request, answer any) error {
	file, err := readNodeFile(cfg.Dir)
	if err != nil {
		return err
	}
	if file == nil || file.Node != cfg.NodeID || len(file.Peers) == 0 {
		return fmt.Errorf("%w: %s knows of no peers of a node %q", ErrConfig, cfg.Dir, cfg.NodeID)
	}
	// Nobody is told of this address: it is there because a transport listens.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	peer := PeerConfig{Listener: ln}
	if cfg.Peers != nil {
		peer.Dial, peer.Profile = cfg.Peers.Dial, cfg.Peers.Profile
	}
	cfg.Peers = &peer
	file.Certificate = nil // it may be of another key
	p, err := openPeers(cfg, identity, file)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer p.transport.Close()
	ctx, cancel := context.WithTimeout(ctx, askPeersFor)
	defer cancel()
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		refused := 0
		for _, known := range file.Peers {
			b, callErr := p.callAt(ctx, known.Node, known.Raft, method, request)
			if callErr == nil {
				return json.Unmarshal(b, answer)
			}
			err = callErr
			if !notExecuted(err) {
				return err
			}
			if errors.Is(err, raftstore.ErrRefused) {
				refused++
			}
		}
		if refused == len(file.Peers) {
			return err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return err
		}
	}
}

// answerRoot issues a root token for whoever can open the seal on a member.
func (a *Authority) answerRoot(ctx context.Context, from string, r *rootRequest) (*rootAnswer, error) {
	answer := new(rootAnswer)
	if !a.store.IsLeader() {
		if r.Node != from {
			return nil, raftstore.ErrNotLeader // one hop
		}
		return answer, a.callLeader(ctx, methodRoot, r, answer)
	}
	if m, ok := a.machine.Member(r.Node); !ok || m.State != state.MemberActive {
		return nil, raftstore.ErrUnknownMember
	}
	var err error
	answer.Token, err = a.resetRoot(ctx, "root reset, asked for with the key of "+r.Node)
	return answer, err
}

// answerRekey pins another key for a member that agrees with both.
func (a *Authority) answerRekey(ctx context.Context, from string, r *state.RekeyMember) (*struct{}, error) {
	done := new(struct{})
	if !a.store.IsLeader() {
		if r.ID != from {
			return nil, raftstore.ErrNotLeader // one hop
		}
		return done, a.callLeader(ctx, methodRekey, r, nil)
	}
	if len(r.New) != ed25519.PublicKeySize {
		return nil, invalid("new: 32 bytes")
	}
	if m, ok := a.machine.Member(r.ID); ok && m.Key == state.PeerKeyDigest(r.New) && string(m.Recipient) == string(r.Recipient) {
		return done, nil // its answer was lost
	}
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindRekeyMember, system()),
		compose: func(int64) (any, error) {
			key, under, err := a.keys.sealer()
			if err != nil {
				return nil, err
			}
			cluster := a.machine.Cluster()
			r.Wrap, err = wrapFor(cluster.ID, cluster.Incarnation, under, state.PurposeWrap+r.ID, r.Recipient, key)
			return r, err
		},
	})
	return done, err
}

// rekeying is a change of a member's key, as both keys sign it.
func rekeying(cluster, node string, old, next *seal.Identity) (*state.RekeyMember, error) {
	oldKey, err := old.PeerKey()
	if err != nil {
		return nil, err
	}
	nextKey, err := next.PeerKey()
	if err != nil {
		return nil, err
	}
	b := &state.RekeyMember{
		ID: node, Old: oldKey.Public().(ed25519.PublicKey), New: nextKey.Public().(ed25519.PublicKey), Recipient: next.Recipient().Bytes(),
	}
	statement := b.Statement(cluster)
	b.OldProof, b.NewProof = ed25519.Sign(oldKey, statement), ed25519.Sign(nextKey, statement)
	return b, nil
}

// changeMemberKey has the other nodes know a stopped member by another key. A new
// key file that is there already is one whose answer was lost.
func changeMemberKey(ctx context.Context, cfg, made Config) (err error) {
	lock, err := raftstore.Lock(filepath.Join(cfg.Dir, "raft"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	file, err := readNodeFile(cfg.Dir)
	if err != nil {
		return err
	}
	old, err := openIdentity(cfg, false)
	if err != nil {
		return err
	}
	defer old.Destroy()
	next, err := openIdentity(made, true)
	if err != nil {
		return err
	}
	defer next.Destroy()
	change, err := rekeying(file.Cluster, cfg.NodeID, old, next)
	if err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, askPeersFor)
	defer cancel()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		err = askPeers(ctx, cfg, old, methodRekey, change, new(struct{}))
		// The change cuts the connection that it came by, maybe before the answer
		// is through; and it was perhaps made before, as not every peer knows yet.
		unsure := errors.Is(err, raftstore.ErrIndeterminate) || errors.Is(err, raftstore.ErrRefused)
		if unsure && askPeers(ctx, cfg, next, methodRekey, change, new(struct{})) == nil {
			err = nil
		}
		if err == nil || !unsure || deadline.Err() != nil {
			break
		}
		<-again.C
	}
	if err != nil {
		return fmt.Errorf("having the other nodes know the new key (%s stays for the next try): %w", made.KeyFile, err)
	}
	return file.repin(cfg.Dir, next)
}

// repin writes down that the node has another key.
func (f *nodeFile) repin(dir string, identity *seal.Identity) error {
	key, err := identity.PeerKey()
	if err != nil {
		return err
	}
	digest := state.PeerKeyDigest(key.Public().(ed25519.PublicKey))
	f.Key, f.Certificate, f.CA = digest[:], nil, nil // a certificate of the old one
	f.Incarnation = 0                                // some may know the new one only later
	return f.write(dir)
}

// own makes sure that a key is the node's, which is written down when there is
// none yet.
func (f *nodeFile) own(cfg Config, identity *seal.Identity) error {
	key, err := identity.PeerKey()
	if err != nil {
		return err
	}
	digest := state.PeerKeyDigest(key.Public().(ed25519.PublicKey))
	switch {
	case len(f.Key) == 0:
		f.Key = digest[:]
		return f.write(cfg.Dir)
	case string(f.Key) != string(digest[:]):
		return fmt.Errorf("%w: %s is not the key of the node in %s", ErrKeyFile, cfg.KeyFile, cfg.Dir)
	}
	return nil
}
