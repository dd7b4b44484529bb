package check

import (
	"math"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// tokenState is what the model knows of one token.
type tokenState struct {
	presence Presence
	left     uint64 // calls to lease
	open     string // leases, each followed by a blank, in the order of granting
}

// operations are the parts of the history that porcupine judges.
func operations(records []Record) []porcupine.Operation {
	clients := make(map[string]int)
	restored := int64(math.MaxInt64)
	issued := make(map[string]int64)
	leased := make(map[string]bool) // by clients, in the history
	for _, r := range records {
		switch r.Op {
		case OpLease:
			leased[r.Name] = true
		case OpRestore:
			restored = r.Begun
		case OpIssue:
			issued[r.Name] = r.Begun
		}
	}
	var ops []porcupine.Operation
	for _, r := range records {
		switch r.Op {
		case OpIssue, OpLease, OpReturn, OpRead:
		case OpRevoke:
			if strings.Contains(r.Name, "/") {
				continue // of a branch: the token lives
			}
		default:
			continue
		}
		if r.Op == OpRead && r.Unknown {
			continue // nothing was seen
		}
		if issued[r.Name] < restored && r.Ended > restored {
			continue // of a life that is over
		}
		if !leased[r.Name] {
			r.Limits, r.Left = nil, 0 // guards lease of it
		}
		if _, ok := clients[r.Client]; !ok {
			clients[r.Client] = len(clients)
		}
		end := r.Ended
		if r.Unknown {
			end = math.MaxInt64
		}
		ops = append(ops, porcupine.Operation{ClientId: clients[r.Client], Input: r, Output: r, Call: r.Begun, Return: end})
	}
	return ops
}

// model is one token: absent, then live, then revoked; and its one budget.
var model = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		at := make(map[string]int)
		var parts [][]porcupine.Operation
		for _, op := range ops {
			name := op.Input.(Record).Name
			i, ok := at[name]
			if !ok {
				i = len(parts)
				at[name] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return tokenState{presence: Absent} },
	Step: func(state, input, _ any) (bool, any) {
		ok, next := step(state.(tokenState), input.(Record))
		return ok, next
	},
}

// step applies one record. What is unknown may come to nothing at any time, and so
// at the very end.
func step(s tokenState, r Record) (bool, tokenState) {
	switch r.Op {
	case OpIssue:
		if s.presence != Absent {
			return false, s // each name is issued once
		}
		s.presence = Live
		if len(r.Limits) == 1 {
			s.left = r.Limits[0]
		}
		return true, s
	case OpRevoke:
		if s.presence == Absent {
			return r.Unknown, s
		}
		s.presence = Revoked
		return true, s
	case OpLease:
		return stepLease(s, r)
	case OpReturn:
		if !strings.Contains(s.open, r.Lease+" ") {
			return r.Unknown || r.Calls == 0, s
		}
		s.open = strings.Replace(s.open, r.Lease+" ", "", 1)
		s.left++
		return r.Unknown || r.Calls == 1, s
	default:
		return r.Seen == s.presence && (r.Seen == Absent || r.Left == s.left), s
	}
}

func stepLease(s tokenState, r Record) (bool, tokenState) {
	possible := s.presence == Live && s.left > 0
	switch {
	case r.Unknown && possible:
		s.left--
		return true, s
	case r.Unknown:
		return true, s
	case r.Code == "revoked":
		return s.presence == Revoked, s
	case r.Code == "budget_exhausted":
		return s.presence == Live && s.left == 0, s
	case r.Code == "unregistered":
		return s.presence == Absent, s
	case r.Code != "" || !possible:
		return false, s
	}
	s.left--
	s.open += r.Lease + " "
	return true, s
}

func (c *checker) history() {
	ops := operations(c.records)
	known, reads := 0, 0
	for _, op := range ops {
		r := op.Input.(Record)
		if r.Unknown {
			continue
		}
		known++
		if r.Op == OpRead {
			reads++
		}
	}
	c.report.Operations, c.report.Reads = known, reads
	c.enough("operations", known, c.least.Operations)
	if c.least.Operations > 0 && reads*10 < known*3 {
		c.vacuous("%d of %d operations were linearizable reads", reads, known)
	}
	limit := c.cfg.HistoryTime
	if limit == 0 {
		limit = time.Minute
	}
	for _, part := range model.Partition(ops) {
		// An Unknown is a failure: it has shown nothing.
		if got := porcupine.CheckOperationsTimeout(single, part, limit); got != porcupine.Ok {
			c.violated("the history of %s, %d operations, is %s to linearize: %s", part[0].Input.(Record).Name, len(part), got, tell(part))
		}
	}
}

// single is the model of one partition.
var single = porcupine.Model{Init: model.Init, Step: model.Step}
