package state

import (
	"errors"
	"math"
	"unicode/utf8"

	"github.com/writ-dev/writ/capability"
)

// The header, the issue and the token's record make up nearly all that a busy
// cluster writes and reads, on every node. They are written and read here by
// hand, in 0.26 to 0.31 of the time that reflection takes (BenchmarkByHand); what is written is byte for
// byte what the encoder of codec.go writes, and what is read is what decodeStrict
// takes with it and nothing else. TestByHand and FuzzByHand hold the two together.

// byHand is a type that has its encoding here.
type byHand interface {
	appendTo(b []byte) []byte
	readFrom(r *reader)
}

// Major types of CBOR (RFC 8949 section 3.1), in the upper three bits.
const (
	cborUint  = 0 << 5
	cborNeg   = 1 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborArray = 4 << 5
	cborMap   = 5 << 5
	cborNull  = 0xf6
)

// appendHead appends a major type with its argument in the fewest bytes.
func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= math.MaxUint8:
		return append(b, major|24, byte(n))
	case n <= math.MaxUint16:
		return append(b, major|25, byte(n>>8), byte(n))
	case n <= math.MaxUint32:
		return append(b, major|26, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, major|27, byte(n>>56), byte(n>>48), byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// members writes a struct: a map from its fields' numbers, fewer than 24 of them,
// in their order.
type members struct {
	b  []byte
	at int // of the map's head
}

func openMap(b []byte) members { return members{append(b, cborMap), len(b)} }

// key appends a number, and counts it.
func (m *members) key(number byte) {
	m.b[m.at]++
	m.b = append(m.b, number)
}

func (m *members) uint(number byte, v uint64) {
	m.key(number)
	m.b = appendHead(m.b, cborUint, v)
}

func (m *members) int(number byte, v int64) {
	m.key(number)
	if v < 0 {
		m.b = appendHead(m.b, cborNeg, uint64(^v))
	} else {
		m.b = appendHead(m.b, cborUint, uint64(v))
	}
}

func (m *members) text(number byte, v string) {
	m.key(number)
	m.b = append(appendHead(m.b, cborText, uint64(len(v))), v...)
}

func (m *members) bytes(number byte, v []byte) {
	m.key(number)
	if v == nil {
		m.b = append(m.b, cborNull)
		return
	}
	m.b = append(appendHead(m.b, cborBytes, uint64(len(v))), v...)
}

func (m *members) texts(number byte, list []string) {
	m.key(number)
	m.b = appendHead(m.b, cborArray, uint64(len(list)))
	for _, v := range list {
		m.b = append(appendHead(m.b, cborText, uint64(len(v))), v...)
	}
}

func (m *members) branches(number byte, list []capability.BranchID) {
	m.key(number)
	if list == nil {
		m.b = append(m.b, cborNull)
		return
	}
	m.b = appendHead(m.b, cborArray, uint64(len(list)))
	for i := range list {
		m.b = append(appendHead(m.b, cborBytes, uint64(len(list[i]))), list[i][:]...)
	}
}

// maxElements bounds an array, as the decoder of codec.go does.
const maxElements = 128 << 10

var errNotOurs = errors.New("not as this version would write it")

// reader reads what members writes. After the first failure it reads nothing.
type reader struct {
	b   []byte // what is left
	err error
}

func (r *reader) fail() { r.b, r.err = nil, errNotOurs }

// head reads the argument of a major type, which must be in the fewest bytes.
func (r *reader) head(major byte) uint64 {
	if len(r.b) == 0 || r.b[0]&0xe0 != major {
		r.fail()
		return 0
	}
	n := uint64(r.b[0] & 0x1f)
	if n < 24 {
		r.b = r.b[1:]
		return n
	}
	if n > 27 {
		r.fail()
		return 0
	}
	size := 1 << (n - 24)
	if len(r.b) < 1+size {
		r.fail()
		return 0
	}
	n = 0
	for _, c := range r.b[1 : 1+size] {
		n = n<<8 | uint64(c)
	}
	least := uint64(24)
	if size > 1 {
		least = 1 << (8 * size / 2)
	}
	if n < least {
		r.fail()
		return 0
	}
	r.b = r.b[1+size:]
	return n
}

func (r *reader) uint(most uint64) uint64 {
	n := r.head(cborUint)
	if n > most {
		r.fail()
		return 0
	}
	return n
}

func (r *reader) int() int64 {
	negative := len(r.b) > 0 && r.b[0]&0xe0 == cborNeg
	major := byte(cborUint)
	if negative {
		major = cborNeg
	}
	n := r.head(major)
	if n > math.MaxInt64 {
		r.fail()
		return 0
	}
	if negative {
		return ^int64(n)
	}
	return int64(n)
}

// cut takes the content of a string.
func (r *reader) cut(major byte) []byte {
	n := r.head(major)
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string {
	v := r.cut(cborText)
	if !utf8.Valid(v) {
		r.fail()
		return ""
	}
	return string(v)
}

// bytes reads a string of bytes, or null for none.
func (r *reader) bytes() []byte {
	if r.null() {
		return nil
	}
	v := r.cut(cborBytes)
	if r.err != nil {
		return nil
	}
	return append(make([]byte, 0, len(v)), v...)
}

func (r *reader) null() bool {
	if len(r.b) == 0 || r.b[0] != cborNull {
		return false
	}
	r.b = r.b[1:]
	return true
}

// array reads a string of bytes of one length.
func (r *reader) array(into []byte) {
	if v := r.cut(cborBytes); len(v) == len(into) {
		copy(into, v)
	} else {
		r.fail()
	}
}

// count reads how many elements an array has.
func (r *reader) count() int {
	n := r.head(cborArray)
	if n > maxElements || n > uint64(len(r.b)) { // each takes a byte at least
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) texts() []string {
	list := make([]string, r.count())
	for i := range list {
		list[i] = r.text()
	}
	return list
}

func (r *reader) branches() []capability.BranchID {
	if r.null() {
		return nil
	}
	list := make([]capability.BranchID, r.count())
	for i := range list {
		r.array(list[i][:])
	}
	return list
}

// fields reads a struct's map.
type fields struct {
	*reader
	left uint64 // members
}

func (r *reader) openMap() fields { return fields{r, r.head(cborMap)} }

// has reports whether a field comes next, and takes its number.
func (f *fields) has(number byte) bool {
	if f.left == 0 || len(f.b) == 0 || f.b[0] != number {
		return false
	}
	f.left--
	f.b = f.b[1:]
	return true
}

// must is has for a field that is always written.
func (f *fields) must(number byte) {
	if !f.has(number) {
		f.fail()
	}
}

// some fails on a field that is written only if it is something, and is nothing.
func (f *fields) some(is bool) {
	if !is {
		f.fail()
	}
}

// close fails if there is a field that is not known, or twice, or in another place.
func (f *fields) close() {
	if f.left != 0 {
		f.fail()
	}
}

func (h *Header) appendTo(b []byte) []byte {
	m := openMap(b)
	m.uint(1, uint64(h.Kind))
	m.int(2, h.Stamp)
	m.key(3)
	m.b = h.Actor.appendTo(m.b)
	if h.Request != (capability.TokenID{}) {
		m.bytes(4, h.Request[:])
	}
	if h.Body != (Digest{}) {
		m.bytes(5, h.Body[:])
	}
	return m.b
}

func (h *Header) readFrom(r *reader) {
	f := r.openMap()
	f.must(1)
	h.Kind = Kind(r.uint(math.MaxUint16))
	f.must(2)
	h.Stamp = r.int()
	f.must(3)
	h.Actor.readFrom(r)
	if f.has(4) {
		r.array(h.Request[:])
		f.some(h.Request != capability.TokenID{})
	}
	if f.has(5) {
		r.array(h.Body[:])
		f.some(h.Body != Digest{})
	}
	f.close()
}

func (a *Actor) appendTo(b []byte) []byte {
	m := openMap(b)
	m.text(1, a.Name)
	if a.Token != (capability.TokenID{}) {
		m.bytes(2, a.Token[:])
	}
	if len(a.Branches) != 0 {
		m.branches(3, a.Branches)
	}
	if a.Audience != "" {
		m.text(4, a.Audience)
	}
	return m.b
}

func (a *Actor) readFrom(r *reader) {
	f := r.openMap()
	f.must(1)
	a.Name = r.text()
	if f.has(2) {
		r.array(a.Token[:])
		f.some(a.Token != capability.TokenID{})
	}
	if f.has(3) {
		a.Branches = r.branches()
		f.some(len(a.Branches) != 0)
	}
	if f.has(4) {
		a.Audience = r.text()
		f.some(a.Audience != "")
	}
	f.close()
}

func (i *Issue) appendTo(b []byte) []byte {
	m := openMap(b)
	m.key(1)
	m.b = i.Record.appendTo(m.b)
	if len(i.Caveats) != 0 {
		m.texts(2, i.Caveats)
	}
	return m.b
}

func (i *Issue) readFrom(r *reader) {
	f := r.openMap()
	f.must(1)
	i.Record.readFrom(r)
	if f.has(2) {
		i.Caveats = r.texts()
		f.some(len(i.Caveats) != 0)
	}
	f.close()
}

func (t *TokenRecord) appendTo(b []byte) []byte {
	m := openMap(b)
	m.bytes(1, t.ID[:])
	m.text(2, t.Audience)
	m.text(3, t.Subject)
	m.text(4, t.Owner)
	m.text(5, t.Purpose)
	if t.Auditor != "" {
		m.text(6, t.Auditor)
	}
	if len(t.Agent) != 0 {
		m.bytes(7, t.Agent)
	}
	m.int(8, t.NotAfter)
	m.uint(9, uint64(t.Epoch))
	m.uint(10, uint64(t.Generation))
	m.bytes(11, t.Unsigned)
	m.bytes(12, t.Tail[:])
	if t.Parent != nil {
		m.key(13)
		m.b = t.Parent.appendTo(m.b)
	}
	if len(t.Actors) != 0 {
		m.texts(14, t.Actors)
	}
	if len(t.Holders) != 0 {
		m.texts(15, t.Holders)
	}
	if t.IssuedBy != "" {
		m.text(16, t.IssuedBy)
	}
	if t.Request != (capability.TokenID{}) {
		m.bytes(17, t.Request[:])
	}
	if t.Body != (Digest{}) {
		m.bytes(18, t.Body[:])
	}
	if t.Index != 0 {
		m.uint(19, t.Index)
	}
	return m.b
}

func (t *TokenRecord) readFrom(r *reader) {
	f := r.openMap()
	f.must(1)
	r.array(t.ID[:])
	f.must(2)
	t.Audience = r.text()
	f.must(3)
	t.Subject = r.text()
	f.must(4)
	t.Owner = r.text()
	f.must(5)
	t.Purpose = r.text()
	if f.has(6) {
		t.Auditor = r.text()
		f.some(t.Auditor != "")
	}
	if f.has(7) {
		t.Agent = r.bytes()
		f.some(len(t.Agent) != 0)
	}
	f.must(8)
	t.NotAfter = r.int()
	f.must(9)
	t.Epoch = uint32(r.uint(math.MaxUint32))
	f.must(10)
	t.Generation = uint32(r.uint(math.MaxUint32))
	f.must(11)
	t.Unsigned = r.bytes()
	f.must(12)
	r.array(t.Tail[:])
	if f.has(13) {
		t.Parent = new(Parent)
		t.Parent.readFrom(r)
	}
	if f.has(14) {
		t.Actors = r.texts()
		f.some(len(t.Actors) != 0)
	}
	if f.has(15) {
		t.Holders = r.texts()
		f.some(len(t.Holders) != 0)
	}
	if f.has(16) {
		t.IssuedBy = r.text()
		f.some(t.IssuedBy != "")
	}
	if f.has(17) {
		r.array(t.Request[:])
		f.some(t.Request != capability.TokenID{})
	}
	if f.has(18) {
		r.array(t.Body[:])
		f.some(t.Body != Digest{})
	}
	if f.has(19) {
		t.Index = r.uint(math.MaxUint64)
		f.some(t.Index != 0)
	}
	f.close()
}

func (p *Parent) appendTo(b []byte) []byte {
	m := openMap(b)
	m.bytes(1, p.Token[:])
	m.branches(2, p.Branches)
	return m.b
}

func (p *Parent) readFrom(r *reader) {
	f := r.openMap()
	f.must(1)
	r.array(p.Token[:])
	f.must(2)
	p.Branches = r.branches()
	f.close()
}
