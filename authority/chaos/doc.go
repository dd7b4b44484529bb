// Package chaos is the fault campaign's simulation. Three whole nodes (state, log,
// audit, server), real clients and guards with real verifiers do their work in a
// bubble of testing/synctest: the network is simnet, the clocks are the bubble's,
// put off where a fault wants it, the disks break by raftstoretest.Disk and lose
// what was not synced, and all randomness comes from the seed. A simulated minute
// takes some seconds, most of them real work. What everyone was told is judged by
// package check.
//
// A seed chooses six faults of all kinds, so that seeds that follow on each other
// go through all of them: kills, partitions (also one way, replies only, the leader
// dark, no quorum), nodes that freeze, late and lossy links, slow, hung, failing and
// full disks, a power failure, also in the middle of a write to Raft's log, torn tails,
// a flipped bit, clocks that jump beyond the longest life of a token with a failover
// after, rolling restarts, replaced nodes, votes taken and given back, guards that
// crash, are cut off, or hear late. A quarter of
// all calls is repeated, some seconds late. A fault that met nobody, or for which there
// was no occasion, does not count. Last comes an end: under load, the cluster is lost and
// restored from an older backup, with or without an epoch that goes on, and works again; or
// it is without a quorum until all certificates have expired.
//
// The package holds tests only. TestSim runs seeds in its own process, under the race
// detector. All others (TestReproduced, TestAllFaults, TestPlanted, which has the
// campaign find bugs that are put into copies of the source, and make chaos) run each
// seed in a process of its own, built on a Go runtime without chance (fixedRuntime):
// there, one seed is one run, down to every byte that is sent, however busy the
// machine is. Another build, or another processor, may be another run. That runtime is
// made of one version of Go (toolchain), which the go command fetches where it is another.
//
// To see what a seed does:
//
//	go test -run TestSim -v ./authority/chaos -chaos.seed 7 -chaos.faults 6
//
// CHAOS_LOG=1 adds the nodes' logs.
package chaos
