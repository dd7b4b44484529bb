//go:build !race

package wallet_test

// unfinished is how many challenges are begun.
const unfinished = 10_000
