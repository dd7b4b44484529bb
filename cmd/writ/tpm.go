package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/swtpm"
	"github.com/writ-dev/writ/caveats/pop"
)

// The variables that tell which TPM to use.
const (
	envTPM    = "WRIT_TPM"     // as holder.Config.TPM takes it
	envTPMDir = "WRIT_TPM_DIR" // where the holder key's blob and the wallet are
)

func init() {
	explainers = append([]func(error) *failure{explainTPM}, explainers...)
	problemHints[api.CodeAttestation] = "the authority's log says why, under the reference; writ device show tells what is known of the device"
	problemHints[api.CodeChallenge] = "begin again"
}

// tpmFlags say which TPM to use, and what to say of this machine.
type tpmFlags struct {
	tpm, dir, kind string
	agent, version string

	opened *holder.Holder
}

func (f *tpmFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.tpm, "tpm", "", "`device`, unix:PATH or tcp:HOST:PORT of the TPM (WRIT_TPM; default /dev/tpmrm0)")
	s.StringVar(&f.dir, "tpm-dir", "", "`directory` of the key's blob and of the wallet (WRIT_TPM_DIR)")
	s.StringVar(&f.kind, "ek", "", "`kind` of endorsement key: ecc-p384, ecc-p256 or rsa-2048 (default the first there is)")
	completeWords(cmd, "ek", string(attest.ECCP384), string(attest.ECCP256), string(attest.RSA2048))
}

func (f *tpmFlags) addPosture(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.agent, "agent", "writ", "`name` of the agent, for the posture statement")
	s.StringVar(&f.version, "agent-version", "", "`version` of the agent, for the posture statement (default writ's own)")
}

// directory is where the holder key's blob and the wallet are.
func (f *tpmFlags) directory(a *app) (string, error) {
	if f.dir != "" {
		return f.dir, nil
	}
	if dir := a.getenv(envTPMDir); dir != "" {
		return dir, nil
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return "", &failure{Code: "config", Message: lower(err.Error()), Hint: "set " + envTPMDir}
	}
	return filepath.Join(config, "writ", "tpm"), nil
}

// open opens the TPM, once: a TPM may serve one connection only, and a command
// can need it for itself and for its calls. It is closed when the command has run.
func (f *tpmFlags) open(a *app) (*holder.Holder, error) {
	if f.opened != nil {
		return f.opened, nil
	}
	dir, err := f.directory(a)
	if err != nil {
		return nil, err
	}
	tpm := f.tpm
	if tpm == "" {
		tpm = a.getenv(envTPM)
	}
	h, err := holder.Open(holder.Config{TPM: tpm, Dir: dir, Kind: attest.Kind(f.kind)})
	if err != nil {
		return nil, err
	}
	f.opened = h
	a.atEnd = append(a.atEnd, func() { _ = h.Close() })
	return h, nil
}

// key is the holder key that is in the TPM.
func (f *tpmFlags) key(a *app) (*pop.Key, error) {
	h, err := f.open(a)
	if err != nil {
		return nil, err
	}
	return pop.NewKey(h.Key())
}

func (f *tpmFlags) posture() attest.Posture {
	v := f.version
	if v == "" {
		v = version().Version
	}
	return holder.LocalPosture(f.agent, v)
}

func explainTPM(err error) *failure {
	msg := lower(err.Error())
	switch {
	case errors.Is(err, holder.ErrNoEndorsement):
		return &failure{Code: "tpm", Message: msg, Hint: "a policy trusts a TPM by its maker's certificate; virtual machines need a vTPM with one"}
	case errors.Is(err, holder.ErrOtherTPM) && errors.Is(err, authority.ErrKeyFile):
		return &failure{Code: "wrong_key_file", Message: msg, Hint: "the key file is of another machine's TPM, or the TPM was cleared: the recovery identity gives a node that is alone a new one"}
	case errors.Is(err, holder.ErrSealed):
		return &failure{Code: "wrong_key_file", Message: msg, Hint: "the key file was damaged"}
	case errors.Is(err, holder.ErrOtherTPM):
		return &failure{Code: "tpm", Message: msg, Hint: "remove the key's file in the TPM directory, and a new key is made; tokens for the old one end"}
	case errors.Is(err, swtpm.ErrNotInstalled):
		return &failure{Code: "tpm", Message: msg}
	case errors.Is(err, wallet.ErrDischarger):
		return &failure{Code: "discharger", Message: msg, Hint: "name it with --discharger LOCATION=HOST:PORT#FINGERPRINT, if you trust it"}
	case errors.Is(err, wallet.ErrFile):
		return &failure{Code: "wallet", Message: msg}
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok && strings.HasPrefix(p.Path, "/dev/tpm") {
		f := &failure{Code: "tpm", Message: msg, Hint: "is there a TPM? --tpm names another one; writ dev --tpm starts a software TPM"}
		if errors.Is(err, fs.ErrPermission) {
			f.Hint = "the group tss may use it: usermod --append --groups tss USER"
		}
		return f
	}
	return nil
}
