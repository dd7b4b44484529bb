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
		Operations: 8, Leases: 1, Late: 1, Siblings: 1, Accepted: 4, Budgets: 1, Troubled: 1, Nodes: 2,
		Faults: map[string]int{"kill": 1},
	},
}

// campaign is a small one in which all holds. a is a token with two branches, of
// which one is revoked; b has a budget of 2; l has a budget that is leased.
func campaign() []Record {
	audit := [][]byte{{1}, {2}, {3}}
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
		{Op: OpVerdict, Client: "g1", Name: "a/x", Code: "revoked", Begun: 2100 * ms, Ended: 2100 * ms},
		{Op: OpVerdict, Client: "g1", Name: "a/y", Begun: 2100 * ms, Ended: 2100 * ms},
		{Op: OpAccount, Name: "b", Left: 0},
		{Op: OpNode, Client: "n1", Index: 7, Hash: "h"},
		{Op: OpNode, Client: "n2", Index: 7, Hash: "h"},
		{Op: OpNode, Client: "n1", Audit: audit},
		{Op: OpNode, Client: "n2", Audit: audit[:2]},
	}
	for i := range int64(4) {
		code := ""
		if i > 1 {
			code = "budget_exhausted"
		}
		records = append(records, Record{Op: OpVerdict, Client: "g1", Name: "b", Code: code, Begun: (60 + i) * ms, Ended: (60 + i) * ms})
	}
	for _, node := range []string{"n1", "n2"} {
		for name, at := range map[string]Presence{"a": Live, "b": Live, "l": Live, "r": Revoked} {
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
	if report.Spent != 2 || report.Leased != 1 || report.Returned != 1 || report.Late != 1 || report.Siblings == 0 || report.Stale != 1 {
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
		{"states differ", "states differ at 7", []Record{{Op: OpNode, Client: "n2", Index: 7, Hash: "other"}}, nil},
		{"audit logs differ", "audit record 2 differs", []Record{{Op: OpNode, Client: "n2", Audit: [][]byte{{4}}}}, nil},
		{"alive after a restore", "accepted b", []Record{{Op: OpRestore, Begun: 100 * ms}, verdict("g1", "b", "", 2200)}, nil},
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
}

// TestVacuous takes away all of a kind.
func TestVacuous(t *testing.T) {
	for op, want := range map[Op]string{
		OpRead: "were linearizable reads", OpLease: "calls leased", OpReturn: "calls given back", OpVerdict: "acceptances",
		OpAccount: "too few budgets", OpFault: "faults of kind kill", OpNode: "nodes that told",
	} {
		records := slices.DeleteFunc(campaign(), func(r Record) bool { return r.Op == op })
		if got := Check(testConfig, records).Vacuous; !strings.Contains(fmt.Sprint(got), want) {
			t.Errorf("without %s: %q", op, got)
		}
	}
	unasked := slices.DeleteFunc(campaign(), func(r Record) bool { return r.Op == OpVerdict && r.Name == "b" && r.Code != "" })
	if got := Check(testConfig, unasked).Vacuous; !strings.Contains(fmt.Sprint(got), "were offered") {
		t.Errorf("a budget that was not offered twice over: %q", got)
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
