package authority

import (
	"path/filepath"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/raftstore"
)

// KnownPeers is what the node in dir has written down of its own key, as peers pin
// it, and of the other nodes: whom it looks for when it starts, by which key. It
// opens nothing; nil for a node that is alone.
func KnownPeers(dir string) (own []byte, peers []api.ClusterPeer, err error) {
	file, err := readNodeFile(dir)
	if file == nil || err != nil {
		return nil, nil, err
	}
	return file.Key, file.Peers, nil
}

// CheckRemoved returns raftstore.ErrRemoved if the node in dir knows that its
// cluster has removed it. It opens nothing.
func CheckRemoved(dir string) error { return raftstore.CheckRemoved(filepath.Join(dir, "raft")) }
