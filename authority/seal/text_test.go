package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestTextForms(t *testing.T) {
	for range 20 {
		id := value(GenerateIdentity(rand.Reader))(t)
		text := id.Recipient().String()
		if r := value(ParseRecipient(text))(t); r != id.Recipient() {
			t.Errorf("%s read as %s", text, r)
		}
		recovery := value(id.RecoveryText())(t)
		again := value(ParseRecovery(recovery))(t)
		if again.Recipient() != id.Recipient() {
			t.Errorf("recovery identity read as another")
		}
		k := value(NewClusterKey(rand.Reader))(t)
		wrapped := value(Wrap(id.Recipient(), testLabel, k))(t)
		value(again.Unwrap(testLabel, wrapped))(t)
	}
}

func TestRecipientText(t *testing.T) {
	id := value(GenerateIdentity(rand.Reader))(t)
	b := value(json.Marshal(id.Recipient()))(t)
	var r Recipient
	if err := json.Unmarshal(b, &r); err != nil || r != id.Recipient() {
		t.Errorf("%s: %v", b, err)
	}
	text := id.Recipient().String()
	for name, bad := range map[string]string{
		"empty":           "",
		"prefix alone":    recipientPrefix,
		"space":           text + " ",
		"line break":      text[:len(text)-2] + "\n" + text[len(text)-1:],
		"upper case":      strings.ToUpper(text),
		"upper body":      recipientPrefix + strings.ToUpper(text[len(recipientPrefix):]),
		"short":           text[:len(text)-1],
		"long":            text + "0",
		"recovery prefix": recoveryPrefix + text[len(recipientPrefix):],
		"zero key":        Recipient{}.String(),
	} {
		if r, err := ParseRecipient(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if _, err := RecipientFromBytes(make([]byte, 31)); !errors.Is(err, ErrMalformed) {
		t.Errorf("31 bytes: %v", err)
	}
}

// Every single wrong character and every swap of neighbors is noticed.
func TestMistypedTextIsFound(t *testing.T) {
	id := value(GenerateIdentity(new(counting)))(t) // fixed: one mistake in 2^24 would pass
	parsers := map[string]func(string) error{
		id.Recipient().String(): func(s string) error { _, err := ParseRecipient(s); return err },
		value(id.RecoveryText())(t): func(s string) error {
			_, err := ParseRecovery(s)
			if err != nil && len(s) > 24 && strings.Contains(err.Error(), s[20:24]) {
				t.Errorf("error quotes the identity: %v", err)
			}
			return err
		},
	}
	for text, parse := range parsers {
		if err := parse(text); err != nil {
			t.Fatal(err)
		}
		for at := range text {
			for _, c := range []byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-= \n\x00\xff") {
				if c == text[at] {
					continue
				}
				bad := text[:at] + string([]byte{c}) + text[at+1:]
				if err := parse(bad); !errors.Is(err, ErrMalformed) {
					t.Errorf("character %d as %q: %v", at, c, err)
				}
			}
			if at > 0 && text[at] != text[at-1] {
				bad := text[:at-1] + text[at:at+1] + text[at-1:at] + text[at+1:]
				if err := parse(bad); !errors.Is(err, ErrMalformed) {
					t.Errorf("characters %d and %d swapped: %v", at-1, at, err)
				}
			}
			if err := parse(text[:at]); !errors.Is(err, ErrMalformed) {
				t.Errorf("first %d characters: %v", at, err)
			}
		}
	}
}

func FuzzText(f *testing.F) {
	id := value(GenerateIdentity(new(counting)))(f)
	f.Add(id.Recipient().String())
	f.Add(value(id.RecoveryText())(f))
	f.Add(recoveryPrefix + strings.Repeat("0000-", 13) + "0000")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRecipient(s); err == nil && r.String() != s {
			t.Fatalf("accepted %q as %s", s, r)
		}
		if id, err := ParseRecovery(s); err == nil && value(id.RecoveryText())(t) != s {
			t.Fatalf("accepted %q, writes another", s)
		}
	})
}

func FuzzOpen(f *testing.F) {
	k := value(NewClusterKey(new(counting)))(f)
	id := value(GenerateIdentity(new(counting)))(f)
	f.Add(value(k.Seal(new(counting), testLabel, []byte("secret")))(f))
	f.Add(value(Wrap(id.Recipient(), testLabel, k))(f))
	good := value(k.Seal(new(counting), testLabel, []byte("secret")))(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := k.Open(testLabel, b); err == nil && !bytes.Equal(b, good) {
			t.Fatalf("forged %x, opens as %x", b, got)
		}
		if _, err := id.Unwrap(testLabel, b); err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	})
}
