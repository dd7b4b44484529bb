package api

import "time"

// Headers of answers.
const (
	// HeaderNode names the node that answered; HeaderLeader the one that made
	// the change, when a follower passed the call on.
	HeaderNode   = "Writ-Node"
	HeaderLeader = "Writ-Leader"
	// HeaderAge says how fresh what was read is: how many milliseconds ago the
	// quorum read began that last vouched for the node's state.
	HeaderAge = "Writ-Age-Ms"
)

// ClusterStatus is the cluster as the node that answers sees it.
type ClusterStatus struct {
	Cluster     string       `json:"cluster"`
	Incarnation uint64       `json:"incarnation"`
	Version     uint64       `json:"version"`          // committed; what every member is known to know
	Node        string       `json:"node"`             // that answers
	Leader      string       `json:"leader,omitempty"` // as far as known
	Term        uint64       `json:"term"`
	Nodes       []NodeStatus `json:"nodes"`
}

// NodeStatus is one node of the cluster.
type NodeStatus struct {
	Node        string    `json:"node"`
	State       string    `json:"state"` // active, leaving or removed
	Voter       bool      `json:"voter"` // has a vote now
	Wanted      bool      `json:"wanted_voter"`
	Leader      bool      `json:"leader"`
	Raft        string    `json:"raft"` // host:port for peers
	API         string    `json:"api,omitempty"`
	Joined      time.Time `json:"joined"`
	Answers     bool      `json:"answers"`                // just now
	AwaySeconds int64     `json:"away_seconds,omitempty"` // for which it has not answered; the leader knows, for as long as it has led
	Lag         uint64    `json:"lag"`                    // log entries that it has yet to apply
	RoundUs     int64     `json:"round_us"`               // round trip, microseconds
	SkewMs      int64     `json:"skew_ms"`                // its clock ahead of the quorum's median; the leader knows
	Version     uint64    `json:"version,omitempty"`      // that the node knows; the leader knows
	DiskFull    bool      `json:"disk_full,omitempty"`
	Error       string    `json:"error,omitempty"` // why it does not answer
}

// CleanUpRequest asks that nodes be removed for good that have been away.
type CleanUpRequest struct {
	AwaySeconds int64 `json:"away_seconds"` // for at least so long, as far as the leader knows; at most a year
}

// CleanUpResponse says which nodes went.
type CleanUpResponse struct {
	Removed []string `json:"removed"`
}

// ClusterTokenRequest asks for a single-use join token.
type ClusterTokenRequest struct {
	Replica    bool  `json:"replica,omitempty"`     // the node is to be a read replica, without a vote
	TTLSeconds int64 `json:"ttl_seconds,omitempty"` // 0: an hour; at most 7 days
}

// ClusterTokenResponse carries the join token, shown once, and what the new
// node must know to be sure whom it joins.
type ClusterTokenResponse struct {
	Token         string    `json:"token"`
	CAFingerprint string    `json:"ca_fingerprint"` // SHA-256, hex
	Expires       time.Time `json:"expires"`
}

// ClusterJoinRequest asks for a place in the cluster.
type ClusterJoinRequest struct {
	Token     string `json:"token"`
	Node      string `json:"node"`       // its name, for good
	PublicKey []byte `json:"public_key"` // Ed25519, 32 bytes: what it proves to peers
	Proof     []byte `json:"proof"`      // signature by that key, of what JoinStatement says
	Recipient []byte `json:"recipient"`  // X25519, 32 bytes: whom the cluster key is wrapped for
	Raft      string `json:"raft"`       // host:port, where peers reach it
	API       string `json:"api,omitempty"`
}

// JoinStatement is what the new node signs, so that nobody joins with a key
// that is another's. The token is in it, and thereby the cluster and the occasion.
func (r *ClusterJoinRequest) JoinStatement() []byte {
	b := []byte("writ/v1/join")
	for _, field := range [][]byte{[]byte(r.Token), []byte(r.Node), r.PublicKey, r.Recipient, []byte(r.Raft), []byte(r.API)} {
		b = append(b, byte(len(field)>>8), byte(len(field)))
		b = append(b, field...)
	}
	return b
}

// ClusterJoinResponse is what a new node needs to meet its peers.
type ClusterJoinResponse struct {
	Cluster     string        `json:"cluster"`
	Certificate []byte        `json:"certificate"` // DER, for peers
	CA          []byte        `json:"ca"`          // DER, of the cluster's CA
	Peers       []ClusterPeer `json:"peers"`
}

// ClusterPeer is a node and the key that it proves.
type ClusterPeer struct {
	Node string `json:"node"`
	Key  []byte `json:"key"` // SHA-256 of its SPKI
	Raft string `json:"raft"`
}
