package check

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = int64(time.Millisecond)

var testConfig = Config{
	Bound: 2 * time.Second, Recovery: 500 * time.Millisecond,
	Least: Least{
		Operations: 8, Leases: 1, Repeated: 1, Late: 1, Siblings: 1, Accepted: 4, Budgets: 3, Nested: 2, Troubled: 1, Nodes: 2,
		Faults: map[string]int{"kill": 1},
	},
}

// campaign is a small one in which all holds. a is a token with two branches, of
// which one is revoked; b has a budget of 2, and o one of 1 in one of 2; l has a
// budget that is leased.
func campaign() []Record {
	audit := [][]byte{{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}}
	records := []Record{
		{Op: OpIssue, Client: "c1", Name: "a", Begun: 1 * ms, Ended: 3 * ms},
		{Op: OpNarrow, Name: "a/x"},
		{Op: OpNarrow, Name: "a/y"},
		{Op: OpIssue, Client: "c1", Name: "b", Limits: []uint64{2}, Begun: 4 * ms, Ended: 5 * ms},
		{Op: OpIssue, Client: "c1", Name: "l", Limits: []uint64{2}, Begun: 6 * ms, Ended: 7 * ms},
		{Op: OpIssue, Client: "c1", Name: "r", Begun: 8 * ms, Ended: 9 * ms},
		{Op: OpRead, Client: "c2", Name: "r", Seen: Live, Begun: 10 * ms, Ended: 11 * ms},
		{Op: OpRevoke, Client: "c1", Name: "r", Begun: 12 * ms, Ended: 13 * ms},
		{Op: OpRead, Client: "c2", Name: "r", Seen: Revoked, Begun: 14 * ms, Ended: 15 * ms},
		{Op: OpLease, Client: "c1", Name: "l", Lease: "1", Begun: 16 * ms, Ended: 17 * ms},
		{Op: OpRead, Client: "c2", Name: "l", Seen: Live, Left: 1, Begun: 18 * ms, Ended: 19 * ms},
		{Op: OpReturn, Client: "c1", Name: "l", Lease: "1", Calls: 1, Begun: 20 * ms, Ended: 21 * ms},
		{Op: OpReturn, Client: "c1", Name: "l", Lease: "1", Begun: 22 * ms, Ended: 23 * ms},
		{Op: OpRead, Client: "c2", Name: "l", Seen: Live, Left: 2, Begun: 24 * ms, Ended: 25 * ms},
		{Op: OpVerdict, Client: "g1", Name: "a/x", Begun: 30 * ms, Ended: 30 * ms},
		{Op: OpRevoke, Client: "c1", Name: "a/x", Begun: 31 * ms, Ended: 32 * ms},
		{Op: OpFault, Code: "kill", Begun: 40 * ms, Ended: 50 * ms},
		{Op: OpCut, Client: "g2", Begun: 40 * ms, Ended: 50 * ms},
		{Op: OpVerdict, Client: "g2", Name: "a/y", Code: "stale_revocations", Begun: 45 * ms, Ended: 45 * ms},
		{Op: OpVerdict, Client: "g2", Name: "a/y", Code: "stale_revocations", Begun: 540 * ms, Ended: 540 * ms}, // not yet recovered
		{Op: OpVerdict, Client: "g1", Name: "a/x", Code: "revoked", Begun: 2100 * ms, Ended: 2100 * ms},
		{Op: OpVerdict, Client: "g1", Name: "a/y", Begun: 2100 * ms, Ended: 2100 * ms},
		{Op: OpAccount, Name: "b", Left: 0},
		{Op: OpNode, Client: "n1", Index: 7, Hash: "h"},
		{Op: OpNode, Client: "n2", Index: 7, Hash: "h"},
		{Op: OpNode, Client: "n1", Audit: audit},
		{Op: OpNode, Client: "n2", Audit: audit[:9]},
		{Op: OpRepeat, Client: "c1"},
		{Op: OpIssue, Client: "c1", Name: "o", Limits: []uint64{1, 2}, Begun: 24 * ms, Ended: 25 * ms},
		{Op: OpVerdict, Client: "g1", Name: "o", Begun: 46 * ms, Ended: 46 * ms},
		{Op: OpAccount, Name: "o", Budget: 0},
		{Op: OpAccount, Name: "o", Budget: 1, Left: 1},
	}
	for i := range int64(3) {
		records = append(records, Record{Op: OpVerdict, Client: "g1", Name: "o", Code: "budget_exhausted", Begun: (70 + i) * ms, Ended: (70 + i) * ms})
	}
	for i := range int64(4) {
		code := ""
		if i > 1 {
			code = "budget_exhausted"
		}
		records = append(records, Record{Op: OpVerdict, Client: "g1", Name: "b", Code: code, Begun: (60 + i) * ms, Ended: (60 + i) * ms})
	}
	for _, node := range []string{"n1", "n2"} {
		for name, at := range map[string]Presence{"a": Live, "b": Live, "l": Live, "o": Live, "r": Revoked} {
			records = append(records, Record{Op: OpNode, Client: node, Name: name, Seen: at})
		}
	}
	return records
}

