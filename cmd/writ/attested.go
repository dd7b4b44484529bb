package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// attestedFlags have mint demand attestation.
type attestedFlags struct {
	policy, by, discharger string
}

func (f *attestedFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.policy, "attested", "", "demand that the holder attests its machine under this `policy`")
	s.StringVar(&f.by, "by", "", "`who` has to: a key (jkt:…) or a device of writ device id, or any-machine (default the key of --holder)")
	s.StringVar(&f.discharger, "attested-at", "authority", "`discharger` that judges it")
}

// request is the third-party caveat that the flags ask for, or nil. Who is
// expected is the one key of --holder, unless --by says.
func (f *attestedFlags) request(cmd *cobra.Command, holders []string) (*api.ThirdPartyRequest, error) {
	if f.policy != "" && f.by == "" && len(holders) == 1 && strings.HasPrefix(holders[0], "jkt:") {
		f.by = holders[0]
	}
	if f.policy == "" {
		if f.by != "" {
			return nil, usage(cmd, "--by goes with --attested")
		}
		return nil, nil
	}
	r := &api.ThirdPartyRequest{Discharger: f.discharger, Condition: "attested " + f.policy}
	switch _, err := capability.ParseDeviceID(f.by); {
	case f.by == "":
		return nil, usage(cmd, "--attested needs --holder jkt:… or --by: the key or the device that is expected, or any-machine in so many words")
	case f.by == "any-machine":
		r.AnyMachine = true
	case strings.HasPrefix(f.by, "jkt:"):
		r.Holder = f.by
	case err == nil:
		r.Device = f.by
	default:
		return nil, usage(cmd, "--by %q is no key (jkt:…) and no device id", f.by)
	}
	return r, nil
}
