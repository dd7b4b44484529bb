package capability_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
)

func TestMintAndVerify(t *testing.T) {
	tok := mint(t, "ok 1", "ok 2")
	g, err := verify(t, verifier(t), tok)
	wantCode(t, err, "")
	id := testIdentifier()
	if g.ID() != id.ID || g.Audience() != "corp" || g.Subject() != "agent-42" || !g.NotAfter().Equal(id.NotAfter) {
		t.Errorf("identity %v %q %q %v", g.ID(), g.Audience(), g.Subject(), g.NotAfter())
	}
	if got := g.AppendBranches(nil); len(got) != 3 || got[2] != tok.Branch() || g.Branch() != tok.Branch() {
		t.Errorf("branches %v, want three ending in %v", got, tok.Branch())
	}
	if g.Token().Text() != tok.Text() {
		t.Error("the grant's token is another")
	}
}

func TestTextForm(t *testing.T) {
	tok := mint(t, "ok")
	text := tok.Text()
	if !strings.HasPrefix(text, "writ_") {
		t.Fatalf("text form %q", text)
	}
	back, err := capability.Parse(text)
	if err != nil || back.Text() != text {
		t.Fatalf("parsing what was printed: %v", err)
	}
	var g capability.Grant
	req := &capability.Request{Now: now}
	if err := verifier(t).VerifyText(context.Background(), &g, text, req); err != nil {
		t.Fatal(err)
	}
	// One token has one spelling.
	last := text[len(text)-1]
	for name, bad := range map[string]string{
		"no prefix": text[5:], "upper prefix": "WRIT_" + text[5:], "padding": text + "=", "line break": text + "\n",
		"inner line break": text[:20] + "\n" + text[20:], "standard alphabet": text[:10] + "+" + text[11:],
		"trailing bits": text[:len(text)-1] + string(last+1), "one digit more": text + "A", "empty": "", "prefix alone": "writ_",
		"not ASCII": text[:10] + "é" + text[12:],
	} {
		if name == "trailing bits" && len(text[5:])%4 == 0 {
			t.Fatal("the sample has no trailing bits: choose another length")
		}
		if _, err := capability.Parse(bad); !errors.Is(err, capability.CodeMalformed) {
			t.Errorf("%s: %v, want malformed", name, err)
		}
		if err := verifier(t).VerifyText(context.Background(), &g, bad, req); !errors.Is(err, capability.CodeMalformed) {
			t.Errorf("%s: verifying: %v, want malformed", name, err)
		}
	}
}

// Whatever the last digit is, a text that is read is the one that would be written.
func TestTextHasOneSpelling(t *testing.T) {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for over, want := range []int{64, 4, 16} { // by bytes over a multiple of three
		tok := mint(t, "ok")
		for c := "ok"; len(tok.Bytes())%3 != over; c += "k" {
			tok = mint(t, c)
		}
		text, read := tok.Text(), 0
		for _, d := range digits {
			spelled := text[:len(text)-1] + string(d)
			if back, err := capability.Parse(spelled); err == nil {
				read++
				if back.Text() != spelled {
					t.Errorf("%q is another spelling of %q", spelled, back.Text())
				}
			}
		}
		if read != want {
			t.Errorf("with %d bytes over, %d last digits are read, want %d", over, read, want)
		}
	}
}

func TestAttenuate(t *testing.T) {
	tok := mint(t, "ok")
	a, err := tok.Attenuate("ok 2")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := tok.Attenuate("ok 2")
	if a.Branch() == b.Branch() {
		t.Error("two narrowings are one branch")
	}
	c, _ := tok.AttenuateExact("ok 2")
	d, _ := tok.AttenuateExact("ok 2")
	if c.Branch() != d.Branch() {
		t.Error("two exact narrowings are two branches")
	}
	in, err := a.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Caveats) != 3 || !strings.HasPrefix(in.Caveats[1].Condition, "branch ") || len(in.Caveats[1].Condition) != 7+24 ||
		in.Identifier.Issued != 1 || in.Size != len(a.Bytes()) {
		t.Errorf("inspection %+v", in)
	}
	_, err = verify(t, verifier(t), a)
	wantCode(t, err, "")
	worse, _ := a.Attenuate("deny")
	_, err = verify(t, verifier(t), worse)
	wantCode(t, err, capability.CodeActionDenied)
}

func TestAttenuateLabels(t *testing.T) {
	nonce := "0123456789abcdef01234567"
	for _, c := range []struct{ in, want string }{
		{"branch helper", "branch ? helper"},
		{"branch", "branch ?"},
		{"branch " + nonce, "branch " + nonce},
		{"branch " + nonce + " x", "branch " + nonce + " x"},
		{"branch " + nonce + "0", "branch ? " + nonce + "0"},
		{"branch two words", ""},
		{"branch ", ""},
		{"branch " + strings.Repeat("a", 65), ""},
	} {
		if c.in == "branch " {
			c.want = "branch ?"
		}
		tok, err := mint(t).Attenuate("ok", c.in)
		if c.want == "" {
			if !errors.Is(err, capability.CodeMalformed) {
				t.Errorf("%q: %v, want malformed", c.in, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		in, _ := tok.Inspect()
		got := in.Caveats[1].Condition
		if pre, post, random := strings.Cut(c.want, "?"); random {
			if len(got) != len(c.want)-1+24 || !strings.HasPrefix(got, pre) || !strings.HasSuffix(got, post) {
				t.Errorf("%q became %q, want %q", c.in, got, c.want)
			}
		} else if got != c.want {
			t.Errorf("%q became %q, want %q", c.in, got, c.want)
		}
	}
}

func TestTokensPrintRedacted(t *testing.T) {
	tok := mint(t, "ok secret")
	g, _ := verify(t, verifier(t), tok)
	key := testKey()
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{tok, g, key, *tok, *g, *key} {
			if s := fmt.Sprintf(f, v); strings.Contains(s, tok.Text()[5:]) || strings.Contains(s, "secret") || len(s) > 100 {
				t.Errorf("%s of %T prints %.80q", f, v, s)
			}
		}
	}
}
