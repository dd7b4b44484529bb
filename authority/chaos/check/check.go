package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Config says what holds.
type Config struct {
	// Bound is how late a revocation may be anywhere.
	Bound time.Duration
	// Recovery is how long after a cut a guard may still be stale.
	Recovery time.Duration
	// HistoryTime bounds the search for one order of the operations on one token; zero
	// is a minute. A search that is not done by then has shown nothing, and fails.
	HistoryTime time.Duration
	// Allowed are codes of verdicts besides those of revocation, freshness and
	// budgets: expired, where tokens end within the campaign.
	Allowed []string
	// Least is what there must have been.
	Least Least
}

// Least is what makes a campaign worth something. A zero asks for nothing.
type Least struct {
	Operations int            // known outcomes in the history; 30 % must be reads
	Leases     int            // calls leased, and calls given back, in the history
	Repeated   int            // requests made a second time under their ids, and answered
	Late       int            // verdicts on the revoked, begun past the bound
	Siblings   int            // acceptances, past the bound, of who was derived from the same
	Accepted   int            // acceptances in all
	Budgets    int            // accounts; each offered at least twice its limit
	Nested     int            // of those, budgets within or around another
	Troubled   int            // verdicts during a fault, of guards that were to be fresh
	Bygone     int            // refusals, past the bound, of what a restore has ended
	Faults     map[string]int // by kind
	Nodes      int            // that told their state and their audit log
}

// Report is what came of a check.
type Report struct {
	Violations []string // what cannot have been
	Vacuous    []string // what shows too little

	Operations, Reads                  int
	Leased, Returned, Repeated         int
	Accepted, Late, Siblings, Troubled int
	Bygone                             int
	Stale                              int // verdicts, those during a cut included
	Budgets, Nested                    int
	Spent, Unspent, Forfeited          uint64
	Faults                             map[string]int
}

// Err is nil if all held and there was enough to tell.
func (r *Report) Err() error {
	if all := slices.Concat(r.Violations, r.Vacuous); len(all) > 0 {
		return fmt.Errorf("check: %s", strings.Join(all, "\n"))
	}
	return nil
}

// String is one line for people.
func (r *Report) String() string {
	return fmt.Sprintf("%d operations (%d reads, %d calls leased, %d returned), %d requests repeated; verdicts: %d accepted, "+
		"%d revoked past the bound, %d siblings accepted, %d under faults, %d from before a restore, %d stale; "+
		"%d budgets (%d nested): %d accepted, %d unspent, %d forfeited; faults %v",
		r.Operations, r.Reads, r.Leased, r.Returned, r.Repeated, r.Accepted, r.Late, r.Siblings, r.Troubled, r.Bygone, r.Stale,
		r.Budgets, r.Nested, r.Spent, r.Unspent, r.Forfeited, r.Faults)
}

// checker is one check under way.
type checker struct {
	cfg     Config
	least   Least
	records []Record
	report  *Report

	asked, acked map[string]int64 // of revocations, by name: the first begun, the first acknowledged
	budgets      map[string][]uint64
	restored     int64            // when the last restore ended what was before
	backup       int64            // … and when what it was of was taken, if tokens go on
	issued       map[string]int64 // acknowledged, by name
}

// Check judges records, in any order.
func Check(cfg Config, records []Record) *Report {
	c := &checker{
		cfg: cfg, least: cfg.Least, records: records, report: &Report{Faults: make(map[string]int)},
		asked: make(map[string]int64), acked: make(map[string]int64), budgets: make(map[string][]uint64),
		restored: math.MaxInt64, issued: make(map[string]int64),
	}
	c.index()
	c.history()
	c.verdicts()
	c.accounts()
	c.nodes()
	for kind, n := range cfg.Least.Faults {
		c.enough("faults of kind "+kind, c.report.Faults[kind], n)
	}
	slices.Sort(c.report.Vacuous)
	return c.report
}

func (c *checker) violated(format string, args ...any) {
	c.report.Violations = append(c.report.Violations, "VIOLATION: "+fmt.Sprintf(format, args...))
}

func (c *checker) vacuous(format string, args ...any) {
	c.report.Vacuous = append(c.report.Vacuous, "vacuous: "+fmt.Sprintf(format, args...))
}

