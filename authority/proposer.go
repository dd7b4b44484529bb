package authority

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// lane is what a change waits in for the proposer. Revocations, then leases, go
// before issues, and only issues are shed.
type lane int

const (
	laneRevoke lane = iota // and everything an operator does
	laneLease
	laneIssue
	lanes
)

// laneSize is how many changes wait in one lane: a few batches' worth.
const laneSize = 4 * maxBatch

const (
	maxBatch      = 256       // changes that share a log entry
	maxBatchBytes = 512 << 10 // half of what raftstore takes
	maxStampTries = 3
	gatherLooks   = 16 // at who has come, in the time that a batch takes, which counts as at most
	maxGather     = 16 * time.Millisecond
)

// change is one command on its way: stamped and composed by the proposer alone.
type change struct {
	lane    lane // set by propose
	header  state.Header
	cutoff  bool // whatever comes after it needs a later stamp
	compose func(stamp int64) (body any, err error)

	// claimed is set by whoever comes first: the proposer, or the caller who
	// gives up, in which case nothing is done.
	claimed atomic.Bool
	tries   int
	done    chan outcome
}

type outcome struct {
	index uint64
	value any
	err   error
}

// proposer is the one that proposes: it gives every change its stamp, in the
// order in which they enter the log, and has changes that wait at the same
// time share a log entry and its fsync. A batch is composed once the one before
// has been answered, and not before: what is composed early leaves without those
// who come while it waits, and an entry takes a node nearly as much work with
// ten changes as with fifty.
type proposer struct {
	store   *raftstore.Store
	machine *state.Machine
	clock   func() time.Time

	free func() (uint64, error) // bytes free on the disk
	// may says why nothing may be proposed here with a clock that says now, or
	// nil.
	may func(now time.Time) error

	queues [lanes]chan *change
	stop   chan struct{}
	idle   sync.WaitGroup

	// The proposing goroutine's:
	least    int64         // the least stamp of the next change
	took     time.Duration // the last batch
	expected int           // changes soon after it: those that it answered, and those that came meanwhile

	proposals, entries, refusals atomic.Uint64
}

type composed struct {
	*change
	command []byte
}

func newProposer(store *raftstore.Store, machine *state.Machine, clock func() time.Time, free func() (uint64, error), may func(now time.Time) error) *proposer {
	p := &proposer{
		store: store, machine: machine, clock: clock, free: free, may: may,
		stop: make(chan struct{}),
	}
	for i := range p.queues {
		p.queues[i] = make(chan *change, laneSize)
	}
	p.idle.Go(p.proposeAll)
	return p
}

// close stops the proposer; what waits is refused.
func (p *proposer) close() {
	close(p.stop)
	p.idle.Wait()
	for _, q := range p.queues {
		for {
			select {
			case c := <-q:
				c.finish(outcome{err: errClosed})
				continue
			default:
			}
			break
		}
	}
}

var errClosed = &Error{Code: capability.CodeUnavailable, Detail: "the node is shutting down"}

func (c *change) finish(o outcome) { c.done <- o }

// propose has a change made and returns what it came to once it is on the
// disks of a majority and applied here.
func (p *proposer) propose(ctx context.Context, l lane, c *change) (uint64, any, error) {
	c.lane, c.done = l, make(chan outcome, 2)
	if l == laneIssue {
		select {
		case p.queues[l] <- c:
		default:
			return 0, nil, &Error{Code: api.CodeOverloaded, Detail: "too many tokens are being issued", Hint: "try again in a second"}
		}
	} else {
		select {
		case p.queues[l] <- c:
		case <-ctx.Done():
			return 0, nil, &Error{Code: api.CodeOverloaded, Detail: "gave up waiting in line; nothing was done", Err: ctx.Err()}
		case <-p.stop:
			return 0, nil, errClosed
		}
	}
	select {
	case o := <-c.done:
		return o.index, o.value, o.err
	case <-p.stop:
		if c.claimed.CompareAndSwap(false, true) {
			return 0, nil, errClosed
		}
		o := <-c.done
		return o.index, o.value, o.err
	case <-ctx.Done():
		if c.claimed.CompareAndSwap(false, true) {
			return 0, nil, &Error{Code: api.CodeOverloaded, Detail: "gave up waiting in line; nothing was done", Err: ctx.Err()}
		}
		return 0, nil, &Error{
			Code: api.CodeIndeterminate, Detail: "gave up waiting; the change may still be made",
			Hint: "retry with the same request id", Err: ctx.Err(),
		}
	}
}

