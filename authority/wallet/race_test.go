//go:build race

package wallet_test

// unfinished is how many challenges are begun: under the race detector each
// takes ten times as long.
const unfinished = 500
