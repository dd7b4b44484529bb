package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/audit"
)

// TestNothingUnreadableIsEncoded: what gets into the log and cannot be read
// would stop every node, again at each start.
func TestNothingUnreadableIsEncoded(t *testing.T) {
	for name, body := range map[string]*RemoveService{
		"no UTF-8": {Name: "a\xff", Reason: "r"}, "half a rune": {Name: "a", Reason: "\xe2\x82"},
	} {
		if _, err := EncodeCommand(Header{Kind: KindRemoveService, Stamp: 1}, body); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := EncodeCommand(Header{Kind: KindRemoveService, Stamp: 1}, &RemoveService{Name: "a", Reason: "<é\u2028\\ufffd>"}); err != nil {
		t.Errorf("text that JSON escapes: %v", err)
	}
}

// TestLongestRecordsFit: whatever a caller fills the fields with, the audit
// trail takes the record.
func TestLongestRecordsFit(t *testing.T) {
	r := formed(t)
	names := func(prefix string) (list []string) {
		for i := range maxAudiences {
			list = append(list, strings.Repeat("<", 97)+fmt.Sprintf("%s%02d", prefix, i))
		}
		return list
	}
	r.must(KindAddService, &AddService{
		Name: strings.Repeat("&", maxService), Audiences: names("a"), Derive: names("d"), JoinHash: Digest{1}, JoinUntil: r.stamp + 1000,
	})
	rec := r.record("a", strings.Repeat("<", 100), strings.Repeat("<", 200))
	for _, field := range []*string{&rec.Owner, &rec.Purpose, &rec.Auditor} {
		*field = strings.Repeat("<", MaxText)
	}
	rec.Unsigned = make([]byte, MaxUnsigned)
	rec.Actors = slices.Repeat([]string{strings.Repeat("<", maxService)}, maxActors)
	r.must(KindIssue, &Issue{Record: rec, Caveats: slices.Repeat([]string{strings.Repeat("<", 300)}, 48)})
	for i, b := range r.trail.records {
		if len(b) > audit.MaxRecord {
			t.Errorf("record %d has %d bytes", i, len(b))
		}
	}

	// A field that nobody bounds leaves a record of its hash.
	rec = r.record("b", "corp", "alice")
	r.must(KindIssue, &Issue{Record: rec, Caveats: []string{strings.Repeat("x", audit.MaxRecord)}})
	var last struct{ Action, Token, Detail string }
	if err := json.Unmarshal(r.trail.records[len(r.trail.records)-1], &last); err != nil {
		t.Fatal(err)
	}
	if last.Action != "issue" || last.Token != rec.ID.String() || !strings.HasPrefix(last.Detail, "too large to record; SHA-256 ") {
		t.Errorf("%+v", last)
	}
}

// TestReincarnation: a new incarnation has a trail of its own, which begins with
// where the one before ended, and a feed that begins anew.
func TestReincarnation(t *testing.T) {
	r := formed(t)
	r.issue("a", "corp", "alice")
	before, _ := r.m.AuditEdge()
	rec := r.record("b", "corp", "alice")
	r.stamp++
	h := Header{Stamp: r.stamp, Actor: system}
	issue, again := h, h
	issue.Kind, again.Kind = KindIssue, KindReincarnate
	results := r.apply(
		encode(t, issue, &Issue{Record: rec}),
		encode(t, again, &Reincarnate{Incarnation: 2, Origin: "writ/audit/test/2"}),
	)
	if results[0].Err != nil || results[1].Err != nil {
		t.Fatal(results)
	}
	after, _ := r.m.AuditEdge()
	if c := r.m.Cluster(); c.Incarnation != 2 || c.Origin != "writ/audit/test/2" || after.Size() != 1 || r.trail.origin != c.Origin {
		t.Errorf("%+v, %d records", c, after.Size())
	}
	if len(r.trail.records) != 1 || !strings.Contains(string(r.trail.records[0]), fmt.Sprintf(`writ/audit/test/1\n%d\n`, before.Size()+1)) {
		t.Errorf("the first record of the new trail: %s", r.trail.records)
	}
	if _, _, err := r.m.Events(nil, 0, 10); !errors.Is(err, ErrTooOld) {
		t.Errorf("the feed of the incarnation before: %v", err)
	}
	if _, err := r.do(KindReincarnate, &Reincarnate{Incarnation: 2, Origin: "writ/audit/test/3"}); err == nil {
		t.Error("an incarnation that does not rise")
	}
}
