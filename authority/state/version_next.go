//go:build writ_next

package state

const next = 1