func TestSoundCampaign(t *testing.T) {
	report := Check(testConfig, campaign())
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Spent != 4 || report.Leased != 1 || report.Returned != 1 || report.Late != 1 || report.Siblings == 0 || report.Stale != 2 {
		t.Errorf("reported %v", report)
	}
}

// TestViolations has one thing go wrong at a time.
func TestViolations(t *testing.T) {
	verdict := func(client, name, code string, at int64) Record {
		return Record{Op: OpVerdict, Client: client, Name: name, Code: code, Begun: at * ms, Ended: at * ms}
	}
	tests := []struct {
		name, want string
		more       []Record
		without    func(r *Record) bool
	}{
		{"stale read", "Illegal to linearize", []Record{
			{Op: OpRead, Client: "c3", Name: "r", Seen: Live, Begun: 14 * ms, Ended: 16 * ms}}, nil},
		{"issued twice", "Illegal to linearize", []Record{
			{Op: OpRead, Client: "c3", Name: "r", Seen: Twice, Begun: 14 * ms, Ended: 16 * ms}}, nil},
		{"lost issue", "Illegal to linearize", []Record{
			{Op: OpRead, Client: "c3", Name: "r", Seen: Absent, Begun: 10 * ms, Ended: 11 * ms}}, nil},
		{"lease not deducted", "Illegal to linearize", []Record{
			{Op: OpRead, Client: "c3", Name: "l", Seen: Live, Left: 2, Begun: 18 * ms, Ended: 19 * ms}}, nil},
		{"return credited twice", "Illegal to linearize", []Record{
			{Op: OpReturn, Client: "c3", Name: "l", Lease: "1", Calls: 1, Begun: 26 * ms, Ended: 27 * ms}}, nil},
		{"leased beyond the limit", "Illegal to linearize", []Record{
			{Op: OpLease, Client: "c3", Name: "l", Lease: "2", Begun: 26 * ms, Ended: 27 * ms},
			{Op: OpLease, Client: "c3", Name: "l", Lease: "3", Begun: 28 * ms, Ended: 29 * ms},
			{Op: OpLease, Client: "c3", Name: "l", Lease: "4", Begun: 30 * ms, Ended: 31 * ms}}, nil},
		{"accepted past the bound", "accepted a/x", []Record{verdict("g2", "a/x", "", 2033)}, nil},
		{"derived accepted past the bound", "accepted a/x/z", []Record{verdict("g2", "a/x/z", "", 2033)}, nil},
		{"refused wrongly", "which nobody revoked", []Record{verdict("g1", "a/y", "revoked", 2050)}, nil},
		{"refused before it was asked", "which nobody revoked", []Record{verdict("g1", "a/x", "revoked", 20)}, nil},
		{"stale for no reason", "could reach a node", []Record{verdict("g1", "a/y", "stale_revocations", 45)}, nil},
		{"stale too long", "could reach a node", []Record{verdict("g2", "a/y", "stale_revocations", 560)}, nil},
		{"refused otherwise", "otherwise: expired", []Record{verdict("g2", "a/y", "expired", 60)}, nil},
		{"overspent", "3 calls of b were accepted, of 2", []Record{verdict("g2", "b", "", 70)}, nil},
		{"overspent by a branch", "3 calls of b were accepted, of 2", []Record{verdict("g2", "b/x", "", 70)}, nil},
		{"unspent and spent", "are unspent", []Record{{Op: OpAccount, Name: "b", Left: 1}}, nil},
		{"calls gone", "calls of 2 are gone", []Record{
			{Op: OpIssue, Client: "c1", Name: "d", Limits: []uint64{2}, Begun: 1, Ended: 2}, {Op: OpAccount, Name: "d", Calls: 1},
			{Op: OpNode, Client: "n1", Name: "d", Seen: Live}, {Op: OpNode, Client: "n2", Name: "d", Seen: Live}}, nil},
		{"lost on a node", `is "" on n2`, nil, func(r *Record) bool { return r.Op == OpNode && r.Client == "n2" && r.Name == "a" }},
		{"revocation lost on a node", "r is live on n2", []Record{{Op: OpNode, Client: "n2", Name: "r", Seen: Live}}, nil},
		{"revoked by nobody on a node", "a is revoked on n2", []Record{{Op: OpNode, Client: "n2", Name: "a", Seen: Revoked}}, nil},
		{"states differ", "states differ at 7", []Record{{Op: OpNode, Client: "n2", Index: 7, Hash: "other"}}, nil},
		{"audit logs differ", "audit record 9 differs", []Record{{Op: OpNode, Client: "n2", Audit: [][]byte{{4}}}}, nil},
		{"audit log lost", "8 changes were acknowledged, and the audit log of n1 has 0 records", []Record{{Op: OpNode, Client: "n1"}},
			func(r *Record) bool { return r.Op == OpNode && r.Client == "n1" && r.Audit != nil }},
		{"unavailable for no reason", "otherwise: unavailable", []Record{verdict("g1", "a/y", "unavailable", 60)}, nil},
		{"alive after a restore", "accepted b", []Record{{Op: OpRestore, Begun: 100 * ms}, verdict("g1", "b", "", 2200)}, nil},
		{"unknown before a restore", "otherwise: unknown_key", []Record{{Op: OpRestore, Begun: 100 * ms}, verdict("g1", "a/y", "unknown_key", 60)}, nil},
		{"unknown though it goes on", "otherwise: unknown_key", []Record{
			{Op: OpRestore, Begun: 100 * ms, Backup: 33 * ms}, verdict("g1", "a/y", "unknown_key", 2200)}, nil},
		{"revoked before the backup, and alive", "accepted a/x", []Record{
			{Op: OpRestore, Begun: 100 * ms, Backup: 33 * ms}, verdict("g1", "a/x", "", 2200)}, nil},
		{"given out again by a restore", "3 calls of b were accepted, of 2", []Record{
			{Op: OpRestore, Begun: 100 * ms, Backup: 33 * ms}, verdict("g1", "b", "", 2200)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			records := campaign()
			if tt.without != nil {
				records = slices.DeleteFunc(records, func(r Record) bool { return tt.without(&r) })
			}
			report := Check(testConfig, append(records, tt.more...))
			if all := strings.Join(report.Violations, "\n"); !strings.Contains(all, tt.want) {
				t.Errorf("found %q, not %q", all, tt.want)
			}
		})
	}
}

