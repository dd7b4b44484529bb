package capability_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/nacl/secretbox"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// The generator builds tokens from the format's description, with crypto/hmac
// and nothing of package capability, so that a vector is a second opinion and
// not a recording. It draws no randomness.

// chainKey is what a root key becomes before it signs.
func chainKey(secret []byte) [32]byte {
	var generator [32]byte
	copy(generator[:], "macaroons-key-generator")
	return stdHMAC(generator, secret)
}

// rawField is one field of the version 2 format.
type rawField struct {
	typ  byte
	data []byte
}

func encodeFields(fs ...rawField) (out []byte) {
	for _, f := range fs {
		out = append(out, f.typ)
		out = binary.AppendUvarint(out, uint64(len(f.data)))
		out = append(out, f.data...)
	}
	return append(out, 0)
}

// rawMacaroon is a macaroon under construction.
type rawMacaroon struct {
	body []byte // version, header and caveats
	sig  [32]byte
	pts  []string
}

func newRaw(key [32]byte, id []byte) *rawMacaroon {
	m := &rawMacaroon{body: append([]byte{2}, encodeFields(rawField{2, id})...), sig: stdHMAC(key, id)}
	m.pts = []string{branchID(m.sig[:])}
	return m
}

func (m *rawMacaroon) first(conditions ...string) *rawMacaroon {
	for _, c := range conditions {
		m.body = append(m.body, encodeFields(rawField{2, []byte(c)})...)
		m.sig = stdHMAC(m.sig, []byte(c))
		m.pts = append(m.pts, branchID(m.sig[:]))
	}
	return m
}

// third adds a third-party caveat with this caveat key.
func (m *rawMacaroon) third(key []byte, id, location string) *rawMacaroon {
	sealed := chainKey(key)
	sum := sha256.Sum256([]byte(id))
	nonce := [24]byte(sum[:24])
	vid := secretbox.Seal(nonce[:], sealed[:], &nonce, &m.sig)
	return m.thirdVID(vid, id, location)
}

func (m *rawMacaroon) thirdVID(vid []byte, id, location string) *rawMacaroon {
	fs := []rawField{{2, []byte(id)}, {4, vid}}
	if location != "" {
		fs = append([]rawField{{1, []byte(location)}}, fs...)
	}
	m.body = append(m.body, encodeFields(fs...)...)
	v, i := stdHMAC(m.sig, vid), stdHMAC(m.sig, []byte(id))
	m.sig = stdHMAC(m.sig, append(v[:], i[:]...))
	m.pts = append(m.pts, branchID(m.sig[:]))
	return m
}

// bind ties a discharge to a root by signature.
func (m *rawMacaroon) bind(root *rawMacaroon) *rawMacaroon {
	var zero [32]byte
	a, b := stdHMAC(zero, root.sig[:]), stdHMAC(zero, m.sig[:])
	m.sig = stdHMAC(zero, append(a[:], b[:]...))
	return m
}

func (m *rawMacaroon) bytes() []byte {
	out := append(append([]byte(nil), m.body...), 0, 6, 32)
	return append(out, m.sig[:]...)
}

func rawText(sets ...[]byte) string {
	var all []byte
	for _, s := range sets {
		all = append(all, s...)
	}
	return "writ_" + base64.RawURLEncoding.EncodeToString(all)
}

// rawIdentifier is an identifier by its layout.
type rawIdentifier struct {
	version, issued   byte
	epoch, generation uint32
	id                string // hexadecimal
	notAfter          int64
	audience, subject string
}

func goodIdentifier() rawIdentifier {
	return rawIdentifier{1, 0, 7, 2, "019fe3c2a0007a0b8c0d0e0f10111213", now.Add(5 * time.Minute).UnixMilli(), "corp", "agent-42"}
}

func (r rawIdentifier) bytes() []byte {
	id, err := hex.DecodeString(r.id)
	if err != nil {
		panic(err)
	}
	b := binary.BigEndian.AppendUint32([]byte{r.version}, r.epoch)
	b = binary.BigEndian.AppendUint32(b, r.generation)
	b = append(b, id...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.notAfter))
	b = append(b, r.issued, byte(len(r.audience)))
	b = append(b, r.audience...)
	b = append(b, byte(len(r.subject)))
	return append(b, r.subject...)
}

