package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
)

var testLabel = Label{Cluster: "c1", Incarnation: 3, Purpose: "master", Epoch: 7}

// otherLabels differ from testLabel in one field each, or move bytes between fields.
var otherLabels = map[string]Label{
	"cluster":        {"c2", 3, "master", 7},
	"longer cluster": {"c1\x00", 3, "master", 7},
	"incarnation":    {"c1", 4, "master", 7},
	"purpose":        {"c1", 3, "audit", 7},
	"longer purpose": {"c1", 3, "master\x00", 7},
	"epoch":          {"c1", 3, "master", 8},
	"moved":          {"c", 3, "1master", 7},
}

var badLabels = map[string]Label{
	"no cluster":   {"", 3, "master", 7},
	"no purpose":   {"c1", 3, "", 7},
	"long cluster": {strings.Repeat("c", 256), 3, "master", 7},
	"long purpose": {"c1", 3, strings.Repeat("p", 65), 7},
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// counting yields 0, 1, 2… so that tests can pin what is made of it.
type counting byte

func (c *counting) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(*c)
		*c++
	}
	return len(b), nil
}

func TestSealOpen(t *testing.T) {
	k := value(NewClusterKey(rand.Reader))(t)
	for _, plaintext := range [][]byte{nil, []byte("x"), make([]byte, MaxPlaintext)} {
		sealed := value(k.Seal(rand.Reader, testLabel, plaintext))(t)
		if len(sealed) != len(plaintext)+Overhead {
			t.Errorf("%d bytes sealed are %d", len(plaintext), len(sealed))
		}
		if got := value(k.Open(testLabel, sealed))(t); !bytes.Equal(got, plaintext) {
			t.Errorf("opened %d bytes of %d", len(got), len(plaintext))
		}
	}
	a, b := value(k.Seal(rand.Reader, testLabel, []byte("x")))(t), value(k.Seal(rand.Reader, testLabel, []byte("x")))(t)
	if bytes.Equal(a, b) {
		t.Error("two seals of one plaintext are equal")
	}
}