// TestGoesOn holds that a revocation which a backup does not have is forgotten by a
// restore that keeps an epoch.
func TestGoesOn(t *testing.T) {
	records := append(campaign(), Record{Op: OpRestore, Begun: 2200 * ms, Backup: 20 * ms},
		Record{Op: OpVerdict, Client: "g1", Name: "a/x", Begun: 4300 * ms, Ended: 4300 * ms},
		Record{Op: OpVerdict, Client: "g1", Name: "b", Code: "budget_exhausted", Begun: 4300 * ms, Ended: 4300 * ms})
	cfg := testConfig
	cfg.Least = Least{Bygone: 1}
	if err := Check(cfg, records).Err(); err != nil {
		t.Error(err)
	}
}

// TestSpoiled holds that a call which waited is spent if the guard is stale by then, and
// one that did not wait is not.
func TestSpoiled(t *testing.T) {
	for _, waited := range []int64{0, 1} {
		records := slices.DeleteFunc(campaign(), func(r Record) bool { return r.Op == OpVerdict && r.Name == "b" && r.Begun == 60*ms })
		for i := range 2 {
			records = append(records, Record{Op: OpVerdict, Client: "g1", Name: "b", Code: "budget_exhausted", Begun: int64(80 + i), Ended: int64(80 + i)})
		}
		records = append(records, Record{Op: OpVerdict, Client: "g2", Name: "b", Code: "stale_revocations", Begun: 45 * ms, Ended: (45 + waited) * ms})
		if err := Check(testConfig, records).Err(); (err == nil) != (waited > 0) {
			t.Errorf("after %d ms: %v", waited, err)
		}
	}
}

// TestUnknown holds that an operation of unknown fate may have happened, late, or not.
func TestUnknown(t *testing.T) {
	for _, seen := range []Presence{Live, Revoked} {
		records := append(campaign(),
			Record{Op: OpIssue, Client: "c1", Name: "u", Begun: 30 * ms, Ended: 31 * ms},
			Record{Op: OpRevoke, Client: "c1", Name: "u", Begun: 32 * ms, Ended: 33 * ms, Unknown: true},
			Record{Op: OpRead, Client: "c2", Name: "u", Seen: seen, Begun: 50 * ms, Ended: 51 * ms})
		for _, node := range []string{"n1", "n2"} {
			records = append(records, Record{Op: OpNode, Client: node, Name: "u", Seen: seen})
		}
		if err := Check(testConfig, records).Err(); err != nil {
			t.Errorf("seen %s: %v", seen, err)
		}
	}
	for _, left := range []uint64{1, 2} {
		records := append(campaign(),
			Record{Op: OpLease, Client: "c1", Name: "l", Begun: 30 * ms, Ended: 31 * ms, Unknown: true},
			Record{Op: OpRead, Client: "c2", Name: "l", Seen: Live, Left: left, Begun: 50 * ms, Ended: 51 * ms})
		if err := Check(testConfig, records).Err(); err != nil {
			t.Errorf("%d left: %v", left, err)
		}
	}
}

