package caveats

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
	"pgregory.net/rapid"
)

func (v verdict) String() string {
	return [...]string{"unreadable", "held", "denied", "missing", "otherType"}[v]
}

func TestFields(t *testing.T) {
	fields := capability.Fields{
		{Name: "amount", Value: capability.NumberValue("100.00")},
		{Name: "debit", Value: capability.NumberValue("-5")},
		{Name: "tiny", Value: capability.NumberValue("99.99999999999999999999")},
		{Name: "digits", Value: capability.StringValue("100")},
		{Name: "path", Value: capability.StringValue("reports/q3")},
		{Name: "say", Value: capability.StringValue(`he said "hi" \o/`)},
		{Name: "empty", Value: capability.StringValue("")},
		{Name: "yes", Value: capability.BoolValue(true)},
		{Name: "yesText", Value: capability.StringValue("true")},
		{Name: "object", Value: capability.Value{}},
		{Name: "twice", Value: capability.StringValue("a")},
		{Name: "twice", Value: capability.StringValue("a")},
		{Name: "my name", Value: capability.StringValue("x")},
		{Name: "huge", Value: capability.NumberValue("1e999999")},
	}
	for _, c := range []struct {
		test string
		want verdict
	}{
		{"amount = 100", held}, {"amount = 1e2", held}, {"amount = 99", denied},
		{"amount <= 100", held}, {"amount < 100", denied}, {"amount >= 100.000", held}, {"amount > 100", denied},
		{"amount > 99.999", held}, {"amount < 1000", held}, {"debit < 0", held}, {"debit >= -5.0", held},
		{"tiny < 100", held}, {"tiny = 100", denied}, {"tiny >= 100", denied},
		{"amount is 100", held}, {"amount is 1e2", held}, {`amount is "100"`, otherType}, {"amount is 5", denied},
		{"amount in 1 2 100", held}, {"amount in 1 2", denied}, {`amount in "100" 5`, denied}, {`amount in "100" x`, otherType},
		{"amount prefix 1", otherType},
		{"digits is 100", otherType}, {`digits is "100"`, held}, {"digits = 100", otherType}, {"digits prefix 1", held},
		{"path is reports/q3", held}, {"path is Reports/q3", denied}, {"path prefix reports/", held}, {"path prefix q3", denied},
		{`path prefix ""`, held}, {"path in a b reports/q3", held}, {"path in a b", denied},
		{`say is "he said \"hi\" \\o/"`, held}, {`say prefix "he said \"h"`, held}, {`say prefix "he said \"H"`, denied},
		{`empty is ""`, held}, {`empty in a ""`, held}, {"empty is a", denied}, {`path is ""`, denied},
		{"yes is true", held}, {"yes is false", denied}, {`yes is "true"`, otherType}, {"yes in false true", held}, {"yes is 1", otherType},
		{"yesText is true", otherType}, {`yesText is "true"`, held}, {"yesText prefix true", held},
		{"object is x", otherType}, {"object = 0", otherType}, {`object prefix ""`, otherType}, {`object is ""`, otherType},
		{"twice is a", missing}, {"nothing is a", missing}, {"Amount = 100", missing}, {"amount\u0301 = 100", missing},
		{`"my name" is x`, held},
		{"huge > 5", denied}, {"huge < 5", denied}, {"huge is 5", denied},

		{"", unreadable}, {"amount", unreadable}, {"amount =", unreadable}, {"amount = 1 2", unreadable}, {"amount is", unreadable},
		{"amount is 1 2", unreadable}, {"amount in", unreadable}, {"amount prefix", unreadable}, {"path prefix a b", unreadable},
		{`"" is x`, unreadable}, {`"a\"b" is x`, unreadable}, {strings.Repeat("a", maxName+1) + " is x", unreadable},
		{"amount == 100", unreadable}, {"amount != 100", unreadable}, {"amount IS 100", unreadable}, {`amount "is" 100`, unreadable},
		{"amount = x", unreadable}, {`amount = "100"`, unreadable}, {"amount = 0100", unreadable}, {"amount = 1e100001", unreadable},
		{"amount is 1e100001", unreadable}, {"amount in 100 1e100001", unreadable}, {"amount = +1", unreadable}, {"amount = .5", unreadable},
		{"amount is null", unreadable}, {"object is null", unreadable}, {`amount in 100 null`, unreadable},
		{"amount = 100 ", unreadable}, {"amount  = 100", unreadable}, {"nothing = x", unreadable}, {"nothing is a b", unreadable},
	} {
		_, w := split([]byte(strings.TrimSuffix("argument "+c.test, " ")))
		if c.test == "amount = 100 " {
			_, w = split([]byte("argument " + c.test))
		}
		if got := checkFields(&w, fields); got != c.want {
			t.Errorf("%q: %v, want %v", c.test, got, c.want)
		}
	}
}

