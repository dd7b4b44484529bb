package authority

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
)

// NodeKey is a node's key file, and what protects it: at most one of Passphrase
// and Protector; with none it is left to the file's mode.
type NodeKey struct {
	File       string
	Passphrase func() ([]byte, error)
	Protector  seal.Protector
}

func (cfg Config) nodeKey() NodeKey { return NodeKey{cfg.KeyFile, cfg.Passphrase, cfg.Protector} }

// read reads the file however it is protected, if what it takes is there.
func (k NodeKey) read() (*seal.Identity, error) {
	var others []seal.Protector
	if k.Protector != nil {
		others = append(others, k.Protector)
	}
	id, err := seal.ReadIdentityFile(k.File, k.Passphrase, others...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	return id, nil
}

// write makes the file, which must not be there.
func (k NodeKey) write(id *seal.Identity) (err error) {
	if k.Protector != nil {
		err = seal.WriteIdentity(k.File, id, k.Protector)
	} else {
		var passphrase []byte
		if k.Passphrase != nil {
			if passphrase, err = k.Passphrase(); err != nil {
				return fmt.Errorf("%w: reading the passphrase: %w", ErrKeyFile, err)
			}
		}
		err = seal.WriteIdentityFile(k.File, id, passphrase)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	return nil
}

// ChangeNodeKey gives a stopped node another key, in a new file; the old one opens
// nothing of the node from then on. Where other nodes know it by its key, the
// leader has them know the new one, with which the old key agrees: a majority of
// the voters must be up. For a node that is alone, recovery opens the cluster key
// where cfg.KeyFile is lost; nil: cfg.KeyFile does. Errors: ErrConfig, ErrKeyFile,
// raftstore's, and what the leader answers.
func ChangeNodeKey(ctx context.Context, cfg Config, recovery *seal.Identity, next NodeKey) (err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := outside(next.File, cfg.Dir); err != nil {
		return err
	}
	made := cfg
	made.KeyFile, made.Passphrase, made.Protector = next.File, next.Passphrase, next.Protector
	switch file, err := readNodeFile(cfg.Dir); {
	case err != nil:
		return err
	case file != nil && recovery != nil:
		return fmt.Errorf("%w: by its key alone the other nodes know the node: have another join, and remove this one", ErrConfig)
	case file != nil && len(file.Peers) > 0:
		return changeMemberKey(ctx, cfg, made)
	}
	opener := recovery
	if opener == nil {
		if opener, err = openIdentity(cfg, false); err != nil {
			return err
		}
		defer opener.Destroy()
	}
	o, err := openAlone(ctx, cfg, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	key, err := unwrapFor(o.machine, opener)
	if err != nil {
		return err
	}
	defer key.Destroy()
	if there, err := exists(next.File); there || err != nil {
		return errors.Join(err, fmt.Errorf("%w: %s exists", ErrKeyFile, next.File))
	}
	identity, err := openIdentity(made, true)
	if err != nil {
		return err
	}
	defer identity.Destroy()
	return o.changeKey(ctx, cfg, key, opener, identity)
}

// changeKey wraps the cluster key for another identity of the node, and pins that
// if peers may come to know the node.
func (o *alone) changeKey(ctx context.Context, cfg Config, key *seal.ClusterKey, old, next *seal.Identity) error {
	cluster := o.machine.Cluster()
	k, err := wrapFor(cluster.ID, cluster.Incarnation, cluster.Key, state.PurposeWrap+cfg.NodeID, next.Recipient().Bytes(), key)
	if err != nil {
		return err
	}
	c := command{kind: state.KindSetKey, stamp: max(cfg.Clock().UnixMilli(), o.machine.Stamp(), 1), body: &state.SetKey{Key: k}}
	file, err := readNodeFile(cfg.Dir)
	if err != nil {
		return err
	}
	if file != nil {
		change, err := rekeying(cluster.ID, cfg.NodeID, old, next)
		if err != nil {
			return err
		}
		change.Wrap = k
		c.kind, c.body = state.KindRekeyMember, change
	}
	if err := o.do(ctx, c); err != nil {
		return err
	}
	if file != nil {
		if err := file.repin(cfg.Dir, next); err != nil {
			return err
		}
	}
	// So that what the log still holds of the old wrapping goes sooner.
	return o.store.Snapshot(ctx)
}

// ReprotectNodeKey has a key file protected otherwise, by what now says; its key
// stays. The file is replaced whole, or not at all.
func ReprotectNodeKey(was, now NodeKey) error {
	identity, err := was.read()
	if err != nil {
		return err
	}
	defer identity.Destroy()
	now.File = was.File + ".new"
	if err := os.Remove(now.File); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := now.write(identity); err != nil {
		return err
	}
	// Read before it takes the old one's place.
	again, err := now.read()
	if err != nil {
		return errors.Join(err, os.Remove(now.File))
	}
	again.Destroy()
	if err := os.Rename(now.File, was.File); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(was.File))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