func (c *checker) enough(what string, got, least int) {
	if got < least {
		c.vacuous("too few %s (%d of %d)", what, got, least)
	}
}

func earliest(m map[string]int64, name string, at int64) {
	if old, ok := m[name]; !ok || at < old {
		m[name] = at
	}
}

func (c *checker) index() {
	for _, r := range c.records {
		switch r.Op {
		case OpRevoke:
			earliest(c.asked, r.Name, r.Begun)
			if !r.Unknown {
				earliest(c.acked, r.Name, r.Ended)
			}
		case OpIssue, OpNarrow:
			c.budgets[r.Name] = r.Limits
			if !r.Unknown && r.Op == OpIssue {
				c.issued[r.Name] = r.Ended
			}
		case OpLease:
			if !r.Unknown && r.Code == "" {
				c.report.Leased++
			}
		case OpReturn:
			if !r.Unknown {
				c.report.Returned += int(r.Calls)
			}
		case OpRepeat:
			c.report.Repeated++
		case OpFault:
			c.report.Faults[r.Code]++
		case OpRestore:
			c.restored, c.backup = r.Begun, r.Backup
		}
	}
	c.enough("requests repeated", c.report.Repeated, c.least.Repeated)
	c.enough("calls leased", c.report.Leased, c.least.Leases)
	c.enough("calls given back", c.report.Returned, c.least.Leases)
}

// lineage is name, and those that it was derived from: a/b/c, a/b, a.
func lineage(name string) []string {
	all := []string{name}
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name, '/') {
		name = name[:i]
		all = append(all, name)
	}
	return all
}

// first returns the earliest that m has of a name's lineage.
func first(m map[string]int64, name string) (int64, bool) {
	at, found := int64(math.MaxInt64), false
	for _, n := range lineage(name) {
		if t, ok := m[n]; ok && t <= at {
			at, found = t, true
		}
	}
	return at, found
}

// bygone reports whether a credential is of a token from before a restore.
func (c *checker) bygone(name string) bool {
	return c.restored != math.MaxInt64 && c.issuedAt(name) < c.restored
}

// issuedAt is when the token of a credential was acknowledged, zero if it never was.
func (c *checker) issuedAt(name string) int64 {
	root, _, _ := strings.Cut(name, "/")
	return c.issued[root]
}

// span is a time in which something was so, for one client or, unnamed, for all.
type span struct {
	client     string
	from, till int64
}

func during(spans []span, client string, from, till int64) bool {
	return slices.ContainsFunc(spans, func(s span) bool {
		return (s.client == "" || s.client == client) && from <= s.till && till >= s.from
	})
}

