package main

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/state"
)

func (a *app) printRecipients(p *printer, list *api.RecipientList) {
	p.field("cluster key", "number "+strconv.FormatUint(uint64(list.Number), 10))
	var rows [][]string
	for _, r := range list.Recipients {
		rows = append(rows, []string{r.Name, r.Recipient})
	}
	p.table([]string{"OPENS FOR", "RECIPIENT"}, rows)
}

// recipientsCommand is a command that answers with the recipients.
func recipientsCommand(a *app, cmd *cobra.Command, call func(ctx context.Context, c *client.Client) (*api.RecipientList, error)) *cobra.Command {
	var conn connection
	cmd.Args = noArguments
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return ask(a, cmd, &conn, call, a.printRecipients) }
	conn.add(cmd)
	return cmd
}

func newKeysRecipients(a *app) *cobra.Command {
	return recipientsCommand(a, &cobra.Command{
		Use:     "recipients",
		Short:   "list whose identities open the cluster key",
		Long:    "List whose identities open the cluster key: the nodes, and the recovery recipient.",
		Example: "  writ keys recipients",
	}, func(ctx context.Context, c *client.Client) (*api.RecipientList, error) { return c.Recipients(ctx) })
}

func newKeysReseal(a *app) *cobra.Command {
	return recipientsCommand(a, &cobra.Command{
		Use:   "reseal",
		Short: "seal every key anew under a new cluster key",
		Long: `Seal every key anew under a new cluster key, in one change, while the authority goes on.
Backups from before open with what opened them then.`,
		Example: "  writ keys reseal",
	}, func(ctx context.Context, c *client.Client) (*api.RecipientList, error) {
		return c.RotateClusterKey(ctx)
	})
}

func newKeysSetRecovery(a *app) *cobra.Command {
	var r api.RecoveryRequest
	cmd := recipientsCommand(a, &cobra.Command{
		Use:   "set-recovery",
		Short: "give a running authority another recovery recipient",
		Long: `Wrap the cluster key for a recovery recipient (writ keys recovery makes one), in place of
the one before or of none. To shut the one before out for good, reseal afterwards.`,
		Example: `  writ keys set-recovery --recipient "$(writ keys recovery --out recovery.txt)"`,
	}, func(ctx context.Context, c *client.Client) (*api.RecipientList, error) { return c.SetRecovery(ctx, r) })
	cmd.Flags().StringVar(&r.Recipient, "recipient", "", "the `recipient`, writ-recipient-…; required")
	return cmd
}

func newKeysNode(a *app) *cobra.Command {
	var o opening
	var next newProtection
	var file string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "give a stopped node a new key file",
		Long: `Give a stopped node a new key file; the old one opens nothing of the node from then on.
The other nodes of a cluster are asked, so that they know the node by the new key, with
which the old one agrees: a majority of the voters must be up. Where the key of a node
that is alone is lost, the recovery identity opens it instead; a member of a cluster that
has lost its key is replaced: have another node join, and remove it.`,
		Example: `  writ serve --init --data-dir ./data --node-key ./node.key --root-token ./root.token \
    --listen 127.0.0.1:0 > env & node=$!
  until test -s env; do sleep 0.1; done; kill $node; wait $node
  writ keys node --data-dir ./data --node-key ./node.key --new-node-key ./new.key`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(a, cmd)
			if err != nil {
				return err
			}
			if file == "" {
				return usage(cmd, "--new-node-key is required")
			}
			key := next.key()
			key.File = file
			if err := authority.ChangeNodeKey(cmd.Context(), c.custodyConfig(a), o.identity, key); err != nil {
				return err
			}
			a.say(cmd, "the node starts with --node-key %s from now on", file)
			return a.emit(cmd, map[string]string{"node_key": file}, func(*printer) {})
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&file, "new-node-key", "", "make this new key `file`; required")
	next.add(cmd)
	return cmd
}

// newProtection says how a key file is to be protected.
type newProtection struct{ passphrase, tpm string }

func (n *newProtection) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&n.passphrase, "new-passphrase-file", "", "`file` with the new passphrase of the key file")
	cmd.Flags().StringVar(&n.tpm, "new-node-key-tpm", "", "`TPM` to seal the key file to: a device, unix:PATH or tcp:HOST:PORT")
	cmd.MarkFlagsMutuallyExclusive("new-passphrase-file", "new-node-key-tpm")
}

func (n *newProtection) key() authority.NodeKey {
	c := config{PassphraseFile: n.passphrase}
	return authority.NodeKey{Passphrase: c.passphrase(), Protector: protector(n.tpm)}
}

