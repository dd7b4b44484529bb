package state

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// everyByHand are empty values of the types that are encoded by hand.
func everyByHand() []byHand { return []byHand{new(Header), new(Issue), new(TokenRecord)} }

// byReflection is what codec.go does with types that are not.
func byReflection(b []byte, v any) error {
	if err := decoding.Unmarshal(b, v); err != nil {
		return err
	}
	again, err := encoding.Marshal(v)
	if err == nil && !bytes.Equal(again, b) {
		err = errNotOurs
	}
	return err
}

// agree holds what is done by hand with an encoding to what reflection does with it.
func agree(t *testing.T, b []byte, empty byHand) {
	t.Helper()
	byHands, other := empty, reflect.New(reflect.TypeOf(empty).Elem()).Interface().(byHand)
	err, want := decodeStrict(b, byHands), byReflection(b, other)
	if (err == nil) != (want == nil) {
		t.Fatalf("%T from %x: by hand %v, by reflection %v", empty, b, err, want)
	}
	if err != nil {
		return
	}
	if !reflect.DeepEqual(byHands, other) {
		t.Fatalf("%T from %x: by hand %+v, by reflection %+v", empty, b, byHands, other)
	}
	if again := byHands.appendTo(nil); !bytes.Equal(again, b) {
		t.Fatalf("%T from %x is written as %x", empty, b, again)
	}
}

// TestByHand writes values of every shape, fields that are nothing and numbers of
// every length among them, and reads them back, whole and damaged.
func TestByHand(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		for _, v := range everyByHand() {
			scramble(random, reflect.ValueOf(v).Elem())
			got := v.appendTo(nil)
			want, err := encoding.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%+v\nby hand       %x\nby reflection %x", v, got, want)
			}
			empty := func() byHand { return reflect.New(reflect.TypeOf(v).Elem()).Interface().(byHand) }
			back := empty()
			if err := decodeStrict(got, back); err != nil || !reflect.DeepEqual(back, v) {
				t.Fatalf("%x comes back as %+v, not %+v: %v", got, back, v, err)
			}
			bad := bytes.Clone(got)
			switch at := random.IntN(len(bad)); random.IntN(4) {
			case 0:
				bad[at] ^= 1 << random.IntN(8)
			case 1:
				bad = bad[:at]
			case 2:
				bad = append(bad, byte(random.Uint32()))
			case 3:
				bad = append(append(bytes.Clone(bad[:at]), byte(random.Uint32())), bad[at:]...)
			}
			agree(t, bad, empty())
		}
	}
}

// scramble sets every field of a struct, or leaves it empty.
func scramble(random *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			scramble(random, v.Field(i))
		}
	case reflect.Pointer:
		if v.SetZero(); random.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			scramble(random, v.Elem())
		}
	case reflect.Slice:
		v.SetZero()
		switch n := random.IntN(40); {
		case n < 10: // null, or left out
		case n < 35 || v.Type().Elem().Kind() != reflect.Uint8:
			v.Set(reflect.MakeSlice(v.Type(), 1+n%4, 1+n%4))
		default:
			v.Set(reflect.MakeSlice(v.Type(), n*10, n*10))
		}
		fallthrough
	case reflect.Array:
		if random.IntN(4) != 0 { // else all zero
			for i := range v.Len() {
				scramble(random, v.Index(i))
			}
		}
	case reflect.String:
		v.SetString([]string{"", "a", "é", strings.Repeat("x", 23), strings.Repeat("x", 24), strings.Repeat("x", 300)}[random.IntN(6)])
	case reflect.Int64:
		n := int64(random.Uint64() >> random.IntN(64))
		v.SetInt(n * int64(1-2*random.IntN(2)))
	default:
		v.SetUint(random.Uint64() >> random.IntN(64))
	}
}

// FuzzByHand holds the two together on bytes that nobody wrote.
func FuzzByHand(f *testing.F) {
	headers, bodies := samples()
	for i := range bodies {
		f.Add(must(encoding.Marshal(&headers[i])))
	}
	issue := bodies[KindIssue-1].(*Issue)
	f.Add(issue.appendTo(nil))
	f.Add(issue.Record.appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range everyByHand() {
			agree(t, b, v)
		}
	})
}

// BenchmarkByHand is what an issue costs to write and to read, beside reflection.
func BenchmarkByHand(b *testing.B) {
	_, bodies := samples()
	issue := bodies[KindIssue-1].(*Issue)
	encodedIssue := issue.appendTo(nil)
	b.Run("write/hand", func(b *testing.B) {
		for b.Loop() {
			_, _ = marshal(issue)
		}
	})
	b.Run("write/reflection", func(b *testing.B) {
		for b.Loop() {
			_, _ = encoding.Marshal(issue)
		}
	})
	b.Run("read/hand", func(b *testing.B) {
		for b.Loop() {
			_ = decodeStrict(encodedIssue, new(Issue))
		}
	})
	b.Run("read/reflection", func(b *testing.B) {
		for b.Loop() {
			_ = byReflection(encodedIssue, new(Issue))
		}
	})
}