const vectorTokenID = "019fe3c2-a000-7a0b-8c0d-0e0f10111213"

var vectorKey = sha256.Sum256([]byte("a golden key"))

// root starts a good token.
func rawRoot(conditions ...string) *rawMacaroon {
	return newRaw(chainKey(vectorKey[:]), goodIdentifier().bytes()).first(conditions...)
}

func rootOf(id rawIdentifier, conditions ...string) *rawMacaroon {
	return newRaw(chainKey(vectorKey[:]), id.bytes()).first(conditions...)
}

// vectorMaker collects the vectors of one file.
type vectorMaker struct{ out []vector }

func (m *vectorMaker) add(name, token, expect string, change ...func(*vector)) {
	v := vector{
		Name: name, Key: hex.EncodeToString(vectorKey[:]), Token: token, Expect: expect,
		Request: vectorRequest{Now: now, Action: "read", Resource: []string{"files", "q3"}},
	}
	for _, c := range change {
		c(&v)
	}
	m.out = append(m.out, v)
}

func (m *vectorMaker) root(name string, r *rawMacaroon, expect string, change ...func(*vector)) {
	m.add(name, rawText(r.bytes()), expect, change...)
}

// makeVectors makes every file's vectors, without the one of sealed caveat ids.
func makeVectors(t *testing.T) map[string][]vector {
	return map[string][]vector{
		"text": textVectors(), "format": formatVectors(), "chain": chainVectors(), "lifetime": lifetimeVectors(),
		"revocation": revocationVectors(), "discharge": dischargeVectors(), "caveats": caveatVectors(t),
	}
}

func textVectors() []vector {
	m := new(vectorMaker)
	good := rawText(rawRoot("action read").bytes())
	body := good[5:]
	m.add("good", good, "ok")
	m.add("no prefix", body, "malformed")
	m.add("upper-case prefix", "WRIT_"+body, "malformed")
	m.add("empty", "", "malformed")
	m.add("prefix alone", "writ_", "malformed")
	m.add("padded", good+strings.Repeat("=", 4-len(body)%4), "malformed")
	m.add("line break inside", good[:40]+"\n"+good[40:], "malformed")
	m.add("line break at the end", good+"\n", "malformed")
	m.add("space at the front", " "+good, "malformed")
	m.add("standard alphabet", good[:30]+"+"+good[31:], "malformed")
	digits := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(digits, good[len(good)-1])
	m.add("bits past the last byte", good[:len(good)-1]+digits[last+1:last+2], "malformed")
	m.add("one digit too many", good[:len(good)-len(body)%4]+"A", "malformed")
	return m.out
}