// verdicts holds every verdict to what was known then.
func (c *checker) verdicts() {
	var cuts, faults []span
	for _, r := range c.records {
		switch r.Op {
		case OpCut:
			cuts = append(cuts, span{r.Client, r.Begun, r.Ended + int64(c.cfg.Recovery)})
		case OpFault:
			faults = append(faults, span{"", r.Begun, r.Ended})
		}
	}
	// When, by what each was derived from, a revocation was past its bound.
	past := make(map[string]int64)
	for name, at := range c.acked {
		earliest(past, parent(name), at+int64(c.cfg.Bound))
	}
	for _, r := range c.records {
		if r.Op != OpVerdict {
			continue
		}
		acked, wasAcked := first(c.acked, r.Name)
		bygone := r.Ended >= c.restored && c.bygone(r.Name)
		switch {
		case bygone && c.backup == 0:
			acked, wasAcked = min(acked, c.restored), true
		case bygone && acked > c.backup:
			wasAcked = false // a token that goes on is as it was in the backup
		}
		late := wasAcked && r.Begun > acked+int64(c.cfg.Bound)
		asked, wasAsked := first(c.asked, r.Name)
		cut := during(cuts, r.Client, r.Begun, r.Ended)
		if !cut && during(faults, "", r.Begun, r.Ended) {
			c.report.Troubled++
		}
		if bygone && r.Code != "" && r.Begun > c.restored+int64(c.cfg.Bound) {
			c.report.Bygone++
		}
		switch {
		case r.Code == "" && late:
			c.violated("%s accepted %s %v after its revocation was acknowledged, and the bound is %v",
				r.Client, r.Name, time.Duration(r.Begun-acked), c.cfg.Bound)
		case r.Code == "":
			c.report.Accepted++
			if at, ok := past[parent(r.Name)]; ok && parent(r.Name) != "" && !wasAsked && r.Begun > at {
				c.report.Siblings++
			}
		case bygone && (r.Code == "unknown_key" && c.backup == 0 || r.Code == "unregistered" && c.issuedAt(r.Name) > c.backup):
		case r.Code == "revoked":
			if late {
				c.report.Late++
			} else if (!bygone || c.backup != 0) && (!wasAsked || asked > r.Ended) {
				c.violated("%s refused %s, which nobody revoked", r.Client, r.Name)
			}
		case r.Code == "stale_revocations":
			c.report.Stale++
			if !cut {
				c.violated("%s was stale at %v, and could reach a node of a quorum", r.Client, time.Duration(r.Begun))
			}
		case (r.Code == "unavailable" || r.Code == "budget_exhausted") && c.limited(r.Name):
		case slices.Contains(c.cfg.Allowed, r.Code):
		default:
			c.violated("%s refused %s otherwise: %s", r.Client, r.Name, r.Code)
		}
	}
	c.enough("acceptances", c.report.Accepted, c.least.Accepted)
	c.enough("revoked credentials shown past the bound", c.report.Late, c.least.Late)
	c.enough("siblings accepted past the bound", c.report.Siblings, c.least.Siblings)
	c.enough("verdicts under a fault", c.report.Troubled, c.least.Troubled)
	c.enough("refusals of what a restore has ended", c.report.Bygone, c.least.Bygone)
}

func parent(name string) string {
	return name[:max(0, strings.LastIndexByte(name, '/'))]
}

// limited reports whether a credential has a budget.
func (c *checker) limited(name string) bool {
	return slices.ContainsFunc(lineage(name), func(n string) bool { return len(c.budgets[n]) > 0 })
}

// account is what one budget came to, by its name and its place there.
type account struct {
	name string
	at   int
}

// accounts holds that of each budget accepted + unspent + forfeited is the limit,
// and that it was offered enough to be overspent.
func (c *checker) accounts() {
	// A call that was refused for want of calls was offered to the whole path, and
	// nobody knows whose they were; it counts for what was shown. One that was refused
	// for another reason, or could not be decided, was offered to no budget.
	offered, accepted := make(map[string]uint64), make(map[string]uint64)
	// One that waited for its calls, and for which the guard was stale or the token
	// revoked by then, may have spent them all the same (capability.Verifier).
	spoiled := make(map[string]uint64)
	for _, r := range c.records {
		switch {
		case r.Op != OpVerdict || !c.limited(r.Name):
		case r.Code == "":
			for _, name := range lineage(r.Name) {
				offered[name]++
				accepted[name]++
			}
		case r.Code == "budget_exhausted":
			offered[r.Name]++
		case (r.Code == "stale_revocations" || r.Code == "revoked") && r.Ended > r.Begun:
			for _, name := range lineage(r.Name) {
				spoiled[name]++
			}
		}
	}
	for name, limits := range c.budgets {
		for _, limit := range limits {
			if accepted[name] > limit {
				c.violated("%d calls of %s were accepted, of %d", accepted[name], name, limit)
			}
		}
	}
	told := make(map[account]bool)
	for _, r := range c.records {
		if r.Op != OpAccount {
			continue
		}
		limits := c.budgets[r.Name]
		if r.Budget >= len(limits) {
			c.violated("an account of budget %d of %s, which has %d", r.Budget, r.Name, len(limits))
			continue
		}
		told[account{r.Name, r.Budget}] = true
		limit, took := limits[r.Budget], accepted[r.Name]
		if offered[r.Name] < 2*limit {
			c.vacuous("only %d calls of %s were offered, of %d", offered[r.Name], r.Name, limit)
		}
		if took+r.Left > limit {
			if took <= limit {
				c.violated("%s: %d were accepted and %d are unspent, of %d", r.Name, took, r.Left, limit)
			}
			continue
		}
		gone := limit - took - r.Left
		if gone > r.Calls+spoiled[r.Name] {
			c.violated("%s: %d calls of %d are gone; %d lie in open leases, and %d were refused after they had waited",
				r.Name, gone, limit, r.Calls, spoiled[r.Name])
		}
		c.report.Budgets++
		if len(limits) > 1 || c.limited(parent(r.Name)) {
			c.report.Nested++
		}
		c.report.Spent += took
		c.report.Unspent += r.Left
		c.report.Forfeited += gone
	}
	for name := range offered {
		for at := range c.budgets[name] {
			if !told[account{name, at}] && !c.bygone(name) {
				c.vacuous("nobody accounts for budget %d of %s", at, name)
			}
		}
	}
	c.enough("budgets", c.report.Budgets, c.least.Budgets)
	c.enough("nested budgets", c.report.Nested, c.least.Nested)
}

