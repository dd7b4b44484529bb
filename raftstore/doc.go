// Package raftstore replicates a deterministic state machine with
// [github.com/hashicorp/raft], on a log and a stable store of its own.
//
// Implement [StateMachine], [Open] a [Store] on a directory, wait for
// [Store.WaitLeader], then [Store.Propose] commands. A command whose Propose
// returned without an error is on the disk of a majority and applied here. A
// read that must see it on any node asks [Store.ReadIndex] first.
//
// # Several nodes
//
// The first node is opened with [Config.Bootstrap], every other with
// [Config.Join] and then added by the leader: [Store.AddNonvoter], and
// [Store.Promote] once it has caught up. [NewTransport] connects them, by TLS 1.3
// with keys that [TransportConfig.Authorize] knows, and carries calls of yours
// beside Raft's messages (forwarding to the leader, say). Any node answers
// [Store.ReadIndex]; only the leader takes proposals. A change that the voters
// who answer could not carry is refused with [ErrQuorum]. An id is one node's
// for good: who was removed ends with [ErrRemoved] and does not come back, also
// one that was away then, with [TransportConfig.Removed].
//
// With the timeouts of [ProfileLAN] a cluster goes on about half a second after
// its leader died or went dark; Close hands leadership over, in milliseconds.
//
// [Store.Export] makes a snapshot to keep elsewhere, [Restore] a new cluster out
// of one. When most voters are gone for good, [Recover] lets the rest go on.
//
// # What is on disk
//
// The directory holds raft.db (the log, the current term and the vote, one
// bbolt file), snapshots/ and LOCK. Every record in raft.db carries a CRC-32C,
// since bbolt has checksums on its two meta pages only; every snapshot carries
// a SHA-256. Open reads and checks all of it before anything runs. Where
// something does not add up, Open refuses with [ErrCorrupt] and names the file;
// nothing is ever truncated on suspicion. Repair means to remove the node from
// the cluster and let it join again under a new id.
//
// What it takes is bounded: raft.db by [Config.SnapshotBytes] and TrailingBytes
// together and what comes while a snapshot is written, snapshots/ by one
// snapshot and what is being written, the node's own and one that comes in. They
// hold the state compressed.
//
// The state machine is not on this list. It may keep its state where it likes,
// without syncing, because everything it holds can be rebuilt from the newest
// snapshot and the log.
//
// # When things go wrong
//
// A full disk is an ordinary condition: proposals are refused with
// [ErrDiskFull], nothing that was acknowledged is lost, and the node goes on by
// itself once there is space. What a process cannot recover from (a failed
// fsync, a record that no longer matches its checksum, a disk that does not
// answer within [Config.DiskStall], a state machine that panics) ends it,
// through [Config.OnFatal]. After a failed fsync in particular nobody knows
// what is on the disk, and a second fsync that succeeds proves nothing; only a
// fresh start that reads the file again does.
//
// [ErrIndeterminate] means what it says: the command may be applied, now or
// later. Every command that counts needs a request id that makes a retry
// harmless.
//
// # What it does not promise
//
// Commands are not secret: the log holds them as they were proposed, so seal
// what must not be readable in a stolen directory. The checksums find accidents
// and not a forger. Time plays no part: nothing here puts a timestamp into a
// command, and a state machine must not read a clock. A Store does not
// authenticate its peers, that is the business of [Config.Transport]. And a
// disk that acknowledges a sync without writing can lose a vote without anyone
// noticing.
package raftstore