func formatVectors() []vector {
	m := new(vectorMaker)
	r := rawRoot("action read")
	b := r.bytes()
	c := strings.Index(string(b), "\x02\x0baction read\x00")
	splice := func(at, skip int, insert ...byte) string {
		return rawText(b[:at], insert, b[at+skip:])
	}
	m.add("good", rawText(b), "ok")
	m.add("version 1", rawText([]byte("0014location \n")), "malformed")
	m.add("version 3", rawText([]byte{3}, b[1:]), "malformed")
	m.add("truncated in the signature", rawText(b[:len(b)-1]), "malformed")
	m.add("truncated in a caveat", rawText(b[:c+5]), "malformed")
	m.add("trailing byte", rawText(b, []byte{0}), "malformed")
	m.add("length not minimal", splice(c+1, 1, 0x8b, 0), "malformed")
	m.add("field type not minimal", splice(c, 1, 0x82, 0), "malformed")
	m.add("empty verification id", splice(c+13, 0, 4, 0), "malformed")
	m.add("empty location", splice(1, 0, 1, 0), "malformed")
	m.add("location of a first-party caveat", splice(c, 0, 1, 1, 'x'), "malformed")
	m.add("unknown field", splice(c+13, 0, 5, 1, 'x'), "malformed")
	m.add("fields out of order", splice(c+13, 0, 1, 1, 'x'), "malformed")
	m.add("no identifier", rawText([]byte{2, 0, 0, 6, 32}, b[len(b)-32:]), "malformed")
	m.add("signature of 31 bytes", rawText(b[:len(b)-33], []byte{31}, b[len(b)-31:]), "malformed")
	m.add("location of the token", rawText([]byte{2, 1, 4}, []byte("here"), b[1:]), "ok")
	many := make([]string, 65)
	for i := range many {
		many[i] = "action read"
	}
	m.root("64 caveats", rawRoot(many[:64]...), "ok")
	m.root("65 caveats", rawRoot(many...), "too_large")
	m.root("more than 16 KiB", rawRoot(strings.Repeat("x", 16<<10)), "too_large")
	ds := make([][]byte, 18)
	for i := range ds {
		ds[i] = b
	}
	m.add("17 discharges", rawText(ds...), "too_large")
	for _, x := range []struct {
		name   string
		expect string
		change func(*rawIdentifier)
	}{
		{"identifier version 2", "malformed", func(i *rawIdentifier) { i.version = 2 }},
		{"empty audience", "malformed", func(i *rawIdentifier) { i.audience = "" }},
		{"audience with a space", "malformed", func(i *rawIdentifier) { i.audience = "co rp" }},
		{"audience of 101 bytes", "malformed", func(i *rawIdentifier) { i.audience = strings.Repeat("a", 101) }},
		{"empty subject", "malformed", func(i *rawIdentifier) { i.subject = "" }},
		{"subject beyond ASCII", "malformed", func(i *rawIdentifier) { i.subject = "ägent" }},
		{"subject of 200 bytes", "ok", func(i *rawIdentifier) { i.subject = strings.Repeat("a", 200) }},
		{"subject of 201 bytes", "malformed", func(i *rawIdentifier) { i.subject = strings.Repeat("a", 201) }},
		{"not-after of 0", "malformed", func(i *rawIdentifier) { i.notAfter = 0 }},
		{"not-after of 2^48", "malformed", func(i *rawIdentifier) { i.notAfter = 1 << 48 }},
		{"65 issued", "malformed", func(i *rawIdentifier) { i.issued = 65 }},
		{"one issued, one there", "ok", func(i *rawIdentifier) { i.issued = 1 }},
		{"two issued, one there", "malformed", func(i *rawIdentifier) { i.issued = 2 }},
	} {
		id := goodIdentifier()
		x.change(&id)
		m.root(x.name, rootOf(id, "action read"), x.expect)
	}
	return m.out
}

func chainVectors() []vector {
	m := new(vectorMaker)
	branches := func(r *rawMacaroon) func(*vector) { return func(v *vector) { v.Branches = r.pts } }
	none, five := rawRoot(), rawRoot("action read", "resource files/**", "branch 0123456789abcdef01234567 helper", "resource files/q3", "action read write")
	m.root("no caveat", none, "ok", branches(none))
	m.root("five caveats", five, "ok", branches(five))
	long := rawRoot(`resource files/q3 "` + strings.Repeat("x", 500) + `"`)
	m.root("a caveat of more than 400 bytes", long, "ok", branches(long))
	for _, i := range []int{0, 31} {
		b := five.bytes()
		b[len(b)-32+i] ^= 0x80
		m.add("signature altered at byte "+string(rune('0'+i/10))+string(rune('0'+i%10)), rawText(b), "bad_signature")
	}
	m.add("caveat altered", rawText([]byte(strings.Replace(string(five.bytes()), "files/q3", "files/q4", 1))), "bad_signature")
	swapped := rawRoot("resource files/**", "action read")
	swapped.sig = rawRoot("action read", "resource files/**").sig
	m.root("caveats in another order", swapped, "bad_signature")
	dropped := rawRoot("action read")
	dropped.sig = rawRoot("action read", "action write").sig
	m.root("last caveat dropped", dropped, "bad_signature")
	m.root("minted with another key", newRaw(chainKey([]byte("another")), goodIdentifier().bytes()), "bad_signature")
	m.root("root key used without its derivation", newRaw(vectorKey, goodIdentifier().bytes()), "bad_signature")
	m.root("no key of the epoch", none, "unknown_key", func(v *vector) { v.NoKey = []vectorEpoch{{7, 2}} })
	other := goodIdentifier()
	other.audience = "other"
	m.root("another audience", rootOf(other), "unknown_key")
	other.notAfter = 1
	m.root("another audience, expired", rootOf(other), "unknown_key")
	expired := goodIdentifier()
	expired.notAfter = 1
	forged := rootOf(expired)
	forged.sig[0] ^= 1
	m.root("forged and expired", forged, "bad_signature")
	return m.out
}

