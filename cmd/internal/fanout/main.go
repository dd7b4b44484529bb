// Command fanout simulates how revocations fan out. It runs voters and read
// replicas, each a process of its own with the real authority and the real server,
// opens thousands of feeds to the replicas over TLS on loopback, and measures what
// they cost: memory, processor, bytes, and how long it is until the last verifier is
// told. Then it kills a replica, and watches everyone who was there come back
// elsewhere. From that it reckons what so many verifiers take as no single machine holds.
//
// The verifiers are in this process, and on the same processors: they read the lines
// and answer for their freshness as replica.Replica does, and are not that. A few
// whole ones are beside them in the storm.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == nodeRole {
		if err := nodeMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "fanout node:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fanout:", err)
		os.Exit(1)
	}
}

// simulation is one run and its flags.
type simulation struct {
	sizes     []int         // feeds, in all
	voters    int           // of the cluster
	replicas  int           // read replicas: the feeds are at these
	bound     time.Duration // 0: as short as pingsHere allows, 2 s at least
	watch     time.Duration // for each measurement
	rate      int           // revocations a second
	plain     int           // feeds without TLS
	verifiers int           // that are reckoned for
	profiles  string        // directory for the replicas' processor profiles; "": none

	dir string
	log io.Writer
}

func run(ctx context.Context, args []string, w, log io.Writer) (err error) {
	s := &simulation{log: log}
	sizes := ""
	f := flag.NewFlagSet("fanout", flag.ContinueOnError)
	f.SetOutput(log)
	f.StringVar(&sizes, "feeds", "1000,5000,10000,19000", "how `many` feeds, in all; each size on a cluster of its own, and the storm with the last")
	f.IntVar(&s.voters, "voters", 3, "how `many` voters")
	f.IntVar(&s.replicas, "replicas", 3, "how `many` read replicas, where the feeds are")
	f.DurationVar(&s.bound, "bound", 0, "the staleness `bound` (default: 2s, and longer where this machine could not keep so many fresh)")
	f.DurationVar(&s.watch, "watch", 10*time.Second, "`time` for each measurement")
	f.IntVar(&s.rate, "rate", 10, "revocations a `second`")
	f.IntVar(&s.plain, "plain", 1000, "how `many` feeds without TLS, for comparison; 0: none")
	f.IntVar(&s.verifiers, "verifiers", 100_000, "reckon for so `many`")
	f.StringVar(&s.profiles, "profiles", "", "write the replicas' processor profiles to this `directory`")
	if err := f.Parse(args); err != nil {
		return err
	}
	for size := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < 2 {
			return fmt.Errorf("-feeds: %q is no number of at least 2", size)
		}
		s.sizes = append(s.sizes, n)
	}
	if s.voters < 1 || s.replicas < 1 || s.rate < 1 || s.watch <= 0 {
		return errors.New("-voters, -replicas, -rate and -watch are at least 1")
	}
	if s.dir, err = os.MkdirTemp("", "writ-fanout-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	var r report
	if s.plain > 0 {
		s.say("%d feeds without TLS", s.plain)
		if r.plain, err = s.measure(ctx, s.plain, true, false); err != nil {
			return err
		}
	}
	for i, size := range s.sizes {
		s.say("%d feeds", size)
		m, err := s.measure(ctx, size, false, i == len(s.sizes)-1)
		if err != nil {
			return err
		}
		r.sizes = append(r.sizes, m)
	}
	return r.print(w, s)
}

// say tells whoever waits how it goes.
func (s *simulation) say(format string, args ...any) {
	fmt.Fprintf(s.log, "%s  "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}

// pingsHere is how many pings a second leave a machine of two processors, with
// everybody on it, room for what is measured.
const pingsHere = 4000

// pingsOf is how many pings a verifier sends within its bound, by both feeds.
const pingsOf = pingsPerBound * 3 / 2

func (s *simulation) boundFor(feeds int) time.Duration {
	if s.bound > 0 {
		return s.bound
	}
	least := time.Duration(feeds/2) * pingsOf * time.Second / pingsHere
	return max(2*time.Second, least.Round(time.Second))
}

// cluster starts one for so many feeds.
func (s *simulation) cluster(ctx context.Context, feeds int, plain bool) (*cluster, error) {
	name := fmt.Sprintf("%d", feeds)
	if plain {
		name = "plain"
	}
	// Room for all at one node, should the others be gone.
	o := order{Bound: s.boundFor(feeds), Feeds: feeds + 256, Plain: plain}
	return newCluster(ctx, filepath.Join(s.dir, name), s.voters, s.replicas, o)
}
