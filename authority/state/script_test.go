package state

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

var update = flag.Bool("update", false, "rewrite the expected output and the golden files")

// TestScripts replays the transcripts in testdata/scripts. A line is a
// command, with name=value arguments; what it came to follows, indented. Run
// with -update to rewrite it.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/scripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{rig: formed(t), tokens: make(map[string]capability.TokenID), points: make(map[string]string)}
			var got bytes.Buffer
			for line := range strings.Lines(string(want)) {
				if strings.HasPrefix(line, "\t") {
					continue
				}
				got.WriteString(line)
				if cmd := strings.TrimSpace(line); cmd != "" && cmd[0] != '#' {
					for out := range strings.Lines(s.run(cmd)) {
						got.WriteString("\t" + strings.TrimSuffix(out, "\n") + "\n")
					}
				}
			}
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != string(want) {
				t.Errorf("transcript differs; it is now:\n%s", got.String())
			}
			// Whatever a script has done, a node that replays its log agrees.
			if m, _ := s.replay(3); hashOf(m) != hashOf(s.m) {
				t.Error("a replay gives another state")
			}
		})
	}
}

type script struct {
	*rig
	tokens map[string]capability.TokenID
	points map[string]string // what an id stands for
	seen   uint64            // events shown so far
}

type arguments map[string]string

func (a arguments) list(name string) []string {
	if a[name] == "" {
		return nil
	}
	return strings.Split(a[name], ",")
}

func (s *script) run(line string) string {
	words := strings.Fields(line)
	args := arguments{}
	for _, w := range words[1:] {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			s.t.Fatalf("%q: not name=value", w)
		}
		args[k] = v
	}
	switch words[0] {
	case "wait":
		d, err := time.ParseDuration(args["for"])
		if err != nil {
			s.t.Fatal(err)
		}
		s.stamp += d.Milliseconds()
		return ""
	case "feed":
		return s.feed()
	case "show":
		return s.show()
	}
	kind, body := s.command(words[0], args)
	actor := system
	if name := args["as"]; name != "" {
		id := s.tokens[name]
		r, err := s.m.Token(id)
		if err != nil || r == nil {
			s.t.Fatalf("no token %q", name)
		}
		actor = Actor{Name: r.Subject, Token: id, Audience: r.Audience}
		for _, b := range args.list("via") {
			actor.Branches = append(actor.Branches, s.branch(b))
		}
		s.own(body, actor.Name)
	} else {
		s.own(body, SystemActor)
	}
	var request capability.TokenID
	if name := args["request"]; name != "" {
		at := s.stamp
		if age := args["age"]; age != "" {
			d, err := time.ParseDuration(age)
			if err != nil {
				s.t.Fatal(err)
			}
			at -= d.Milliseconds()
		}
		if id, ok := s.tokens["request "+name]; ok {
			request = id
		} else {
			request = tokenID(at, name)
			s.tokens["request "+name] = request
		}
	}
	v, err := s.as(actor, request, Digest(slices.Repeat([]byte(args["body"]+"."), 32)), kind, body)
	if err != nil {
		if r, ok := errors.AsType[*capability.Refusal](err); ok {
			return "refused " + string(r.Code) + ": " + r.Detail
		}
		return err.Error()
	}
	return s.result(v)
}

// own makes the actor the lessee, as the services do.
func (s *script) own(body any, name string) {
	switch b := body.(type) {
	case *Lease:
		b.Lessee = name
	case *Return:
		b.Lessee = name
	}
}

func (s *script) branch(name string) capability.BranchID {
	b := capability.BranchID(bits(name))
	s.points[b.String()] = name
	return b
}