func lifetimeVectors() []vector {
	m := new(vectorMaker)
	at := func(d time.Duration) func(*vector) { return func(v *vector) { v.Request.Now = now.Add(d) } }
	m.root("a millisecond before not-after", rawRoot(), "ok", at(5*time.Minute-time.Millisecond))
	m.root("at not-after", rawRoot(), "expired", at(5*time.Minute))
	m.root("a later time-before widens nothing", rawRoot("time-before 2027-01-01T00:00:00Z"), "expired", at(time.Hour))
	m.root("before time-before", rawRoot("time-before 2026-11-24T08:00:01Z"), "ok")
	m.root("at time-before", rawRoot("time-before 2026-11-24T08:00:00Z"), "expired")
	m.root("at time-after", rawRoot("time-after 2026-11-24T08:00:00Z"), "ok")
	m.root("before time-after", rawRoot("time-after 2026-11-24T08:00:00.001Z"), "not_yet_valid")
	m.root("another zone", rawRoot("time-before 2026-11-24T09:00:01+01:00"), "ok")
	m.root("lower-case t", rawRoot("time-before 2026-11-24t09:00:01Z"), "unknown_caveat")
	return m.out
}

func revocationVectors() []vector {
	m := new(vectorMaker)
	leaf := rawRoot("branch 0123456789abcdef01234567 left", "action read")
	sibling := rawRoot("branch 76543210fedcba9876543210 right", "action read")
	revoked := func(change func(*vectorRevoked)) func(*vector) { return func(v *vector) { change(&v.Revoked) } }
	branch := func(b string) func(*vector) {
		return revoked(func(r *vectorRevoked) { r.Branches = []vectorBranch{{vectorTokenID, b}} })
	}
	issued := goodIdentifier()
	stamp := must48(issued.id)
	m.root("nothing of it", leaf, "ok", revoked(func(r *vectorRevoked) { r.Tokens = []string{"019fe3c2-a000-7a0b-8c0d-0e0f10111214"} }))
	m.root("token", leaf, "revoked", revoked(func(r *vectorRevoked) { r.Tokens = []string{vectorTokenID} }))
	m.root("its last branch", leaf, "revoked", branch(leaf.pts[2]))
	m.root("a branch that it comes from", leaf, "revoked", branch(leaf.pts[1]))
	m.root("the branch of the identifier", leaf, "revoked", branch(leaf.pts[0]))
	m.root("the sibling's branch", sibling, "ok", branch(leaf.pts[1]))
	m.root("subject, at its stamp", leaf, "revoked", revoked(func(r *vectorRevoked) { r.Subjects = []vectorCutoff{{"agent-42", stamp}} }))
	m.root("subject, before its stamp", leaf, "ok", revoked(func(r *vectorRevoked) { r.Subjects = []vectorCutoff{{"agent-42", stamp - 1}} }))
	m.root("audience", leaf, "revoked", revoked(func(r *vectorRevoked) { r.Audiences = []vectorCutoff{{"corp", stamp}} }))
	m.root("epoch", leaf, "revoked", revoked(func(r *vectorRevoked) { r.Epochs = []uint32{7} }))
	m.root("another epoch", leaf, "ok", revoked(func(r *vectorRevoked) { r.Epochs = []uint32{8} }))
	device := strings.Repeat("ab", 32)
	m.root("device", rawRoot("device "+device), "revoked", revoked(func(r *vectorRevoked) { r.Devices = []string{device} }))
	m.root("device, after a caveat that denies", rawRoot("action write", "device "+device), "revoked",
		revoked(func(r *vectorRevoked) { r.Devices = []string{device} }))
	m.root("holder", rawRoot("holder "+vectorHolder), "revoked", revoked(func(r *vectorRevoked) { r.Holders = []string{vectorHolder} }),
		func(v *vector) { v.Request.Proves = []string{vectorHolder} })
	return m.out
}

func must48(id string) int64 {
	b, err := hex.DecodeString("0000" + id[:12])
	if err != nil {
		panic(err)
	}
	return int64(binary.BigEndian.Uint64(b))
}

var vectorHolder = capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: sha256.Sum256([]byte("a holder's key"))}.String()

