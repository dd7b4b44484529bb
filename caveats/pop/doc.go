// Package pop has callers prove that they hold the key that a holder caveat
// names, so that a stolen token is worthless.
package pop