func TestSealRefuses(t *testing.T) {
	k := value(NewClusterKey(rand.Reader))(t)
	sealed := value(k.Seal(rand.Reader, testLabel, []byte("secret")))(t)
	for name, l := range otherLabels {
		if got, err := k.Open(l, sealed); !errors.Is(err, ErrRefused) || got != nil {
			t.Errorf("label with another %s: %q, %v", name, got, err)
		}
	}
	for name, l := range badLabels {
		if _, err := k.Seal(rand.Reader, l, []byte("x")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: seal: %v", name, err)
		}
		if _, err := k.Open(l, sealed); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: open: %v", name, err)
		}
	}
	for bit := range len(sealed) * 8 {
		bad := slices.Clone(sealed)
		bad[bit/8] ^= 1 << (bit % 8)
		want := ErrRefused
		if bit < 8 {
			want = ErrMalformed
		}
		if got, err := k.Open(testLabel, bad); !errors.Is(err, want) || got != nil {
			t.Errorf("bit %d flipped: %q, %v", bit, got, err)
		}
	}
	for size := range sealed {
		if _, err := k.Open(testLabel, sealed[:size]); err == nil {
			t.Errorf("opened the first %d bytes", size)
		}
	}
	other := value(NewClusterKey(rand.Reader))(t)
	if _, err := other.Open(testLabel, sealed); !errors.Is(err, ErrRefused) {
		t.Errorf("another cluster key: %v", err)
	}
	if _, err := k.Seal(rand.Reader, testLabel, make([]byte, MaxPlaintext+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
	if _, err := k.Open(testLabel, append([]byte{1}, make([]byte, MaxPlaintext+Overhead)...)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long to open: %v", err)
	}
}

func TestSecrets(t *testing.T) {
	k := value(NewClusterKey(rand.Reader))(t)
	s := value(NewSecret(rand.Reader))(t)
	sealed := value(k.SealSecret(rand.Reader, testLabel, s))(t)
	again := value(k.OpenSecret(testLabel, sealed))(t)
	if a, b := value(s.Expose())(t), value(again.Expose())(t); !bytes.Equal(a, b) || len(a) != KeySize {
		t.Error("secret changed on its way")
	}
	if _, err := k.OpenSecret(otherLabels["epoch"], sealed); !errors.Is(err, ErrRefused) {
		t.Errorf("another epoch: %v", err)
	}
	short := value(k.Seal(rand.Reader, testLabel, []byte("short")))(t)
	if _, err := k.OpenSecret(testLabel, short); !errors.Is(err, ErrMalformed) {
		t.Errorf("a sealed value that is no secret: %v", err)
	}
	for _, size := range []int{0, 31, 33} {
		if _, err := SecretFromBytes(make([]byte, size)); !errors.Is(err, ErrMalformed) {
			t.Errorf("secret of %d bytes: %v", size, err)
		}
	}
	b := value(s.Expose())(t)
	b[0] ^= 1
	if bytes.Equal(b, value(s.Expose())(t)) {
		t.Error("Expose gives the secret itself, not a copy")
	}
}

func TestWrap(t *testing.T) {
	k := value(NewClusterKey(rand.Reader))(t)
	id := value(GenerateIdentity(rand.Reader))(t)
	wrapped := value(Wrap(id.Recipient(), testLabel, k))(t)
	if len(wrapped) != WrappedSize {
		t.Errorf("wrapped key of %d bytes", len(wrapped))
	}
	sealed := value(k.Seal(rand.Reader, testLabel, []byte("x")))(t)
	if got := value(value(id.Unwrap(testLabel, wrapped))(t).Open(testLabel, sealed))(t); string(got) != "x" {
		t.Errorf("unwrapped key opens %q", got)
	}
	for name, l := range otherLabels {
		if _, err := id.Unwrap(l, wrapped); !errors.Is(err, ErrRefused) {
			t.Errorf("label with another %s: %v", name, err)
		}
	}
	for name, l := range badLabels {
		if _, err := Wrap(id.Recipient(), l, k); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: wrap: %v", name, err)
		}
		if _, err := id.Unwrap(l, wrapped); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: unwrap: %v", name, err)
		}
	}
	for at := range wrapped {
		bad := slices.Clone(wrapped)
		bad[at] ^= 1
		if _, err := id.Unwrap(testLabel, bad); err == nil {
			t.Errorf("byte %d altered", at)
		}
		if _, err := id.Unwrap(testLabel, wrapped[:at]); !errors.Is(err, ErrMalformed) {
			t.Errorf("first %d bytes: %v", at, err)
		}
	}
	other := value(GenerateIdentity(rand.Reader))(t)
	if _, err := other.Unwrap(testLabel, wrapped); !errors.Is(err, ErrRefused) {
		t.Errorf("another identity: %v", err)
	}
	// A point of low order would make the shared secret known to all.
	low := Recipient{key: [32]byte{1}}
	if _, err := Wrap(low, testLabel, k); !errors.Is(err, ErrMalformed) {
		t.Errorf("recipient of low order: %v", err)
	}
	if _, err := Wrap(Recipient{}, testLabel, k); !errors.Is(err, ErrMalformed) {
		t.Errorf("nobody: %v", err)
	}
}

