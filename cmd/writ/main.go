// Command writ is the whole of Writ in one binary: the authority's node, and
// what an operator, an agent's host or a security engineer does with tokens.
//
// Each command has a file of its own: an options struct, its flags, and a thin
// RunE. What they share is in app.go (what a process has), output.go (data to
// standard output, talk to standard error), errors.go (messages, hints and
// exit codes) and input.go (tokens from anywhere but the command line).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(mainCode()) }

// mainCode runs the process and returns its exit code.
func mainCode() int {
	// The second signal finds the default handler again and ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	defer stop()
	return newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv).run(ctx, os.Args[1:])
}