// next waits for a change, those of the first lanes first.
func (p *proposer) next() *change {
	for _, q := range p.queues {
		select {
		case c := <-q:
			return c
		default:
		}
	}
	select {
	case c := <-p.queues[laneRevoke]:
		return c
	case c := <-p.queues[laneLease]:
		return c
	case c := <-p.queues[laneIssue]:
		return c
	case <-p.stop:
		return nil
	}
}

// waiting takes a change that is already waiting, or nil.
func (p *proposer) waiting() *change {
	for _, q := range p.queues {
		select {
		case c := <-q:
			return c
		default:
		}
	}
	return nil
}

func (p *proposer) proposeAll() {
	for {
		c := p.next()
		if c == nil {
			return
		}
		p.gather(c)
		batch := p.compose(c)
		if len(batch) == 0 {
			continue
		}
		began := time.Now()
		p.proposeBatch(batch)
		p.took, p.expected = time.Since(began), len(batch)+len(p.queues[laneIssue])
	}
}

// gather waits a little for those who were answered with the last batch and come
// again: to leave half of them behind is to have two batches go for every one.
// Nobody waits for more than the last batch took, nor for half of that with nobody
// coming, nor with a revocation or a lease; and who comes alone does not wait.
func (p *proposer) gather(first *change) {
	look := min(p.took, maxGather) / gatherLooks
	waiting, quiet := 0, 0
	for range gatherLooks {
		now := len(p.queues[laneIssue])
		if now > waiting {
			waiting, quiet = now, 0
		}
		if first.lane != laneIssue || now+1 >= min(p.expected, maxBatch) || quiet == gatherLooks/2 ||
			len(p.queues[laneRevoke]) != 0 || len(p.queues[laneLease]) != 0 {
			return
		}
		quiet++
		time.Sleep(look)
	}
}

// compose makes a batch of a change and of those that wait behind it.
func (p *proposer) compose(c *change) (batch []*composed) {
	now := p.clock()
	refused := p.may(now)
	if refused == nil {
		p.least = max(p.least, p.machine.Stamp(), now.UnixMilli())
	}
	free := p.space()
	for size := 0; c != nil; c = p.waiting() {
		if b := p.composeOne(c, free, refused); b != nil {
			batch = append(batch, b)
			size += len(b.command)
		}
		if len(batch) == maxBatch || size >= maxBatchBytes {
			break
		}
	}
	return batch
}

// composeOne stamps and encodes a change, unless it is refused, or so many bytes
// free are too few for it; nil if that is the end of it.
func (p *proposer) composeOne(c *change, free uint64, err error) *composed {
	if c.tries == 0 && !c.claimed.CompareAndSwap(false, true) {
		return nil
	}
	c.header.Stamp = p.least
	var body any
	var command []byte
	if err == nil {
		err = enough(free, c.lane)
	}
	if err == nil {
		body, err = c.compose(p.least)
	}
	if err == nil {
		command, err = state.EncodeCommand(c.header, body)
	}
	if err == nil && len(command) > maxBatchBytes {
		err = &Error{Code: api.CodeInvalid, Detail: "the request is too large"}
	}
	if err != nil {
		c.finish(outcome{err: serviceError(err)})
		return nil
	}
	if c.cutoff {
		p.least++
	}
	return &composed{c, command}
}

func (p *proposer) proposeBatch(batch []*composed) {
	commands := make([][]byte, len(batch))
	for i, c := range batch {
		commands[i] = c.command
	}
	entry, err := state.EncodeEntry(commands...)
	var res raftstore.Result
	if err == nil {
		// No caller's context: the batch is everyone's. Raft answers, or the
		// node ends.
		res, err = p.store.Propose(context.Background(), entry)
	}
	p.entries.Add(1)
	p.proposals.Add(uint64(len(batch)))
	if err != nil {
		for _, c := range batch {
			c.finish(outcome{err: serviceError(err)})
		}
		return
	}
	results, ok := res.Value.([]state.Result)
	if !ok || len(results) != len(batch) {
		for _, c := range batch {
			c.finish(outcome{err: &Error{Code: api.CodeInternal, Err: fmt.Errorf("unexpected result %T", res.Value)}})
		}
		return
	}
	for i, c := range batch {
		switch err := results[i].Err; {
		case err == nil:
			c.finish(outcome{index: res.Index, value: results[i].Value})
		case errors.Is(err, state.ErrStamp) && c.tries < maxStampTries:
			p.again(c.change)
		default:
			p.refusals.Add(1)
			c.finish(outcome{index: res.Index, err: serviceError(err)})
		}
	}
}

// again has a change stamped anew, since its stamp was behind the state's.
func (p *proposer) again(c *change) {
	c.tries++
	select {
	case p.queues[laneRevoke] <- c:
	default:
		c.finish(outcome{err: &Error{Code: api.CodeOverloaded, Detail: "too much is waiting; nothing was done"}})
	}
}
