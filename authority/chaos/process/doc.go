// Package process is the fault campaign's second rig: the writ binary itself, as
// three to five processes, each in a network namespace of its own, with real
// clients and guards in others. While they work, nodes are killed, frozen, cut off,
// put off their clocks, given slow, hanging, failing and full disks, damaged and
// replaced, added and removed; then what everyone was told is checked (package
// check), in which nothing may be vacuous.
//
// The package holds tests only. They need root (package netns), and build writ with
// failpoints (cmd/writ/failpoints.go). A seed reproduces the
// schedule of the faults, not what processor and network make of it.
//
//	rig_test.go        the nodes: started, killed, joined, asked
//	proxy_test.go      links that are slow, lossy, or hold things up
//	worker_test.go     the processes of clients and guards: this test binary, again
//	load_test.go       what a client does
//	guard_test.go      what a guard does
//	faults_test.go     the schedule, and the faults
//	damage_test.go     files that are damaged, and what becomes of the node
//	campaign_test.go   the campaign and its checks
package process
