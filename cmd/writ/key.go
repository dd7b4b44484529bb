package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

func newKey(a *app) *cobra.Command {
	return group("key", "make and look at a holder's own key", newKeyNew(a), newKeyShow(a))
}

// keyAnswer is what --output json prints.
type keyAnswer struct {
	Holder    string `json:"holder"` // as a holder caveat names it
	Algorithm string `json:"algorithm"`
	JWK       string `json:"jwk"` // the public key
	File      string `json:"file"`
}

func (a *app) emitKey(cmd *cobra.Command, k *pop.Key, file string) error {
	answer := keyAnswer{k.HolderKey().String(), k.Algorithm().String(), k.JWK(), file}
	return a.emit(cmd, answer, func(p *printer) { p.line("%s", answer.Holder) })
}

func newKeyNew(a *app) *cobra.Command {
	var out, algorithm string
	cmd := &cobra.Command{
		Use:   "new",
		Short: "make a key, and print what a holder caveat names it by",
		Long: `Make a key, and print what a holder caveat names it by. The private key goes into a
new file that only its owner can read (PKCS #8 in PEM) and nowhere else; whoever can
read it can prove it. A token that names the key is of no use without it.`,
		Example: `  writ key new --out agent.key
  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    --holder agent.key -c 'action read' > t`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usage(cmd, "--out is required")
			}
			algorithms := map[string]pop.Algorithm{"ed25519": pop.Ed25519, "p256": pop.ES256}
			k, err := pop.GenerateKey(algorithms[algorithm])
			if err != nil {
				return usage(cmd, "--algorithm is ed25519 or p256, got %q", algorithm)
			}
			if err := pop.WriteKeyFile(out, k); err != nil {
				return err
			}
			return a.emitKey(cmd, k, out)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write the private key to this new `file`, mode 0600")
	cmd.Flags().StringVar(&algorithm, "algorithm", "ed25519", "`kind` of key: ed25519 or p256")
	return cmd
}

func newKeyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "print what a holder caveat names a key by",
		Long:  "Print what a holder caveat names a key by. The private key is not shown.",
		Example: `  writ key new --out agent.key
  writ key show agent.key`,
		Args: exactArguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := pop.ReadKeyFile(args[0])
			if err != nil {
				return err
			}
			return a.emitKey(cmd, k, args[0])
		},
	}
}

// holderCaveat is the caveat that one of these holders proves its key: each is
// jkt:…, x5t:… or a key file. None is no caveat.
func holderCaveat(holders []string) (string, error) {
	if len(holders) == 0 {
		return "", nil
	}
	var keys []capability.HolderKey
	for _, h := range holders {
		if strings.HasPrefix(h, "jkt:") || strings.HasPrefix(h, "x5t:") {
			k, err := capability.ParseHolderKey(h)
			if err != nil {
				return "", &failure{Code: "holder", Message: "--holder " + h + " is no thumbprint", Hint: "it is what writ key show FILE prints"}
			}
			keys = append(keys, k)
			continue
		}
		k, err := pop.ReadKeyFile(h)
		if err != nil {
			return "", err
		}
		keys = append(keys, k.HolderKey())
	}
	return caveats.Holder(keys...)
}

func explainPossession(err error) *failure {
	if errors.Is(err, pop.ErrKeyFile) || errors.Is(err, pop.ErrKey) {
		return &failure{Code: "key_file", Message: lower(err.Error()), Hint: "writ key new makes one"}
	}
	return nil
}
