package raftstore

import (
	"fmt"
	"time"
)

// Profile is a set of timeouts that go together.
type Profile string

const (
	// ProfileLAN is for nodes with a round trip of up to about 5 ms: failover
	// takes about half a second. The default.
	ProfileLAN Profile = "lan"

	// ProfileWAN is for nodes with a round trip of up to about 150 ms: failover
	// takes about three seconds.
	ProfileWAN Profile = "wan"
)

// timing is what a Profile stands for.
type timing struct {
	heartbeat, election, lease, commit time.Duration // of Raft
	dial, io                           time.Duration // of Transport
}

// timing returns the numbers, or ErrConfig.
func (p Profile) timing() (timing, error) {
	switch p {
	case "", ProfileLAN:
		return timing{
			heartbeat: DefaultHeartbeatTimeout, election: DefaultElectionTimeout, lease: DefaultLeaderLease,
			// How long an idle leader waits before it tells followers what is
			// committed. With the library's 50 ms a follower applied 69 ms after
			// the leader had acknowledged, with 5 ms 8 ms; 1 ms costs a fifth of
			// a core.
			commit: 5 * time.Millisecond,
			dial:   time.Second, io: 2 * time.Second,
		}, nil
	case ProfileWAN:
		return timing{
			heartbeat: 1500 * time.Millisecond, election: 1500 * time.Millisecond, lease: 750 * time.Millisecond,
			commit: 25 * time.Millisecond,
			dial:   3 * time.Second, io: 10 * time.Second,
		}, nil
	default:
		return timing{}, fmt.Errorf("%w: no profile %q (there are %q and %q)", ErrConfig, p, ProfileLAN, ProfileWAN)
	}
}
