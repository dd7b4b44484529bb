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
	var file, passphrase string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "give a stopped node a new key file",
		Long: `Give a stopped node that is alone a new key file; the old one opens nothing of the node
from then on. Where the old one is lost, the recovery identity opens the node instead.
A member of a cluster is known to the others by its key: have another node join, and
remove it.`,
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
			next := *c
			next.PassphraseFile = passphrase
			if err := authority.ChangeNodeKey(cmd.Context(), c.custodyConfig(a), o.identity, authority.NodeKey{File: file, Passphrase: next.passphrase()}); err != nil {
				return err
			}
			a.say(cmd, "the node starts with --node-key %s from now on", file)
			return a.emit(cmd, map[string]string{"node_key": file}, func(*printer) {})
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&file, "new-node-key", "", "make this new key `file`; required")
	cmd.Flags().StringVar(&passphrase, "new-passphrase-file", "", "`file` with the passphrase of the new key file")
	return cmd
}

func newKeysPassphrase(a *app) *cobra.Command {
	var flags configFlags
	var file string
	var none bool
	cmd := &cobra.Command{
		Use:   "passphrase",
		Short: "protect the node's key file with another passphrase",
		Long: `Protect the node's key file with another passphrase, or with none. The key stays the
same; the node need not be stopped.`,
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
			if (file == "") == !none {
				return usage(cmd, "one of --new-passphrase-file and --no-passphrase is required")
			}
			next := *c
			next.PassphraseFile = file
			was := authority.NodeKey{File: c.NodeKey, Passphrase: c.passphrase()}
			if err := authority.ReprotectNodeKey(was, authority.NodeKey{Passphrase: next.passphrase()}); err != nil {
				return err
			}
			a.say(cmd, "%s is protected anew", c.NodeKey)
			return a.emit(cmd, map[string]string{"node_key": c.NodeKey}, func(*printer) {})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&file, "new-passphrase-file", "", "`file` with the new passphrase")
	cmd.Flags().BoolVar(&none, "no-passphrase", false, "leave the key file to its mode")
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
