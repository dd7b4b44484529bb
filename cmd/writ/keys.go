package main

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/seal"
)

func newKeys(a *app) *cobra.Command {
	return group("keys", "look at and change the keys that tokens are minted with",
		newKeysEpochs(a), newKeysRotate(a), newKeysRekey(a), newKeysRoot(a), newKeysRecovery(a),
		newKeysRecipients(a), newKeysSetRecovery(a), newKeysReseal(a), newKeysNode(a), newKeysPassphrase(a), newKeysCA(a))
}

func newKeysEpochs(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "epochs",
		Short: "list the epochs of the master key",
		Long:  "List the epochs of the master key, and the audiences that were rekeyed. No key is shown.",
		Example: `  writ keys epochs
  writ keys epochs --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.EpochList, error) {
				return c.Epochs(ctx)
			}, a.printEpochs)
		},
	}
	conn.add(cmd)
	return cmd
}

func (a *app) printEpochs(p *printer, list *api.EpochList) {
	var rows [][]string
	for _, e := range list.Epochs {
		rows = append(rows, []string{strconv.FormatUint(uint64(e.Epoch), 10), e.State, a.when(e.Published), a.when(e.MintsFrom), a.when(e.Until)})
	}
	p.table([]string{"EPOCH", "STATE", "PUBLISHED", "MINTS FROM", "VERIFIES UNTIL"}, rows)
	for _, audience := range slices.Sorted(maps.Keys(list.Generations)) {
		p.line("audience %s is at generation %d", audience, list.Generations[audience])
	}
}

func newKeysRotate(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "publish the next master key",
		Long: `Publish the next master key. Nothing is minted with it before every service can
have it; what was minted before goes on until it ends.`,
		Example: "  writ keys rotate",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.EpochInfo, error) {
				return c.Rotate(ctx)
			}, func(p *printer, e *api.EpochInfo) { p.line("epoch %d mints from %s", e.Epoch, a.when(e.MintsFrom)) })
		},
	}
	conn.add(cmd)
	return cmd
}

func newKeysRekey(a *app) *cobra.Command {
	var conn connection
	var r api.RekeyRequest
	cmd := &cobra.Command{
		Use:   "rekey",
		Short: "give one audience a new key, when a service of it was compromised",
		Long: `Give one audience a new key, when a service that held the old one was compromised.
Tokens under the old key go on until they end; to end them now, revoke the audience
as well (writ revoke --for-audience).`,
		Example: "  writ keys rekey --audience corp --reason 'files was broken into'",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Audience == "" || r.Reason == "" {
				return usage(cmd, "--audience and --reason are required")
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.RekeyResponse, error) {
				return c.Rekey(ctx, r)
			}, func(p *printer, _ *api.RekeyResponse) { p.line("audience %s was rekeyed", r.Audience) })
		},
	}
	conn.add(cmd)
	cmd.Flags().StringVar(&r.Audience, "audience", "", "the `audience`")
	cmd.Flags().StringVar(&r.Reason, "reason", "", "`why`, for the audit log")
	return cmd
}

func newKeysRoot(a *app) *cobra.Command {
	var flags configFlags
	var out string
	cmd := &cobra.Command{
		Use:   "root",
		Short: "issue a new root token on a node, and revoke the old ones",
		Long: `Issue a new root token, and revoke the old ones: the way back in when the root token
is lost, has ended or has leaked. It works on a node, for whoever can read its key file.
A node of a cluster has the leader issue the token, whether it runs itself or not; one
that is alone is stopped first. The audit log shows it.`,
		Example: `  writ serve --init --data-dir ./data --node-key ./node.key --root-token ./root.token \
    --listen 127.0.0.1:0 > env & node=$!
  until test -s env; do sleep 0.1; done; kill $node; wait $node
  writ keys root --data-dir ./data --node-key ./node.key --out ./new.token`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.keysRoot(cmd, &flags, out) },
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "write the token to this new `file`, mode 0600")
	return cmd
}

func (a *app) keysRoot(cmd *cobra.Command, flags *configFlags, out string) error {
	c, err := flags.load(a, cmd)
	if err != nil {
		return err
	}
	token, err := a.resetRoot(cmd.Context(), c)
	if err != nil {
		return err
	}
	answer := credentialAnswer{Token: token}
	if out != "" && out != "-" {
		if err := writeSecret(cmd, out, token); err != nil {
			// The old ones are revoked already: this one must not be lost.
			_ = writeSecret(cmd, "-", token)
			return fail("the token went to standard output instead", err)
		}
		answer = credentialAnswer{File: out}
	}
	a.say(cmd, "the old root tokens are revoked")
	return a.emit(cmd, answer, func(p *printer) {
		if answer.Token != "" {
			p.line("%s", answer.Token)
		}
	})
}

// resetRoot has the other nodes issue a root token where there are any, and the
// node itself where there are none.
func (a *app) resetRoot(ctx context.Context, c *config) (string, error) {
	if member, err := authority.IsMember(c.DataDir); err != nil {
		return "", err
	} else if member {
		return authority.MemberRoot(ctx, c.custodyConfig(a))
	}
	n, err := openNode(ctx, a, c, c.logger(a.stderr), false)
	if err != nil {
		return "", err
	}
	defer n.Close()
	return n.RootReset(ctx)
}

// credentialAnswer is what --output json prints.
type credentialAnswer struct {
	Token string `json:"token,omitempty"`
	File  string `json:"file,omitempty"`
}

func newKeysRecovery(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "recovery",
		Short: "make a recovery identity, for the configuration of a new authority",
		Long: `Make a recovery identity: whoever has it can open the cluster key of an authority that
was formed with its recipient, when every node is lost. Write down what --out holds,
keep it offline, and delete the file. The recipient on standard output is no secret: it
goes into the configuration (recovery = "writ-recipient-…").`,
		Example: `  writ keys recovery --out recovery.txt
  writ serve --check --recovery "$(writ keys recovery --out another.txt)" --node-key ./node.key`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" || out == "-" {
				return usage(cmd, "--out is required: a recovery identity is not printed")
			}
			id, err := seal.GenerateIdentity(a.rand)
			if err != nil {
				return err
			}
			defer id.Destroy()
			text, err := id.RecoveryText()
			if err != nil {
				return err
			}
			if err := writeSecret(cmd, out, text); err != nil {
				return err
			}
			a.say(cmd, "the identity is in %s: keep it offline", out)
			answer := map[string]string{"recipient": id.Recipient().String(), "file": out}
			return a.emit(cmd, answer, func(p *printer) { p.line("%s", answer["recipient"]) })
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write the identity to this new `file`, mode 0600; required")
	return cmd
}