func dischargeVectors() []vector {
	m := new(vectorMaker)
	key, id := []byte("a caveat key of thirty-two bytes"), "a caveat id"
	root := func() *rawMacaroon { return rawRoot("action read").third(key, id, "https://d.example") }
	raw := func(conditions ...string) *rawMacaroon { return newRaw(chainKey(key), []byte(id)).first(conditions...) }
	r := root()
	bound := "bound " + r.pts[1]
	set := func(name, expect string, root *rawMacaroon, ds ...*rawMacaroon) {
		all := [][]byte{root.bytes()}
		for _, d := range ds {
			all = append(all, d.bytes())
		}
		m.add(name, rawText(all...), expect)
	}
	set("bound by branch", "ok", r, raw(bound))
	m.root("bound by branch, in a header of its own", r, "ok", func(v *vector) { v.Beside = []string{rawText(raw(bound).bytes())} })
	set("bound by branch, root narrowed since", "ok", root().first("resource files/**"), raw(bound))
	set("bound by signature", "ok", r, raw().bind(r))
	set("bound by signature, root narrowed since", "discharge_invalid", root().first("resource files/**"), raw().bind(r))
	set("bound both ways", "ok", r, raw(bound).bind(r))
	set("bound by neither", "discharge_invalid", r, raw())
	set("bound to a branch elsewhere", "discharge_invalid", r, raw("bound "+rawRoot("action write").pts[1]))
	set("bound here and elsewhere", "discharge_invalid", r, raw(bound, "bound "+rawRoot("action write").pts[1]))
	set("bound by signature, and elsewhere by branch", "discharge_invalid", r, raw("bound "+rawRoot("action write").pts[1]).bind(r))
	set("bound in upper case", "discharge_invalid", r, raw(strings.ToUpper(bound)[:6]+bound[6:]))
	set("branch in upper case", "discharge_invalid", r, raw("bound "+strings.ToUpper(r.pts[1])))
	set("bound in the root", "unknown_caveat", rawRoot(bound))
	set("missing", "discharge_required", r)
	set("of nothing", "discharge_invalid", rawRoot("action read"), raw(bound))
	set("twice", "discharge_invalid", r, raw(bound), raw(bound))
	set("of another token", "discharge_required", r, newRaw(chainKey(key), []byte("another caveat id")).first(bound))
	set("with another caveat key", "discharge_invalid", r, newRaw(chainKey([]byte("another")), []byte(id)).first(bound))
	forged := raw(bound)
	forged.sig[31] ^= 1
	set("signature altered", "discharge_invalid", r, forged)
	set("verification id of the wrong size", "discharge_invalid", rawRoot().thirdVID(make([]byte, 71), id, ""), raw(bound))
	set("verification id that does not open", "discharge_invalid", rawRoot().thirdVID(make([]byte, 72), id, ""), raw(bound))
	set("verification id that does not open, discharged with zeros", "discharge_invalid",
		rawRoot().thirdVID(make([]byte, 72), id, ""), newRaw([32]byte{}, []byte(id)).first("bound "+rawRoot().pts[0]))
	set("with a caveat that denies", "action_denied", r, raw("action write", bound))
	set("with a caveat appended by its holder", "action_denied", r, raw(bound, "action write"))
	set("with a max-calls", "unknown_caveat", r, raw("max-calls 3", bound))

	inner := []byte("an inner caveat key of 32 bytes.")
	nested := raw(bound).third(inner, "an inner id", "")
	innermost := newRaw(chainKey(inner), []byte("an inner id")).first(bound)
	set("nested", "ok", r, nested, innermost)
	set("nested, in another order", "ok", r, innermost, nested)
	set("nested, the inner missing", "discharge_required", r, nested)
	cycle := raw(bound).third(key, id, "")
	set("of itself", "discharge_invalid", r, cycle)

	declare := func(name string, issued byte, d *rawMacaroon, want ...vectorField) {
		id := goodIdentifier()
		id.issued = issued
		root := rootOf(id, "action read").third(key, "a caveat id", "")
		d = d.first("bound " + root.pts[1])
		m.add(name, rawText(root.bytes(), d.bytes()), "ok", func(v *vector) { v.Declared = want })
	}
	declare("declares to an issued caveat", 2, raw("declare device d1"), vectorField{"device", "string", "d1"})
	set("declare in the root", "unknown_caveat", rawRoot("declare device d1"))
	return m.out
}

