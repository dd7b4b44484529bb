package authority

import (
	"context"
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
	fetchBytes   = 1 << 20 // of records in one answer; more only for one entry's
	fetchTimeout = 10 * time.Second
)

type recordsRequest struct {
	Origin string `json:"origin"`
	From   int64  `json:"from"`
	To     int64  `json:"to"` // without
}

// recordsAnswer holds records in order, those of one Raft entry together.
type recordsAnswer struct {
	Batches []recordBatch `json:"batches"`
}

type recordBatch struct {
	Index   uint64   `json:"index"` // of the Raft entry
	Records [][]byte `json:"records"`
}

func (a *Authority) answerRecords(_ context.Context, _ string, r *recordsRequest) (*recordsAnswer, error) {
	log, err := a.trail.get()
	if err != nil {
		return nil, err
	}
	if log.Origin() != r.Origin {
		return nil, audit.ErrOrigin
	}
	answer := new(recordsAnswer)
	bytes := 0
	for e, err := range log.Records(r.From, r.To) {
		if err != nil {
			return nil, err
		}
		n := len(answer.Batches)
		if n == 0 || answer.Batches[n-1].Index != e.Index {
			if bytes >= fetchBytes {
				break
			}
			answer.Batches = append(answer.Batches, recordBatch{Index: e.Index})
			n++
		}
		b := &answer.Batches[n-1]
		b.Records = append(b.Records, e.Record)
		bytes += len(e.Record)
	}
	return answer, nil
}

// fetchRecords brings the log up to the edge's size from whichever peer has it.
func (p *peers) fetchRecords(log *audit.Log, edge audit.Edge) error {
	var errs []error
	for node, address := range p.others() {
		err := p.fetchFrom(node, address, log, edge.Size())
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("node %q: %w", node, err))
	}
	return fmt.Errorf("fetching audit records: %w", errors.Join(append(errs, audit.ErrBehind)...))
}

func (p *peers) fetchFrom(node, address string, log *audit.Log, size int64) error {
	for have := log.Edge().Size(); have < size; have = log.Edge().Size() {
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		b, err := p.callAt(ctx, node, address, methodRecords, recordsRequest{Origin: log.Origin(), From: have, To: size})
		cancel()
		if err != nil {
			return err
		}
		var answer recordsAnswer
		if err := json.Unmarshal(b, &answer); err != nil {
			return err
		}
		if len(answer.Batches) == 0 {
			return errors.New("it has no such records")
		}
		for _, batch := range answer.Batches {
			if err := log.Append(batch.Index, batch.Records...); err != nil {
				return err
			}
		}
	}
	return log.Sync()
}
