package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/swtpm"
)

// The bundle of roots and the policy that writ dev --tpm stores.
const devPolicy = "dev"

// devCA is where the maker of its TPM is, within its directory.
const devCA = "tpm-ca"

// devTPM is the software TPM beside a throw-away authority.
type devTPM struct {
	process *swtpm.Process
	dir     string // of the holder key
}

// startDevTPM makes a TPM and starts it, and has the authority trust its maker
// and accept its PCRs as they are.
func startDevTPM(ctx context.Context, dir string, a *authority.Authority) (_ *devTPM, err error) {
	stateDir, ca := filepath.Join(dir, "tpm"), filepath.Join(dir, devCA)
	if err := swtpm.Manufacture(ctx, stateDir, ca); err != nil {
		return nil, err
	}
	roots, err := swtpm.Roots(ca)
	if err != nil {
		return nil, err
	}
	t := &devTPM{dir: filepath.Join(dir, "holder")}
	if t.process, err = swtpm.StartUnix(stateDir, filepath.Join(dir, "tpm.sock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.stop()
		}
	}()
	h, err := holder.Open(holder.Config{TPM: t.process.Address, Dir: t.dir})
	if err != nil {
		return nil, err
	}
	p := attest.Policy{
		Format: 1, Name: devPolicy, EKRoots: []string{devPolicy}, EKKinds: []attest.Kind{h.Kind()}, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}, SessionKeys: true,
		Lifetime: attest.Duration(5 * time.Minute),
	}
	set, err := h.CapturePCRs("golden", p.PCRs)
	if err = errors.Join(err, h.Close()); err != nil {
		return nil, err
	}
	p.PCRSets = []attest.PCRSet{set}
	document, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	call := authority.Call{Caller: authority.Caller{Name: state.SystemActor}}
	if _, err := a.SetRoots(ctx, call, devPolicy, &api.RootsRequest{PEM: string(roots)}); err != nil {
		return nil, err
	}
	_, err = a.SetPolicy(ctx, call, &api.PolicyRequest{Document: string(document)})
	return t, err
}

// stop ends the TPM; a nil one is none.
func (t *devTPM) stop() {
	if t != nil {
		t.process.Kill()
	}
}
