//go:build !failpoints

package main

import "github.com/writ-dev/writ/authority"

// sabotage is for a build with the tag failpoints.
func (n *node) sabotage(*authority.Config) error { return nil }
