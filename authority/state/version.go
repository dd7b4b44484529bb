package state

import "errors"

// Version is the newest cluster version that this program knows. Behavior that
// older nodes would not share waits until the cluster's committed version
// (Machine.Version) has come to it: commands of new kinds, and a snapshot's
// format too, since a node that lags can be sent one in the middle of an upgrade.
//
//	1: members, join tokens, and what they are about
//	2: SetKey and Reseal are remembered by their request ids, and a Return with
//	   the token of its lease
const Version uint64 = 2 + next

// ErrVersion is what a node stops with when a later version of the program has
// written what it is to read: that version can.
var ErrVersion = errors.New("state: written by a later version of writ")
