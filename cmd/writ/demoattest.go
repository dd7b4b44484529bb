package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/swtpm"
	"github.com/writ-dev/writ/caveats/pop"
)

// hasSoftwareTPM says whether this machine can pretend to have a TPM.
func hasSoftwareTPM() bool {
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false
		}
	}
	return true
}

// attest shows that a token which demands attestation is of use on the machine
// that it was made for, and nowhere else.
func (d *demo) attest(dev *devReady) error {
	if dev.TPM == "" {
		d.title("attested holders: left out, since there is no software TPM here")
		d.result("apt-get install swtpm swtpm-tools")
		return nil
	}
	machine, err := d.openMachine(dev.TPM, dev.TPMDir)
	if err != nil {
		return err
	}
	defer machine.close()
	d.title("agent-9 gets a token that demands: attested under policy %s, by the key in the TPM of its machine", devPolicy)
	issued, err := d.root.Issue(d.ctx, api.IssueRequest{
		Audience: demoAudience, Subject: "agent-9", Owner: "owner@corp.example", Purpose: "the quarterly report",
		Caveats: []string{"action read", "resource files/**"},
		ThirdParty: []api.ThirdPartyRequest{{
			Discharger: "authority", Condition: "attested " + devPolicy, Holder: machine.holder.HolderKey().String(),
		}},
	})
	if err != nil {
		return err
	}
	token, err := capability.Parse(issued.Token)
	if err != nil {
		return err
	}
	if err := d.expect(d.prove(token, machine.key))(http.StatusUnauthorized, capability.CodeDischargeRequired); err != nil {
		return err
	}
	d.title("the TPM answers the authority's challenge, quotes what the machine booted and certifies the key")
	whole, ends, err := machine.wallet.Discharge(d.ctx, token)
	if err != nil {
		return err
	}
	d.result("discharged for %s: device %.16s…, bound to %.20s…", time.Until(ends).Round(time.Second),
		machine.holder.Device().String(), machine.holder.HolderKey().String())
	d.title("files accepts the token and its discharge, with a proof by that key")
	if err := d.expect(d.prove(whole, machine.key))(http.StatusOK, ""); err != nil {
		return err
	}
	return d.steal(dev, token, whole)
}

// steal copies the token to another machine, which has a TPM of its own by the
// same maker.
func (d *demo) steal(dev *devReady, token, whole *capability.Token) error {
	dir, err := os.MkdirTemp("", "writ-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d.title("the same token and discharge, copied to another machine with a genuine TPM of its own, prove nothing there")
	state := filepath.Join(dir, "tpm")
	if err := swtpm.Manufacture(d.ctx, state, filepath.Join(dev.Dir, devCA)); err != nil {
		return err
	}
	process, err := swtpm.StartUnix(state, filepath.Join(dir, "tpm.sock"))
	if err != nil {
		return err
	}
	defer process.Kill()
	thief, err := d.openMachine(process.Address, filepath.Join(dir, "holder"))
	if err != nil {
		return err
	}
	defer thief.close()
	if err := d.expect(d.prove(whole, thief.key))(http.StatusUnauthorized, capability.CodeHolderProof); err != nil {
		return err
	}
	d.title("nor does that machine get a discharge of its own for the stolen token")
	switch _, _, err = thief.wallet.Discharge(d.ctx, token); capability.CodeOf(err) {
	case api.CodeAttestation:
		d.result("%s", api.CodeAttestation)
		return nil
	case "":
		return fmt.Errorf("expected %s, got a discharge", api.CodeAttestation)
	}
	return err
}

// demoMachine is a machine with a TPM.
type demoMachine struct {
	holder *holder.Holder
	wallet *wallet.Wallet
	key    *pop.Key
	anyone *client.Client
}

func (m *demoMachine) close() {
	_ = m.holder.Close()
	m.anyone.Close()
}

func (d *demo) openMachine(tpm, dir string) (*demoMachine, error) {
	h, err := holder.Open(holder.Config{TPM: tpm, Dir: dir})
	if err != nil {
		return nil, err
	}
	m := &demoMachine{holder: h, anyone: d.root.WithToken("")}
	if m.key, err = pop.NewKey(h.Key()); err == nil {
		m.wallet, err = wallet.Open(wallet.Config{
			Attester: h, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: m.anyone},
			Posture: holder.LocalPosture("writ-demo", version().Version),
		})
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// prove calls files with a token and a proof by key.
func (d *demo) prove(token *capability.Token, key *pop.Key) (int, capability.Code, error) {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, d.files.url+"/files/q3", nil)
	if err != nil {
		return 0, "", err
	}
	return d.do(&http.Client{Transport: &guard.Transport{Token: token, Base: &pop.Transport{Signer: key}}}, req)
}
