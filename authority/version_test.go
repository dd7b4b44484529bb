package authority

import (
	"errors"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/state"
)

// TestUnknownCommandStopsTheNode: a command of a later version, in the log of a
// real node, ends it with a message that says so, and again at each start; what
// it had acknowledged stays for the version that can read it.
func TestUnknownCommandStopsTheNode(t *testing.T) {
	cfg := testConfig(t)
	fatal := make(chan error, 4)
	cfg.OnFatal = func(err error) { fatal <- err }
	a, _, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	known, err := state.EncodeCommand(state.Header{Kind: state.KindExpire, Stamp: time.Now().UnixMilli(), Actor: state.Actor{Name: state.SystemActor}}, &state.Expire{T: 1})
	if err != nil {
		t.Fatal(err)
	}
	known[0], known[1] = 0x7f, 0xff // a kind of a later version
	entry, err := state.EncodeEntry(known)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.Propose(t.Context(), entry); err == nil {
		t.Error("acknowledged")
	}
	if err := <-fatal; !errors.Is(err, state.ErrUnknownCommand) {
		t.Errorf("the node ends with %v", err)
	}
	_ = a.Close()
	if b, _, err := Open(t.Context(), cfg); err == nil {
		_ = b.Close()
		t.Error("it starts over what it cannot read")
	} else if !errors.Is(err, state.ErrUnknownCommand) {
		t.Errorf("at the next start: %v", err)
	}
}
