package authority

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/authority/audit"
)

// A node that takes a snapshot of the state from a peer lacks the audit records
// behind it. It fetches them from any peer, and keeps them only if they make
// the tree whose edge the snapshot has.

const (
	fetchBytes   = 1 << 20 // of an answer, and at most one record more
	fetchTimeout = 10 * time.Second
	recordHead   = 8 + 4 // bytes before a record in an answer: Raft index, length; big-endian
)

type recordsRequest struct {
	Origin string `json:"origin"`
	From   int64  `json:"from"`
	To     int64  `json:"to"` // without
}

// answerRecords answers with records as they are, since a log may have hundreds of
// megabytes of them. The answer may end between two of one Raft entry.
func (a *Authority) answerRecords(_ context.Context, _ string, request []byte) ([]byte, error) {
	var r recordsRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	log, err := a.trail.get()
	if err != nil {
		return nil, err
	}
	if log.Origin() != r.Origin {
		return nil, audit.ErrOrigin
	}
	var answer []byte
	for e, err := range log.Records(r.From, r.To) {
		if err != nil {
			return nil, err
		}
		answer = binary.BigEndian.AppendUint64(answer, e.Index)
		answer = binary.BigEndian.AppendUint32(answer, uint32(len(e.Record)))
		answer = append(answer, e.Record...)
		if len(answer) >= fetchBytes {
			break
		}
	}
	return answer, nil
}

// parseRecords reads what answerRecords wrote, of records from number from on.
func parseRecords(b []byte, from int64) (list []audit.Entry, err error) {
	for len(b) > 0 {
		if len(b) < recordHead {
			return nil, errRecords
		}
		index, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
		b = b[recordHead:]
		if n == 0 || n > audit.MaxRecord || int(n) > len(b) {
			return nil, errRecords
		}
		list = append(list, audit.Entry{N: from + int64(len(list)), Index: index, Record: b[:n:n]})
		b = b[n:]
	}
	if len(list) == 0 {
		return nil, errors.New("it has no such records")
	}
	return list, nil
}

var errRecords = errors.New("these are no records of an audit log")

// fetchRecords brings the log up to the edge's size from whichever peer has it.
func (p *peers) fetchRecords(log *audit.Log, edge audit.Edge) error {
	var errs []error
	for node, address := range p.others() {
		err := fetch(log, edge.Size(), func(ctx context.Context, r recordsRequest) ([]byte, error) {
			return p.callAt(ctx, node, address, methodRecords, r)
		})
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("node %q: %w", node, err))
	}
	return fmt.Errorf("fetching audit records: %w", errors.Join(append(errs, audit.ErrBehind)...))
}

// askRecords has a peer answer with records: answerRecords there.
type askRecords func(context.Context, recordsRequest) ([]byte, error)

// fetch brings the log up to size, which is between two Raft entries.
func fetch(log *audit.Log, size int64, ask askRecords) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answers := make(chan fetched) // one is on its way while the one before is appended
	go ask.all(ctx, recordsRequest{Origin: log.Origin(), From: log.Size(), To: size}, answers)
	var b batch
	for a := range answers {
		if a.err != nil {
			return a.err
		}
		for _, e := range a.records {
			if err := b.add(log, e); err != nil {
				return err
			}
		}
	}
	if err := b.append(log); err != nil {
		return err
	}
	return log.Sync()
}

type fetched struct {
	records []audit.Entry
	err     error
}

// all asks for one answer after the other until there are all, or an error.
func (ask askRecords) all(ctx context.Context, r recordsRequest, answers chan<- fetched) {
	defer close(answers)
	for r.From < r.To {
		asking, cancel := context.WithTimeout(ctx, fetchTimeout)
		b, err := ask(asking, r)
		cancel()
		var a fetched
		if a.err = err; err == nil {
			a.records, a.err = parseRecords(b, r.From)
		}
		if int64(len(a.records)) > r.To-r.From {
			a = fetched{err: errRecords} // the state's edge would not judge those beyond
		}
		select {
		case answers <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
		r.From += int64(len(a.records))
	}
}

// batch gathers the records of one Raft entry, which the log takes together.
type batch struct {
	index   uint64
	records [][]byte
	size    int // bytes
}

func (b *batch) add(log *audit.Log, e audit.Entry) error {
	if e.Index != b.index {
		if err := b.append(log); err != nil {
			return err
		}
		b.index = e.Index
	}
	b.records, b.size = append(b.records, e.Record), b.size+len(e.Record)
	if len(b.records) > audit.MaxBatch || b.size > audit.MaxBatchBytes {
		return errRecords
	}
	return nil
}

func (b *batch) append(log *audit.Log) error {
	if len(b.records) == 0 {
		return nil
	}
	err := log.Append(b.index, b.records...)
	b.records, b.size = b.records[:0], 0
	return err
}
