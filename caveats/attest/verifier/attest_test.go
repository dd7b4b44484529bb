package verifier_test

import (
	"testing"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
)

func TestAttest(t *testing.T) {
	t.Parallel()
	tpm := attesttest.Start(t)
	for _, kind := range []attest.Kind{"", attest.RSA2048, attest.ECCP384} {
		t.Run("kind "+string(kind), func(t *testing.T) {
			r := rigFor(t, tpm, kind)
			first := r.good(t)
			if !first.Activated || first.Device != r.holder.Device() || first.Holder != r.holder.HolderKey() || first.PCRSet != "golden" {
				t.Errorf("enrolled as %+v", first)
			}
			if first.Posture.Agent != "agent" || first.Policy != "prod" || first.Version != 3 {
				t.Errorf("enrolled under %+v", first)
			}
			// The AK is enrolled now: it quotes, and need not activate.
			if again := r.good(t); again.Activated || again.Counters.After(first.Counters) != nil {
				t.Errorf("renewed as %+v after %+v", again, first)
			}
		})
	}
}