// nodes holds the nodes against what was acknowledged, and against each other.
func (c *checker) nodes() {
	hashes := make(map[uint64]map[string]string) // by index, by hash: a node
	audits := make(map[string][][]byte)
	seen := make(map[string]map[string]Presence) // by node, by name
	states := make(map[string]bool)
	for _, r := range c.records {
		if r.Op != OpNode || r.Ended < c.restored && c.restored != math.MaxInt64 {
			continue
		}
		if seen[r.Client] == nil {
			seen[r.Client] = make(map[string]Presence)
		}
		switch {
		case r.Name != "":
			seen[r.Client][r.Name] = r.Seen
		case r.Hash != "":
			if hashes[r.Index] == nil {
				hashes[r.Index] = make(map[string]string)
			}
			hashes[r.Index][r.Hash] = r.Client
			states[r.Client] = true
		default:
			audits[r.Client] = append(audits[r.Client], r.Audit...)
		}
	}
	for index, at := range hashes {
		if len(at) > 1 {
			c.violated("the nodes' states differ at %d: %v", index, slices.Sorted(maps.Values(at)))
		}
	}
	for _, node := range slices.Sorted(maps.Keys(seen)) {
		for name := range c.issued {
			if c.bygone(name) {
				continue
			}
			_, acked := c.acked[name]
			_, asked := c.asked[name]
			switch got := seen[node][name]; {
			case got != Live && got != Revoked:
				c.violated("%s, which was acknowledged, is %q on %s", name, got, node)
			case acked && got != Revoked, got == Revoked && !asked:
				c.violated("%s is %s on %s; its revocation was asked for: %v, and acknowledged: %v", name, got, node, asked, acked)
			}
		}
	}
	changes := c.changes()
	var longest string
	for _, node := range slices.Sorted(maps.Keys(audits)) {
		a, b := audits[node], audits[longest]
		for i := range min(len(a), len(b)) {
			if !bytes.Equal(a[i], b[i]) {
				c.violated("audit record %d differs on %s and %s", i, node, longest)
				break
			}
		}
		if len(a) > len(b) {
			longest = node
		}
		if len(a) < changes {
			c.violated("%d changes were acknowledged, and the audit log of %s has %d records", changes, node, len(a))
		}
	}
	c.enough("nodes that told their state", len(states), c.least.Nodes)
	c.enough("nodes that told their audit log", len(audits), c.least.Nodes)
}

// changes is how many changes were acknowledged that an audit log has to have: those
// since it was begun.
func (c *checker) changes() (n int) {
	for _, r := range c.records {
		switch r.Op {
		case OpIssue, OpRevoke, OpLease:
			if !r.Unknown && r.Code == "" && (c.restored == math.MaxInt64 || r.Begun > c.restored) {
				n++
			}
		}
	}
	return n
}

// tell writes operations for people, in the order of their beginning.
func tell(ops []porcupine.Operation) string {
	const most = 40
	ops = slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var s strings.Builder
	for _, op := range ops[max(0, len(ops)-most):] {
		b, err := json.Marshal(op.Input)
		if err != nil {
			b = []byte(err.Error())
		}
		s.WriteString("\n\t")
		s.Write(b)
	}
	return s.String()
}