// What a builder was given is what the condition accepts, with its type.
func TestArgumentBuilderRoundTrip(t *testing.T) {
	value := rapid.OneOf(
		rapid.Map(rapid.OneOf(rapid.SampledFrom([]string{"", "true", "null", "5", "1e3", `"`, `\`, "a b", "-"}),
			rapid.StringMatching(`[ -~é日]{0,12}`)), capability.StringValue),
		rapid.Map(genDecimal(), capability.NumberValue),
		rapid.Map(rapid.Bool(), capability.BoolValue),
	)
	rapid.Check(t, func(t *rapid.T) {
		a, b := value.Draw(t, "a"), value.Draw(t, "b")
		c, err := Argument("x", "is", a)
		if err != nil {
			t.Fatal(err)
		}
		judgeOne := func(v capability.Value) verdict {
			_, w := split([]byte(c))
			return checkFields(&w, capability.Fields{{Name: "x", Value: v}})
		}
		if got := judgeOne(a); got != held {
			t.Fatalf("%s against %v %q: %v", c, a.Kind(), a.Text(), got)
		}
		want := a == b
		if a.Kind() == capability.KindNumber && b.Kind() == a.Kind() {
			p, _ := parseDecimal(a.Text())
			q, _ := parseDecimal(b.Text())
			want = p.compare(q) == 0
		}
		if got := judgeOne(b); (got == held) != want {
			t.Fatalf("%s against %v %q: %v", c, b.Kind(), b.Text(), got)
		}
	})
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		names, action string
		want          verdict
	}{
		{"read", "read", held}, {"read list", "list", held}, {"read", "Read", denied}, {"read", "reader", denied}, {"reader", "read", denied},
		{"read", "", denied}, {`"read all"`, "read all", held}, {`"read"`, "read", held}, {"read", "read ", denied},
		{`""`, "", unreadable}, {`read ""`, "read", unreadable}, {`"re\"ad"`, `re"ad`, unreadable}, {"", "read", unreadable},
		{"read  list", "read", unreadable}, {"read \"", "read", unreadable}, {"read *", "write", denied}, {"*", "read", denied},
	} {
		_, w := split([]byte(strings.TrimSuffix("action "+c.names, " ")))
		if got := checkNames(&w, c.action); got != c.want {
			t.Errorf("%q for %q: %v, want %v", c.names, c.action, got, c.want)
		}
	}
}

// A request whose clock nobody set is before and after nothing.
func TestNoClock(t *testing.T) {
	for _, condition := range []string{"time-before 2027-01-01T00:00:00Z", "time-after 0000-01-01T00:00:00Z"} {
		kind, w := read([]byte(condition))
		if got := judge(kind, &w, &capability.Request{}); got != denied {
			t.Errorf("%s: %v", condition, got)
		}
	}
}

func TestClientIP(t *testing.T) {
	for _, c := range []struct {
		prefixes, client string
		want             verdict
	}{
		{"10.0.0.0/8", "10.1.2.3", held}, {"10.0.0.0/8", "11.1.2.3", denied}, {"10.0.0.0/8", "::ffff:10.1.2.3", held},
		{"192.0.2.7", "192.0.2.7", held}, {"192.0.2.7", "192.0.2.8", denied}, {"192.0.2.7/32", "192.0.2.7", held},
		{"2001:db8::/32", "2001:db8::1", held}, {"2001:db8::/32", "2001:db9::1", denied}, {"2001:db8::1", "2001:db8::1", held},
		{"2001:DB8::/32", "2001:db8::1", held},
		{"0.0.0.0/0", "10.1.2.3", held}, {"0.0.0.0/0", "2001:db8::1", denied}, {"::/0", "2001:db8::1", held}, {"::/0", "10.1.2.3", denied},
		{"192.0.2.7 10.0.0.0/8", "10.1.2.3", held}, {"fe80::/10", "fe80::1%eth0", denied}, {"fe80::/10", "fe80::1", held},
		{"10.0.0.0/8", "", denied}, {"::/0", "", denied}, {`"10.0.0.0/8"`, "10.1.2.3", held},

		{"", "10.1.2.3", unreadable}, {"10.0.0.1/8", "10.0.0.1", unreadable}, {"10.0.0.0/33", "10.0.0.0", unreadable},
		{"10.0.0.0/08", "10.0.0.0", unreadable}, {"10.0.0.0/", "10.0.0.0", unreadable}, {"10.0.0/8", "10.0.0.0", unreadable},
		{"010.0.0.0/8", "10.0.0.0", unreadable}, {"10.0.0.256", "10.0.0.1", unreadable}, {"::ffff:10.0.0.0/104", "10.0.0.1", unreadable},
		{"::ffff:10.0.0.1", "10.0.0.1", unreadable}, {"fe80::1%eth0", "fe80::1", unreadable}, {"2001:db8::1/32", "2001:db8::1", unreadable},
		{"localhost", "127.0.0.1", unreadable}, {"10.0.0.0/8 x", "10.1.2.3", unreadable}, {"10.0.0.0/8,10.0.0.0/8", "10.1.2.3", unreadable},
		{"10.0.0.0/-1", "10.0.0.0", unreadable}, {"10.0.0.0/+8", "10.0.0.0", unreadable}, {"0x0a.0.0.0", "10.0.0.0", unreadable},
	} {
		var client netip.Addr
		if c.client != "" {
			client = netip.MustParseAddr(c.client)
		}
		_, w := split([]byte(strings.TrimSuffix("client-ip "+c.prefixes, " ")))
		if got := checkClient(&w, client); got != c.want {
			t.Errorf("%q for %q: %v, want %v", c.prefixes, c.client, got, c.want)
		}
	}
}

func FuzzPrefix4(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "192.0.2.7", "0.0.0.0/0", "10.0.0.1/8", "010.0.0.0/8", "10.0.0.0/08", "1.2.3", "1.2.3.4.5", "1.2.3.4/", "256.0.0.0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		network, mask, ok := parsePrefix4([]byte(s))
		p, ok2 := parsePrefix(word{text: []byte(s)})
		if ok2 = ok2 && p.Addr().Is4(); ok != ok2 {
			t.Fatalf("%q: %v, netip %v", s, ok, ok2)
		}
		if ok && (netip.AddrFrom4([4]byte{byte(network >> 24), byte(network >> 16), byte(network >> 8), byte(network)}) != p.Addr() ||
			mask != ^uint32(0)<<(32-p.Bits())) {
			t.Fatalf("%q: %x/%x, netip %v", s, network, mask, p)
		}
	})
}