func caveatVectors(t *testing.T) []vector {
	m := new(vectorMaker)
	req := func(change func(*vectorRequest)) func(*vector) { return func(v *vector) { change(&v.Request) } }
	for _, c := range []struct{ condition, expect string }{
		{"action read", "ok"}, {"action write read", "ok"}, {"action write", "action_denied"}, {"action Read", "action_denied"},
		{"action", "unknown_caveat"}, {"action  read", "unknown_caveat"}, {"action read ", "unknown_caveat"},
		{"resource files/q3", "ok"}, {"resource files/*", "ok"}, {"resource files/**", "ok"}, {"resource **", "ok"}, {"resource x files/q3", "ok"},
		{"resource files", "resource_denied"}, {"resource files/q3/**", "resource_denied"}, {"resource *", "resource_denied"},
		{"resource Files/q3", "resource_denied"}, {"resource /files/q3", "unknown_caveat"}, {"resource files/q*", "unknown_caveat"},
		{"resource files/../q3", "unknown_caveat"},
		{"argument limit <= 100", "ok"}, {"argument limit = 1e1", "ok"}, {"argument limit < 10", "argument_denied"},
		{"argument other = 10", "argument_denied"}, {`argument limit is "10"`, "argument_denied"}, {"argument limit ~ 10", "unknown_caveat"},
		{"argument user prefix agent-", "ok"}, {"argument user in a agent-7", "ok"}, {"argument dry is true", "ok"}, {`argument dry is "true"`, "argument_denied"},
		{"service reports", "ok"}, {"service mail", "service_denied"},
		{"client-ip 10.0.0.0/8", "ok"}, {"client-ip 10.1.2.3", "ok"}, {"client-ip 192.0.2.0/24", "client_denied"}, {"client-ip 10.0.0.1/8", "unknown_caveat"},
		{"context env is prod", "ok"}, {"context env is test", "context_denied"}, {"context posture is ok", "context_denied"},
		{"max-calls 1", "ok"}, {"max-calls 0", "budget_exhausted"}, {"max-calls -1", "unknown_caveat"},
		{"log minimal", "ok"}, {"log full", "obligation"},
		{"branch 0123456789abcdef01234567", "ok"}, {"branch short", "unknown_caveat"},
		{"holder " + vectorHolder, "holder_proof"}, {"ext:unheard of", "unknown_caveat"}, {"unheard-of", "unknown_caveat"}, {"", "unknown_caveat"},
	} {
		name := c.condition
		if name == "" {
			name = "empty condition"
		}
		m.root(name, rawRoot(c.condition), c.expect, req(func(r *vectorRequest) {
			r.Service, r.Client = "reports", "10.1.2.3"
			r.Arguments = []vectorField{{"limit", "number", "10"}, {"user", "string", "agent-7"}, {"dry", "bool", "true"}}
			r.Context = []vectorField{{"env", "string", "prod"}}
		}))
	}
	m.root("proof of the holder's key", rawRoot("holder "+vectorHolder), "ok", req(func(r *vectorRequest) { r.Proves = []string{vectorHolder} }))
	m.root("resource with a dot segment", rawRoot("resource **"), "resource_denied", req(func(r *vectorRequest) { r.Resource = []string{"files", ".."} }))
	m.root("resource with an encoded slash", rawRoot("resource **"), "resource_denied", req(func(r *vectorRequest) { r.Resource = []string{"files%2fq3"} }))
	m.root("no resource", rawRoot("resource **"), "resource_denied", req(func(r *vectorRequest) { r.Resource = nil }))
	m.root("five max-calls", rawRoot("max-calls 1", "max-calls 1", "max-calls 1", "max-calls 1", "max-calls 1"), "too_large")
	empty := sha256.Sum256(nil)
	msg := vectorMessage{Method: "POST", Authority: "api.example", Target: "/v1/pay?x=1", BodySHA256: hex.EncodeToString(empty[:]), Nonce: "n-1"}
	hash := caveats.RequestHash(&capability.Message{Method: msg.Method, Authority: msg.Authority, Target: msg.Target, BodyDigest: empty, Nonce: msg.Nonce})
	withMessage := func(msg *vectorMessage) func(*vector) { return req(func(r *vectorRequest) { r.Message = msg }) }
	short := "time-before 2026-11-24T08:00:30Z"
	m.root("this request", rawRoot(short, caveats.Request(hash)), "ok", withMessage(&msg))
	other := msg
	other.Target = "/v1/pay?x=2"
	m.root("another request", rawRoot(short, caveats.Request(hash)), "request_mismatch", withMessage(&other))
	m.root("a request that the service did not show", rawRoot(short, caveats.Request(hash)), "request_mismatch")
	if strings.Count(caveats.Request(hash), " ") != 1 {
		t.Fatal("a request caveat has one argument")
	}
	return m.out
}