// TestVacuous takes away all of a kind.
func TestVacuous(t *testing.T) {
	for op, want := range map[Op]string{
		OpRead: "were linearizable reads", OpLease: "calls leased", OpReturn: "calls given back", OpVerdict: "acceptances",
		OpAccount: "too few budgets", OpFault: "faults of kind kill", OpNode: "nodes that told", OpRepeat: "requests repeated",
	} {
		records := slices.DeleteFunc(campaign(), func(r Record) bool { return r.Op == op })
		if got := Check(testConfig, records).Vacuous; !strings.Contains(fmt.Sprint(got), want) {
			t.Errorf("without %s: %q", op, got)
		}
	}
	refusalsOf := func(name string) func(r *Record) bool {
		return func(r *Record) bool { return r.Op == OpVerdict && r.Name == name && r.Code != "" }
	}
	for _, tt := range []struct {
		name, want string
		gone       func(r *Record) bool
		more       []Record
	}{
		{"less than 30 % reads", "3 of 12 operations were linearizable reads", func(r *Record) bool { return r.Op == OpRead && r.Begun == 24*ms }, nil},
		{"a budget that was not offered twice over", "only 2 calls of b were offered, of 2", refusalsOf("b"), nil},
		{"offers that came to no decision", "only 2 calls of b were offered, of 2", refusalsOf("b"),
			[]Record{{Op: OpVerdict, Name: "b", Code: "unavailable"}, {Op: OpVerdict, Name: "b", Code: "unavailable"}}},
		{"refusals of a branch, which may be for want of its own", "only 2 calls of b were offered, of 2", refusalsOf("b"), []Record{
			{Op: OpVerdict, Name: "b/x", Code: "budget_exhausted"}, {Op: OpVerdict, Name: "b/x", Code: "budget_exhausted"}}},
		{"the wider of two budgets", "only 3 calls of o were offered, of 2", func(r *Record) bool { return r.Begun == 70*ms }, nil},
		{"a budget without an account", "nobody accounts for budget 1 of o", func(r *Record) bool { return r.Op == OpAccount && r.Budget == 1 }, nil},
		{"no budget in another", "too few nested budgets", func(r *Record) bool { return r.Op == OpAccount && r.Name == "o" }, nil},
		{"a sibling in nothing but being a token", "siblings accepted past the bound", func(r *Record) bool { return r.Name == "a/y" && r.Code == "" },
			[]Record{{Op: OpVerdict, Client: "g1", Name: "a", Begun: 2100 * ms, Ended: 2100 * ms}}},
		{"under faults by who was cut off alone", "verdicts under a fault", func(r *Record) bool { return r.Op == OpVerdict && r.Begun == 46*ms }, nil},
		{"nothing shown after a restore", "refusals of what a restore has ended", func(*Record) bool { return false }, []Record{{Op: OpRestore, Begun: 2150 * ms}}},
	} {
		cfg := testConfig
		if tt.name == "nothing shown after a restore" {
			cfg.Least.Bygone = 1
		}
		records := append(slices.DeleteFunc(campaign(), func(r Record) bool { return tt.gone(&r) }), tt.more...)
		if got := Check(cfg, records).Vacuous; !strings.Contains(fmt.Sprint(got), tt.want) {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

// TestUndecided holds that a history has shown nothing for which no order was found in
// time.
func TestUndecided(t *testing.T) {
	cfg := testConfig
	cfg.HistoryTime = time.Nanosecond
	records := campaign()
	for i := range 40 { // which may each have happened at any time, or not
		records = append(records, Record{Op: OpLease, Client: fmt.Sprint("d", i), Name: "l", Unknown: true, Begun: 1 * ms, Ended: 2 * ms})
	}
	records = append(records, Record{Op: OpRead, Client: "c3", Name: "l", Seen: Twice, Begun: 90 * ms, Ended: 91 * ms})
	if all := fmt.Sprint(Check(cfg, records).Violations); !strings.Contains(all, "is Unknown to linearize") {
		t.Error(all)
	}
}

// TestLog writes lines, and reads them; a last one that was cut off is left out.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	l := NewLog(&out)
	for _, r := range campaign() {
		if err := l.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	whole := out.Len()
	out.WriteString(`{"op":"verdict","cli`)
	got, err := Read(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if want := l.Records(); fmt.Sprint(got) != fmt.Sprint(want) || len(got) == 0 {
		t.Errorf("read %v, wrote %v", got, want)
	}
	if _, err := Read(strings.NewReader("torn\n" + out.String()[:whole])); err == nil {
		t.Error("a line in the middle was passed over")
	}
}