func (s *script) token(name string) capability.TokenID {
	if id, ok := s.tokens[name]; ok || name == "" {
		return id
	}
	return tokenID(epochStart, name)
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

func (s *script) command(name string, args arguments) (Kind, any) {
	next := s.stamp + 1
	switch name {
	case "issue":
		audience := args["audience"]
		if audience == "" {
			audience = "corp"
		}
		r := s.record(args["name"], audience, args["subject"])
		if ttl := args["ttl"]; ttl != "" {
			d, err := time.ParseDuration(ttl)
			if err != nil {
				s.t.Fatal(err)
			}
			r.NotAfter = next + d.Milliseconds()
		}
		r.Holders = args.list("holders")
		if p := args["parent"]; p != "" {
			r.Parent = &Parent{Token: s.token(p)}
			if rec, err := s.m.Token(r.Parent.Token); err == nil && rec != nil && args["ttl"] == "" {
				r.NotAfter = rec.NotAfter
			}
			for _, b := range args.list("chain") {
				r.Parent.Branches = append(r.Parent.Branches, s.branch(b))
			}
		}
		if e := args["epoch"]; e != "" {
			r.Epoch = uint32(number(e))
		}
		if g := args["generation"]; g != "" {
			r.Generation = uint32(number(g))
		}
		s.branch(args["name"] + "/tail")
		if _, ok := s.tokens[args["name"]]; !ok {
			s.tokens[args["name"]] = r.ID
			s.points[r.ID.String()] = args["name"]
		}
		return KindIssue, &Issue{Record: r}
	case "revoke":
		r := &Revoke{
			Kind: args["kind"], Subject: args["subject"], Holder: args["holder"], Device: args["device"], Audience: args["audience"],
			Epoch: uint32(number(args["epoch"])), Token: s.token(args["token"]), Reason: "leaked", Expires: next + 3_600_000,
		}
		if b := args["branch"]; b != "" {
			r.Branch = s.branch(b)
		}
		return KindRevoke, r
	case "lease":
		l := &Lease{ID: LeaseID(bits("lease " + args["id"])), Token: s.token(args["token"]), Want: number(args["want"]), Unspent: number(args["unspent"])}
		if c := args["close"]; c != "" {
			l.Close = LeaseID(bits("lease " + c))
		}
		for _, b := range args.list("chain") {
			l.Chain = append(l.Chain, s.branch(b))
		}
		for _, p := range args.list("path") {
			b, limit, _ := strings.Cut(p, ":")
			l.Path = append(l.Path, PathPoint{s.branch(b), number(limit)})
			if len(args["chain"]) == 0 {
				l.Chain = append(l.Chain, s.branch(b))
			}
		}
		return KindLease, l
	case "return":
		return KindReturn, &Return{ID: LeaseID(bits("lease " + args["id"])), Unspent: number(args["unspent"])}
	case "expire":
		d, _ := time.ParseDuration(args["ago"])
		return KindExpire, &Expire{T: next - d.Milliseconds()}
	case "epoch":
		d, _ := time.ParseDuration(args["mints"])
		from := next + d.Milliseconds()
		return KindAddEpoch, &AddEpoch{
			Key:       SealedKey{Purpose: PurposeMaster, Epoch: uint32(number(args["number"])), Incarnation: 1, Sealed: []byte("sealed")},
			MintsFrom: from, OldUntil: from + 15*60*1000,
		}
	case "rekey":
		d, _ := time.ParseDuration(args["mints"])
		from := next + d.Milliseconds()
		return KindRekey, &Rekey{Audience: args["audience"], Reason: "leaked", MintsFrom: from, OldUntil: from + 15*60*1000}
	case "service":
		return KindAddService, &AddService{
			Name: args["name"], Audiences: args.list("audiences"), Derive: args.list("derive"), Keyless: args["keyless"] == "true",
			JoinHash: Digest(slices.Repeat([]byte(args["secret"]+"!"), 32)[:32]), JoinUntil: next + 86_400_000,
		}
	case "join", "renew":
		r := s.record(args["credential"], api.AdminAudience, ServicePrefix+args["name"])
		s.tokens[args["credential"]] = r.ID
		s.points[r.ID.String()] = args["credential"]
		j := &JoinService{Name: args["name"], Record: r}
		if name == "join" {
			j.Hash = Digest(slices.Repeat([]byte(args["secret"]+"!"), 32)[:32])
		}
		return KindJoinService, j
	case "remove":
		return KindRemoveService, &RemoveService{Name: args["name"], Reason: "gone"}
	}
	s.t.Fatalf("no command %q", name)
	return 0, nil
}

func (s *script) name(id string) string {
	if n, ok := s.points[id]; ok {
		return n
	}
	return id
}

func (s *script) result(v any) string {
	switch r := v.(type) {
	case nil:
		return "ok"
	case *TokenRecord:
		return "registered " + s.name(r.ID.String())
	case *RevokeResult:
		return fmt.Sprintf("revoked, reached %d", r.Reached)
	case *LeaseResult:
		return fmt.Sprintf("granted %d", r.Granted)
	case *ReturnResult:
		return fmt.Sprintf("credited %d", r.Credited)
	case *ExpireResult:
		return fmt.Sprintf("tokens %d, revocations %d, leases %d, services %d", r.Tokens, r.Revocations, r.Leases, r.Services)
	case *EpochRecord:
		return fmt.Sprintf("epoch %d", r.Epoch)
	case *RekeyResult:
		return fmt.Sprintf("generation %d", r.Generation)
	case *ServiceRecord:
		return "service " + r.Name
	}
	return fmt.Sprintf("%T", v)
}

// feed shows the events since the last time.
func (s *script) feed() string {
	list, through, err := s.m.Events(nil, s.seen, 1000)
	if err != nil {
		return err.Error()
	}
	s.seen = through
	var b strings.Builder
	for _, e := range list {
		switch {
		case e.Keys:
			fmt.Fprintf(&b, "keys %s\n", e.Audience)
		case e.Revoke != nil:
			r := e.Revoke
			fmt.Fprintf(&b, "revoke %s", r.Kind)
			for _, part := range []string{s.name(r.Token), s.name(r.Branch), r.Subject, r.Holder, r.Device, r.Audience} {
				if part != "" {
					fmt.Fprintf(&b, " %s", part)
				}
			}
			if r.Epoch != 0 {
				fmt.Fprintf(&b, " %d", r.Epoch)
			}
			if e.Audience != "" {
				fmt.Fprintf(&b, " (for %s)", e.Audience)
			}
			b.WriteByte('\n')
		default:
			fmt.Fprintf(&b, "issued %s %s (for %s)\n", s.name(e.Issued.Token.String()), s.name(e.Issued.Branch.String()), e.Audience)
		}
	}
	return b.String()
}

func (s *script) show() string {
	c := s.m.Counts()
	return fmt.Sprintf("tokens %d, revocations %d, services %d, leases %d, budgets %d, audit %d",
		c.Tokens, c.Revocations, c.Services, c.Leases, c.Budgets, c.Audit)
}