func newKeysPassphrase(a *app) *cobra.Command {
	var flags configFlags
	var next newProtection
	var none bool
	cmd := &cobra.Command{
		Use:   "passphrase",
		Short: "protect the node's key file otherwise",
		Long: `Protect the node's key file with another passphrase, with this machine's TPM, or with
neither. The key stays the same; the node need not be stopped, but reads the file again
when keys change: change its configuration, and start it anew.

Sealed to a TPM, a copied file is worth nothing on another machine; whoever is root on
this one can use it. TPM2_Clear ends it: have a recovery identity, or other nodes.`,
		Example: `  writ serve --init --data-dir ./data --node-key ./node.key --root-token ./root.token \
    --listen 127.0.0.1:0 > env & node=$!
  until test -s env; do sleep 0.1; done; kill $node; wait $node
  (umask 077; head -c 24 /dev/urandom | base64 > passphrase)
  writ keys passphrase --node-key ./node.key --new-passphrase-file passphrase`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load(a, cmd)
			if err != nil {
				return err
			}
			if (next == newProtection{}) == !none {
				return usage(cmd, "one of --new-passphrase-file, --new-node-key-tpm and --no-passphrase is required")
			}
			was := authority.NodeKey{File: c.NodeKey, Passphrase: c.passphrase(), Protector: protector(c.NodeKeyTPM)}
			if err := authority.ReprotectNodeKey(was, next.key()); err != nil {
				return err
			}
			a.say(cmd, "%s is protected anew", c.NodeKey)
			return a.emit(cmd, map[string]string{"node_key": c.NodeKey}, func(*printer) {})
		},
	}
	flags.add(cmd)
	next.add(cmd)
	cmd.Flags().BoolVar(&none, "no-passphrase", false, "leave the key file to its mode")
	return cmd
}

func newKeysCA(a *app) *cobra.Command {
	return group("ca", "look at and change the CA by which clients know the authority",
		newKeysCAShow(a), newKeysCARotate(a), newKeysCARetire(a))
}

func (a *app) printCA(p *printer, ca *api.CAInfo) {
	p.line("export WRIT_CA_FINGERPRINT=%s", ca.CAFingerprint)
	if ca.Retiring != "" {
		p.line("# good as well, until writ keys ca retire: %s", ca.Retiring)
	}
}

func newKeysCAShow(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "show the fingerprint that clients are to pin",
		Long:    "Show the fingerprint that clients are to pin, and that of the CA before while it is good.",
		Example: "  writ keys ca show",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.CAInfo, error) { return c.CA(ctx) }, a.printCA)
		},
	}
	conn.add(cmd)
	return cmd
}

func newKeysCARotate(a *app) *cobra.Command {
	var conn connection
	var r api.CARequest
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "give the authority another CA",
		Long: `Give the authority another CA, and every node a certificate by it. The CA before vouches
for the new one, so clients that pin either are served: give them the new fingerprint in
your own time, and then retire the old one (writ keys ca retire).

With --at-once it vouches for nothing: clients that pin it are refused from now on, as
they should be when its key may have leaked. After a node was compromised, use
writ cluster remove --compromised instead: then more than the CA has leaked.`,
		Example: "  writ keys ca rotate",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.CAInfo, error) { return c.RotateCA(ctx, r) }, a.printCA)
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&r.AtOnce, "at-once", false, "refuse clients that pin the CA before")
	return cmd
}

func newKeysCARetire(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "retire",
		Short: "end the CA before the present one",
		Long:  "End the CA before the present one: clients that still pin it are refused from now on.",
		Example: `  writ dev --detach > env && . ./env
  writ keys ca rotate > ca && . ./ca
  writ keys ca retire`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.CAInfo, error) { return c.RetireCA(ctx) }, a.printCA)
		},
	}
	conn.add(cmd)
	return cmd
}

// explainBackup explains what backups and their restores can meet.
func explainBackup(err error) *failure {
	msg := lower(err.Error())
	switch {
	case errors.Is(err, state.ErrUnknownCommand), errors.Is(err, state.ErrVersion):
		msg, _, _ = strings.Cut(msg, "\n") // a stack follows
		return &failure{Code: "unknown_version", Message: msg, Hint: "a later version of writ has written to this log: start the node with that one"}
	case errors.Is(err, authority.ErrBackup):
		return &failure{Code: "backup", Message: msg, Hint: "take another copy of the backup, or an older one"}
	case errors.Is(err, authority.ErrUnfinished):
		return &failure{Code: "unfinished", Message: msg, Hint: "do it again: writ cluster snapshot restore, or writ cluster recover"}
	}
	return nil
}
