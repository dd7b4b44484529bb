//go:build !linux

package state

func unmapPages(start, size uintptr) {}
