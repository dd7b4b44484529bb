package capability

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func remintToken(t *testing.T, caveats ...NewCaveat) (*RootKey, *Token) {
	t.Helper()
	key := NewRootKey([32]byte{1, 2, 3})
	token, err := MintCaveats(key, Identifier{
		Epoch: 1, ID: NewTokenID(1_700_000_000_000, [10]byte{1}), NotAfter: time.UnixMilli(1_700_000_300_000),
		Audience: "corp", Subject: "agent-42",
	}, caveats...)
	if err != nil {
		t.Fatal(err)
	}
	return key, token
}

func TestRemintIsTheSameToken(t *testing.T) {
	discharger, err := NewDischargerKey([32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	for name, caveats := range map[string][]NewCaveat{
		"none":        nil,
		"first party": {{Condition: "action read"}, {Condition: "max-calls 3"}},
		"third party": {{Condition: "action read"}, {ThirdParty: &ThirdParty{Condition: "approved x y"}, To: discharger.Public(), Location: "here"}},
	} {
		key, token := remintToken(t, caveats...)
		unsigned := token.Unsigned()
		if bytes.Contains(token.Bytes()[:len(unsigned)], token.Bytes()[len(token.Bytes())-32:]) || len(unsigned) != len(token.Bytes())-34 {
			t.Errorf("%s: the signature is still there", name)
		}
		again, err := Remint(key, unsigned)
		if err != nil || again.Text() != token.Text() {
			t.Errorf("%s: reminted is another token (%v)", name, err)
		}
		other, err := Remint(NewRootKey([32]byte{7}), unsigned)
		if err != nil || other.Text() == token.Text() {
			t.Errorf("%s: another key gave the same token (%v)", name, err)
		}
		branches, err := again.VerifyChain(key)
		if err != nil || len(branches) != 1+len(caveats) || branches[len(caveats)] != token.Branch() {
			t.Errorf("%s: branches %v, %v", name, branches, err)
		}
		if _, err := other.VerifyChain(key); !errors.Is(err, CodeBadSignature) {
			t.Errorf("%s: a chain under another key: %v", name, err)
		}
	}
}

func TestUnsignedLeavesDischargesOut(t *testing.T) {
	discharger, _ := NewDischargerKey([32]byte{9})
	key, token := remintToken(t, NewCaveat{ThirdParty: &ThirdParty{Condition: "approved x y"}, To: discharger.Public(), Location: "here"})
	opened, err := discharger.OpenCaveat(token.Missing()[0].CaveatID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := opened.Discharge()
	if err != nil {
		t.Fatal(err)
	}
	set, err := token.WithDischarges(d)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(set.Unsigned(), token.Unsigned()) {
		t.Error("discharges are part of the unsigned form")
	}
	if _, err := set.VerifyChain(key); err != nil {
		t.Error(err)
	}
}

func TestRemintRefusesWhatIsNoMacaroon(t *testing.T) {
	key, token := remintToken(t, NewCaveat{Condition: "action read"})
	unsigned := token.Unsigned()
	for i := range unsigned {
		if _, err := Remint(key, unsigned[:i]); !errors.Is(err, CodeMalformed) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := Remint(key, token.Bytes()); !errors.Is(err, CodeMalformed) {
		t.Errorf("with a signature: %v", err)
	}
	if _, err := Remint(key, make([]byte, MaxTokenSize)); !errors.Is(err, CodeTooLarge) {
		t.Errorf("too large: %v", err)
	}
}
