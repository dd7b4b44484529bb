package authority

import (
	"path/filepath"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/raftstore"
)

// KnownPeers are the other nodes that the node in dir has written down, with
// their addresses for peers: whom it looks for when it starts. It opens nothing;
// nil for a node that is alone.
func KnownPeers(dir string) ([]api.ClusterPeer, error) {
	file, err := readNodeFile(dir)
	if file == nil || err != nil {
		return nil, err
	}
	return file.Peers, nil
}

// CheckRemoved returns raftstore.ErrRemoved if the node in dir knows that its
// cluster has removed it. It opens nothing.
func CheckRemoved(dir string) error { return raftstore.CheckRemoved(filepath.Join(dir, "raft")) }