// sealedFile holds caveat ids. Sealing is randomized, so the generator leaves
// one that opens to the right content as it is.
const sealedFile = "caveat-ids.json"

type sealedVector struct {
	Seed      string `json:"discharger_seed"`
	Public    string `json:"discharger_public"`
	CaveatID  string `json:"caveat_id"`
	Expect    string `json:"expect"` // "ok" or the code
	Condition string `json:"condition,omitempty"`
	Token     string `json:"token,omitempty"`
	Branch    string `json:"branch,omitempty"`
	Audience  string `json:"audience,omitempty"`
	ExpiresMS int64  `json:"expires_ms,omitempty"`
	Holder    string `json:"holder,omitempty"`
	Device    string `json:"device,omitempty"`
	Any       bool   `json:"any_machine,omitempty"`
}

func sealedOf(o *capability.OpenedCaveat, v sealedVector) sealedVector {
	v.Expect, v.Condition, v.Token, v.Branch = "ok", o.Condition, o.Token.String(), o.Branch.String()
	v.Audience, v.ExpiresMS, v.Any = o.Audience, o.Expires.UnixMilli(), o.AnyMachine
	if o.Holder != nil {
		v.Holder = o.Holder.String()
	}
	if o.Device != nil {
		v.Device = o.Device.String()
	}
	return v
}

func TestSealedVectors(t *testing.T) {
	path := filepath.Join(vectorsDir, sealedFile)
	k := discharger(t, 1)
	seed, public := k.Seed(), k.Public()
	base := sealedVector{Seed: hex.EncodeToString(seed[:]), Public: hex.EncodeToString(public[:])}
	if _, err := os.Stat(path); *update && err != nil {
		var out []sealedVector
		for _, tp := range someThirdParties() {
			tok := must[*capability.Token](t)(mint(t, "action read").AddThirdParty(public, "", tp))
			v := base
			id := tok.Missing()[0].CaveatID
			v.CaveatID = hex.EncodeToString(id)
			out = append(out, sealedOf(must[*capability.OpenedCaveat](t)(k.OpenCaveat(id)), v))
		}
		bad := base
		bad.Expect, bad.CaveatID = string(capability.CodeDischargeInvalid), "00"+out[0].CaveatID[2:]
		out = append(out, bad)
		bad.CaveatID = out[0].CaveatID[:len(out[0].CaveatID)-2]
		out = append(out, bad)
		b := must[[]byte](t)(json.MarshalIndent(out, "", "  "))
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var vectors []sealedVector
	if err := json.Unmarshal(must[[]byte](t)(os.ReadFile(path)), &vectors); err != nil || len(vectors) < 7 {
		t.Fatalf("%s holds %d vectors (%v)", path, len(vectors), err)
	}
	for i, v := range vectors {
		seed := must[[]byte](t)(hex.DecodeString(v.Seed))
		o, err := must[*capability.DischargerKey](t)(capability.NewDischargerKey([32]byte(seed))).
			OpenCaveat(must[[]byte](t)(hex.DecodeString(v.CaveatID)))
		if v.Expect != "ok" {
			if string(capability.CodeOf(err)) != v.Expect {
				t.Errorf("vector %d: %v, want %s", i, err, v.Expect)
			}
			continue
		}
		if err != nil {
			t.Errorf("vector %d: %v", i, err)
			continue
		}
		bare := sealedVector{Seed: v.Seed, Public: v.Public, CaveatID: v.CaveatID}
		if got := sealedOf(o, bare); got != v {
			t.Errorf("vector %d opens as\n%+v, want\n%+v", i, got, v)
		}
	}
}
