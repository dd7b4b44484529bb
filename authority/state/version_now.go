//go:build !writ_next

package state

// next is 1 in the program that stands in for the next version in the test of a
// rolling upgrade: it says that it knows one version more, and does nothing else
// otherwise.
const next = 0
