// Command clusterbench measures a cluster of three nodes on this machine, each a
// process of its own with its own fsync, against what was promised, and prints
// one table. A timing that misses its target is printed as missed; where the
// promise is exactness, a miss fails the run.
//
// It needs a built writ, and root with iproute2 for a leader whose network goes
// dark. The load comes from this process, on the same processors.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

func main() {
	// What makes the load, and the yardstick, should not spend its time collecting.
	defer runtime.KeepAlive(make([]byte, 64<<20))
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "clusterbench %s: %v\n", os.Args[1], err)
				os.Exit(1)
			}
			return
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "clusterbench:", err)
		os.Exit(1)
	}
}

// roles are what this program is when it starts itself.
var roles = map[string]func(args []string) error{
	"bare":  bareMain,
	"https": httpsMain,
	"seed":  seedMain,
}

// bench is one run and its flags.
type bench struct {
	writ      string        // the binary that the nodes run
	dir       string        // of everything that is written
	each      time.Duration // of one measurement of throughput
	failovers int           // of each kind
	fleet     int           // guards of the larger of the two fleets
	revokes   int           // measured with each fleet
	budget    uint64        // calls that two guards spend
	live      int           // tokens, and revocations
	watch     time.Duration // that the idle cluster is watched for

	table table
	log   io.Writer // how it goes
	nodes io.Writer // what the nodes log
}

// sections are the parts of a run, each on a cluster of its own.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"issue", (*bench).issue},
	{"budget", (*bench).budgets},
	{"revoke", (*bench).revocations},
	{"failover", (*bench).failover},
	{"live", (*bench).liveRecords},
}

func run(ctx context.Context, args []string, w io.Writer) error {
	b := &bench{log: os.Stderr, nodes: io.Discard}
	only, verbose := "", false
	f := flag.NewFlagSet("clusterbench", flag.ContinueOnError)
	f.StringVar(&b.writ, "writ", "bin/writ", "the `binary` that the nodes run")
	f.StringVar(&b.dir, "dir", "", "put the nodes' data in a directory of its own in this `directory` (default: the temporary one)")
	f.StringVar(&only, "only", "", "run the sections that this `expression` matches: issue, budget, revoke, failover, live")
	f.DurationVar(&b.each, "each", 8*time.Second, "`time` for one measurement of throughput")
	f.IntVar(&b.failovers, "failovers", 200, "how `many` of each kind")
	f.IntVar(&b.fleet, "guards", 1000, "how `many` guards the larger fleet has, the idle cluster's replicas")
	f.IntVar(&b.revokes, "revocations", 200, "how `many` are measured with each fleet")
	f.Uint64Var(&b.budget, "budget", 1_000_000, "how `many` calls two guards spend")
	f.IntVar(&b.live, "live", 1_000_000, "how `many` tokens, and revocations, are live")
	f.DurationVar(&b.watch, "idle", 20*time.Second, "how `long` the idle cluster is watched")
	f.BoolVar(&verbose, "v", false, "show what the nodes log")
	if err := f.Parse(args); err != nil {
		return err
	}
	if verbose {
		b.nodes = os.Stderr
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(b.dir, "writ-clusterbench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	var failed []error // a part that could not be measured does not stop the others
	for _, s := range sections {
		if !wanted.MatchString(s.name) || ctx.Err() != nil {
			continue
		}
		began := time.Now()
		if err := s.run(b, ctx); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
		}
		b.say("%s took %s", s.name, time.Since(began).Round(100*time.Millisecond))
	}
	return errors.Join(b.table.print(w), b.table.verdict(), errors.Join(failed...), ctx.Err())
}

// say tells whoever waits how it goes.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, "%s  "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}