// The encodings and derivations are permanent. The golden values were made once; derivations and text forms agree with a few lines
// of Python over its hmac and hashlib.
func TestKnownAnswers(t *testing.T) {
	master := value(SecretFromBytes(sequence(32)))(t)
	check := func(name string, got []byte, want string) {
		t.Helper()
		if hex.EncodeToString(got) != want {
			t.Errorf("%s is %x, want %s", name, got, want)
		}
	}
	key := AudienceKey(master, 1, 2, "corp")
	check("audience key", key[:], "a7888274ff645787f00bf9376f65cecce284452ee53de7d1595178eaefdfeee8")
	check("purpose key", value(PurposeKey(master, 7, "audit").Expose())(t), "0792e09884dbfdac89cd6af2e523a31200fd90a43d95e3d538b724eed42d9266")
	check("seal label", value(testLabel.append([]byte{sealVersion}, tagSeal))(t),
		"01"+hex.EncodeToString([]byte("writ/v1/seal"))+"0002"+hex.EncodeToString([]byte("c1"))+"0000000000000003"+
			"0006"+hex.EncodeToString([]byte("master"))+"00000007")
	check("wrap label", value(testLabel.append([]byte{wrapVersion}, tagWrap))(t),
		"01"+hex.EncodeToString([]byte("writ/v1/wrap"))+"0002"+hex.EncodeToString([]byte("c1"))+"0000000000000003"+
			"0006"+hex.EncodeToString([]byte("master"))+"00000007")
	k := value(NewClusterKey(new(counting)))(t)
	check("sealed value", value(k.Seal(new(counting), testLabel, []byte("secret")))(t), "01000102030405060708090a0b3467b569a0916a0617e078ba9417a6ca290f19d893f4")

	id := value(GenerateIdentity(new(counting)))(t)
	check("recipient", id.Recipient().Bytes(), "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f")
	if got, want := id.Recipient().String(), "writ-recipient-hx0cbbdphwjp4jq5p8aemxktdv4mv0mx7nxnw6phq9qkw89r51fgk7xe"; got != want {
		t.Errorf("recipient is %s, want %s", got, want)
	}
	if got, want := value(id.RecoveryText())(t), "WRIT-RECOVERY-000G-40R4-0M30-E209-185G-R38E-1W81-24GK-2GAH-C5RR-34D1-P70X-3RFX-W72S"; got != want {
		t.Errorf("recovery identity is %s, want %s", got, want)
	}
	wrapped, _ := hex.DecodeString("01b5e56c24f7d78cbe6d7371ecaea920f5d5aa6f7204e4737dec4776bd85d337791bb39cd119029f09ea897aca0944e0d064dd1cd5b873d7c2832643a6ff4c6de76fb708db906848c75585c2d58d520fc8")
	if _, err := id.Unwrap(testLabel, wrapped); err != nil {
		t.Errorf("a key that was wrapped before: %v", err)
	}
}

func sequence(n int) []byte {
	b := make([]byte, n)
	new(counting).Read(b)
	return b
}

func TestDerivationsAreSeparate(t *testing.T) {
	master := value(SecretFromBytes(sequence(32)))(t)
	seen := map[[32]byte]string{}
	add := func(name string, key [32]byte) {
		t.Helper()
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have one key", name, other)
		}
		seen[key] = name
	}
	add("master", [32]byte(value(master.Expose())(t)))
	for _, audience := range []string{"", "a", "a\x00", "aa"} {
		for epoch := range uint32(3) {
			for generation := range uint32(3) {
				add(fmt.Sprint(audience, epoch, generation), AudienceKey(master, epoch, generation, audience))
			}
			add(fmt.Sprint("purpose", audience, epoch), [32]byte(value(PurposeKey(master, epoch, audience).Expose())(t)))
		}
	}
	other := value(SecretFromBytes(append(sequence(31), 9)))(t)
	add("another master", AudienceKey(other, 1, 1, "a"))
	info := "writ/v1/audience" + "\x00\x00\x00\x01" + "\x00\x00\x00\x02" + "\x00\x00\x00\x04" + "corp"
	want := value(hkdf.Key(sha256.New, sequence(32), nil, info, 32))(t)
	if got := AudienceKey(master, 1, 2, "corp"); !bytes.Equal(got[:], want) {
		t.Error("audience key is not what its documentation says")
	}
}

