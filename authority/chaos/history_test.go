//go:build chaos

package chaos

import (
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// What can be done to a token, and what can be seen of it.
type kind int

const (
	issue kind = iota
	revoke
	read
)

type presence int

const (
	absent presence = iota
	live
	revoked
	twice // made twice: never right
)

// operation is an input of the model. A token is known by its subject, which is
// unique, from before it has an id.
type operation struct {
	kind    kind
	subject string
}

// history is what clients were told. Times are on the campaign's own clock.
type history struct {
	base time.Time

	mu       sync.Mutex
	ops      []porcupine.Operation // guarded by mu
	known    [3]int                // by kind, those whose outcome is known; guarded by mu
	unknown  int                   // guarded by mu
	unserved int                   // reads that were refused; guarded by mu
}

func (h *history) now() int64 { return int64(time.Since(h.base)) }

// record adds what a client was told. A change that failed may have been made, even
// later, so it stays open to the end; a read that failed says nothing.
func (h *history) record(client int, op operation, seen presence, begun int64, err error) {
	end := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.known[op.kind]++
	case op.kind == read:
		h.unserved++
		return
	default:
		h.unknown++
		end = math.MaxInt64
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: op, Output: outcome{seen, err == nil}, Call: begun, Return: end})
}

type outcome struct {
	seen  presence
	known bool
}

// model is one token: absent, then live, then revoked.
var model = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		at := make(map[string]int)
		var parts [][]porcupine.Operation
		for _, op := range ops {
			subject := op.Input.(operation).subject
			i, ok := at[subject]
			if !ok {
				i = len(parts)
				at[subject] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return absent },
	Step: func(state, input, output any) (bool, any) {
		at, out := state.(presence), output.(outcome)
		switch input.(operation).kind {
		case issue:
			if at != absent {
				return false, at // each subject is issued once
			}
			return true, live
		case revoke:
			if at == absent {
				return !out.known, at
			}
			return true, revoked
		default:
			return out.seen == at, at
		}
	},
}

// check returns Ok, Illegal, or Unknown if that takes longer than a minute.
func (h *history) check() porcupine.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return porcupine.CheckOperationsTimeout(model, h.ops, time.Minute)
}
