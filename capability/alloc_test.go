package capability_test

import (
	"context"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
)

// Verifying allocates nothing once its Grant has been used.
func TestVerifyDoesNotAllocate(t *testing.T) {
	k := discharger(t, 1)
	tok, req, ctx := mint(t, typed...), typedRequest(), context.Background()
	third := must[*capability.Token](t)(tok.AddThirdParty(k.Public(), "https://d.example", approved("approved x")))
	o := must[*capability.OpenedCaveat](t)(k.OpenCaveat(third.Missing()[0].CaveatID))
	bound := must[*capability.Token](t)(o.Discharge("action read"))
	signed := must[*capability.Token](t)(rawDischarge(t, o).Bind(third))
	long := must[*capability.Token](t)(tok.AttenuateExact("action read" + strings.Repeat(" w", 20) + strings.Repeat(" "+strings.Repeat("v", 30), 12)))
	plain := typedVerifier(t)
	spending := typedVerifier(t, capability.WithBudgets(free{}))
	cached := typedVerifier(t, capability.WithPrefixCache(64))
	for _, c := range []struct {
		name  string
		v     *capability.Verifier
		tok   *capability.Token
		extra []string
	}{
		{"five typed caveats", plain, tok, nil},
		{"a long caveat", plain, long, nil},
		{"a budget", spending, must[*capability.Token](t)(tok.AttenuateExact("max-calls 3", "max-calls 2")), nil},
		{"a bound discharge", plain, with(t, third, bound), nil},
		{"a discharge beside", plain, third, []string{bound.Text()}},
		{"a signed discharge", plain, with(t, third, signed), nil},
		{"from the cache", cached, tok, nil},
		{"from the cache, narrowed", cached, must[*capability.Token](t)(tok.AttenuateExact("action read")), nil},
		{"from the cache, with a discharge", cached, with(t, third, bound), nil},
	} {
		g, set, text := new(capability.Grant), c.tok.Bytes(), c.tok.Text()
		if c.extra == nil {
			if n := testing.AllocsPerRun(50, func() {
				if err := c.v.Verify(ctx, g, set, req); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%s: %v allocations", c.name, n)
			}
		}
		if n := testing.AllocsPerRun(50, func() {
			if err := c.v.VerifyText(ctx, g, text, req, c.extra...); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s, as text: %v allocations", c.name, n)
		}
	}
}