func TestDestroy(t *testing.T) {
	k := value(NewClusterKey(rand.Reader))(t)
	s := value(NewSecret(rand.Reader))(t)
	id := value(GenerateIdentity(rand.Reader))(t)
	sealed := value(k.Seal(rand.Reader, testLabel, []byte("x")))(t)
	wrapped := value(Wrap(id.Recipient(), testLabel, k))(t)
	bytesOf := k.box.key
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for range 50 {
				if _, err := k.Open(testLabel, sealed); err != nil && !errors.Is(err, ErrDestroyed) {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		k.Destroy()
		s.Destroy()
		id.Destroy()
	}
	users.Wait()
	if *bytesOf != [KeySize]byte{} {
		t.Error("the key's bytes were left in memory")
	}
	_, openErr := k.Open(testLabel, sealed)
	_, sealErr := k.Seal(rand.Reader, testLabel, nil)
	_, wrapErr := Wrap(id.Recipient(), testLabel, k)
	_, unwrapErr := id.Unwrap(testLabel, wrapped)
	_, exposeErr := s.Expose()
	_, textErr := id.RecoveryText()
	_, zeroErr := new(ClusterKey).Open(testLabel, sealed)
	for name, err := range map[string]error{
		"open": openErr, "seal": sealErr, "wrap": wrapErr, "unwrap": unwrapErr, "expose": exposeErr, "text": textErr, "zero key": zeroErr,
		"identity file": WriteIdentityFile(t.TempDir()+"/id", id, nil),
	} {
		if !errors.Is(err, ErrDestroyed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a destroyed master gave a key")
		}
	}()
	AudienceKey(s, 1, 1, "corp")
}

func TestRandomnessThatFails(t *testing.T) {
	short := func() io.Reader { return bytes.NewReader(make([]byte, 5)) }
	k := value(NewClusterKey(rand.Reader))(t)
	_, keyErr := NewClusterKey(short())
	_, secretErr := NewSecret(short())
	_, identityErr := GenerateIdentity(short())
	_, sealErr := k.Seal(short(), testLabel, nil)
	for name, err := range map[string]error{"key": keyErr, "secret": secretErr, "identity": identityErr, "seal": sealErr} {
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRedaction(t *testing.T) {
	secret := bytes.Repeat([]byte{0xab}, KeySize)
	s := value(SecretFromBytes(secret))(t)
	k := value(NewClusterKey(bytes.NewReader(secret)))(t)
	id := value(GenerateIdentity(bytes.NewReader(secret)))(t)
	var out bytes.Buffer
	type wrap struct {
		Public any
		hidden any
	}
	for _, v := range []any{s, k, id, wrap{s, s}, wrap{k, k}, wrap{id, id}, []any{s, k, id}, *wrapOf(s, k, id)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
		out.Write(value(json.Marshal(v))(t))
	}
	for _, v := range []any{s, k, id} {
		if got := fmt.Sprintf("%v %+v %#v %s %x", v, v, v, v, v); got != strings.TrimSuffix(strings.Repeat(redactedText+" ", 5), " ") {
			t.Errorf("%T prints %s", v, got)
		}
		if got := value(json.Marshal(map[string]any{"v": v}))(t); string(got) != `{"v":"[redacted]"}` {
			t.Errorf("%T is %s in JSON", v, got)
		}
	}
	for _, leak := range []string{"\xab\xab\xab", "ababab", "ABABAB", "171 171", "171, 171", "0xab, 0xab", "10101011 10101011",
		base64.StdEncoding.EncodeToString(secret)[:6]} {
		if bytes.Contains(out.Bytes(), []byte(leak)) {
			t.Errorf("output holds %q", leak)
		}
	}
}

// wrapOf holds the secrets in fields that are not exported, where fmt does not call methods.
func wrapOf(s *Secret, k *ClusterKey, id *Identity) *struct {
	s  *Secret
	k  *ClusterKey
	id *Identity
} {
	return &struct {
		s  *Secret
		k  *ClusterKey
		id *Identity
	}{s, k, id}
}
