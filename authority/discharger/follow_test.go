package discharger_test

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

// TestFollow: what an authority revokes a discharger on its own attests no more,
// though its own files know nothing of it.
func TestFollow(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	root := n.Root()
	t.Cleanup(root.Close)
	c := n.Service(t, api.ServiceRequest{Name: "attest", Audiences: []string{"corp"}, Keyless: true})
	r := authoritytest.Open(t, replica.Config{Client: c, Audiences: []string{"corp"}, Keyless: true})
	a := newAlone(t, nil)
	a.stop()
	a.follow = r
	a.start()
	revoke := func(req api.RevokeRequest) {
		t.Helper()
		req.Reason = "stolen"
		at, err := root.Revoke(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Wait(t.Context(), api.Cursor{Incarnation: r.Status().Cursor.Incarnation, Index: at.Index}); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, want api.Code) {
		t.Helper()
		if _, _, err := a.discharge(a.token("attested prod")); capability.CodeOf(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	good := func() {
		t.Helper()
		if _, _, err := a.discharge(a.token("attested prod")); err != nil {
			t.Fatal(err)
		}
	}
	good()
	revoke(api.RevokeRequest{Kind: api.RevokeHolder, Holder: a.holder.HolderKey().String()})
	refused("the holder key is revoked", api.CodeAttestation)

	// The same device with another key is good, until it is revoked itself: in the
	// middle of an attestation, too.
	h, err := holder.Open(holder.Config{TPM: a.tpm.Address, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	a.holder = h
	good()
	want := holder.Want{Caveat: a.token("attested prod").Missing()[0].CaveatID, Audience: "corp", Posture: attest.Posture{Agent: "agent"}}
	challenge, err := a.client.AttestBegin(t.Context(), h.Begin(want))
	if err != nil {
		t.Fatal(err)
	}
	posture, err := want.Posture.Encode()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := h.Answer(want, challenge, posture)
	if err != nil {
		t.Fatal(err)
	}
	revoke(api.RevokeRequest{Kind: api.RevokeDevice, Device: h.Device().String()})
	if _, err := a.client.AttestFinish(t.Context(), answer); capability.CodeOf(err) != api.CodeAttestation {
		t.Errorf("begun before the device was revoked: %v", err)
	}
	refused("the device is revoked", api.CodeAttestation)

	// Cut off from the authority it attests nobody.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	refused("the authority is out of reach", capability.CodeStaleRevocations)
}
