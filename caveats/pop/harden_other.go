//go:build !linux

package pop

import "errors"

// HardenProcess keeps the memory of this process from others on Linux, and
// returns errors.ErrUnsupported here.
func HardenProcess() error { return errors.ErrUnsupported }
