package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/atomicfile"
	"github.com/writ-dev/writ/authority/seal"
)

func newClusterSnapshot(a *app) *cobra.Command {
	return group("snapshot", "back an authority up, and restore it",
		newSnapshotSave(a), newSnapshotInspect(a), newSnapshotRestore(a))
}

func newSnapshotSave(a *app) *cobra.Command {
	var conn connection
	var out string
	cmd := &cobra.Command{
		Use:   "save",
		Short: "save a backup of a running authority to a file",
		Long: `Save a backup of a running authority to a file, through any of its nodes. The file is
sealed under the cluster key: a node's key file of that time opens it, and the recovery
identity, and nothing else does. The audit log is not in it: archive that with the nodes'
audit directories.`,
		Example: "  writ cluster snapshot save --out writ.backup",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" || out == "-" {
				return usage(cmd, "--out is required")
			}
			c, err := conn.open(a)
			if err != nil {
				return err
			}
			defer c.Close()
			h, size, err := saveSnapshot(out, func(w io.Writer) error { return c.SaveSnapshot(cmd.Context(), w) })
			if err != nil {
				return err
			}
			return a.emit(cmd, snapshotAnswer{File: out, Bytes: size, Header: h}, func(p *printer) { printHeader(p, a, h, size) })
		},
	}
	conn.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "write the backup to this new `file`, mode 0600; required")
	return cmd
}

type snapshotAnswer struct {
	File    string                   `json:"file"`
	Bytes   int64                    `json:"bytes"`
	Header  authority.BackupHeader   `json:"header"`
	Opened  bool                     `json:"opened"` // and so it is genuine
	Index   uint64                   `json:"index,omitempty"`
	Summary *authority.BackupSummary `json:"summary,omitempty"`
}

// saveSnapshot has save write to a name of its own first, and reads that again.
func saveSnapshot(out string, save func(io.Writer) error) (h authority.BackupHeader, size int64, err error) {
	if _, err := os.Lstat(out); err == nil {
		return h, 0, &failure{Code: "exists", Message: out + ": file exists", Hint: "a backup is not written over another"}
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".writ-backup-")
	if err != nil {
		return h, 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := save(w); err != nil {
		return h, 0, err
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return h, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return h, 0, err
	}
	b, err := authority.OpenBackup(f, info.Size())
	if err != nil {
		return h, 0, err
	}
	return b.Header, info.Size(), atomicfile.Rename(f.Name(), out)
}

func printHeader(p *printer, a *app, h authority.BackupHeader, size int64) {
	p.field("cluster", h.Cluster)
	p.field("incarnation", strconv.FormatUint(h.Incarnation, 10))
	p.field("saved", fmt.Sprintf("%s by %s", a.when(h.Saved), h.Node))
	p.field("size", fmt.Sprintf("%d bytes", size))
	p.field("opens for", strings.Join(h.Recipients(), ", "))
}

// opening says with what a backup, or a node's directory, is opened.
type opening struct {
	config   configFlags
	recovery string
	identity *seal.Identity
}

func (o *opening) add(cmd *cobra.Command) {
	o.config.add(cmd)
	cmd.Flags().StringVar(&o.recovery, "recovery-identity", "", "`file` with the recovery identity, instead of the node's key file")
}

// load reads the configuration, and the recovery identity if there is one.
func (o *opening) load(a *app, cmd *cobra.Command) (*config, error) {
	c, err := o.config.load(a, cmd)
	if err != nil || o.recovery == "" {
		return c, err
	}
	b, err := os.ReadFile(o.recovery)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	o.identity, err = seal.ParseRecovery(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, &failure{Code: "wrong_key_file", Message: fmt.Sprintf("%s: %v", o.recovery, err), Hint: "it holds what writ keys recovery --out wrote"}
	}
	return c, nil
}

func newSnapshotInspect(a *app) *cobra.Command {
	var o opening
	var open bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "tell what a backup is of, and check it",
		Long: `Tell what a backup is of. Its checksum is checked. With --open, or with a recovery
identity, it is opened too, which alone proves that it is genuine, and its content is
checked and counted. Nothing is restored.`,
		Example: `  writ cluster snapshot save --out writ.backup
  writ cluster snapshot inspect writ.backup`,
		Args: exactArguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.inspectSnapshot(cmd, &o, open, args[0]) },
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&open, "open", false, "open it with the node's key file")
	return cmd
}

// openBackupFile opens a backup. Whoever calls it closes the file.
func openBackupFile(path string) (*authority.BackupFile, *os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, 0, err
	}
	info, err := f.Stat()
	if err == nil {
		var b *authority.BackupFile
		if b, err = authority.OpenBackup(f, info.Size()); err == nil {
			return b, f, info.Size(), nil
		}
	}
	return nil, nil, 0, errors.Join(err, f.Close())
}

func (a *app) inspectSnapshot(cmd *cobra.Command, o *opening, open bool, path string) error {
	c, err := o.load(a, cmd)
	if err != nil {
		return err
	}
	b, f, size, err := openBackupFile(path)
	if err != nil {
		return err
	}
	defer f.Close()
	answer := snapshotAnswer{File: path, Bytes: size, Header: b.Header}
	if open || o.identity != nil {
		identity := o.identity
		if identity == nil {
			var sealed []seal.Protector
			if p := protector(c.NodeKeyTPM); p != nil {
				sealed = append(sealed, p)
			}
			if identity, err = seal.ReadIdentityFile(c.NodeKey, c.passphrase(), sealed...); err != nil {
				return err
			}
			defer identity.Destroy()
		}
		summary, meta, err := b.Inspect(identity)
		if err != nil {
			return err
		}
		answer.Opened, answer.Summary, answer.Index = true, summary, meta.Index
	}
	return a.emit(cmd, answer, func(p *printer) {
		printHeader(p, a, b.Header, size)
		if !answer.Opened {
			p.line("the checksum is right; --open proves that it is genuine")
			return
		}
		s := answer.Summary
		p.field("index", strconv.FormatUint(answer.Index, 10))
		p.field("holds", fmt.Sprintf("%d tokens, %d revocations, %d audit records counted", s.Tokens, s.Revocations, s.AuditRecords))
		p.field("services", strings.Join(s.Services, ", "))
		p.field("epochs", strings.Trim(fmt.Sprint(s.Epochs), "[]"))
		p.field("ca", s.CAFingerprint)
		p.line("it opens, and is whole and genuine")
	})
}

// rebirthFlags say how a new incarnation begins.
type rebirthFlags struct {
	opening
	keep       []uint
	rootToken  string
	checkpoint string
}

func (o *rebirthFlags) add(cmd *cobra.Command) {
	o.opening.add(cmd)
	f := cmd.Flags()
	f.UintSliceVar(&o.keep, "keep-epoch", nil, "`number` of a master key's epoch whose tokens go on, also those revoked since")
	f.StringVar(&o.rootToken, "root-token", "", "write the new root token to this new `file`, mode 0600; required")
	f.StringVar(&o.checkpoint, "checkpoint", "", "`file` with a newer signed checkpoint of the audit log")
}

// rebirth reads what the flags say.
func (o *rebirthFlags) rebirth(a *app, cmd *cobra.Command) (r authority.Rebirth, err error) {
	c, err := o.load(a, cmd)
	if err != nil {
		return r, err
	}
	if o.rootToken == "" || o.rootToken == "-" {
		return r, usage(cmd, "--root-token is required: the credentials of before are refused from now on")
	}
	if err := checkDir(c.DataDir); err != nil {
		return r, err
	}
	r = authority.Rebirth{Config: c.custodyConfig(a), Recovery: o.identity, API: c.APIAddress}
	if c.PeerListen != "" {
		r.Raft = c.PeerListen
		if c.PeerAddress != "" {
			r.Raft = c.PeerAddress
		}
		if r.API == "" {
			r.API = c.Listen
		}
	}
	for _, n := range o.keep {
		r.KeepEpochs = append(r.KeepEpochs, uint32(n))
	}
	if o.checkpoint != "" {
		if r.Checkpoint, err = os.ReadFile(o.checkpoint); err != nil {
			return r, err
		}
	}
	return r, nil
}

// custodyConfig is the configuration of a node that does not serve.
func (c *config) custodyConfig(a *app) authority.Config {
	quiet := *c
	if level, _ := c.level(); level == slog.LevelInfo {
		quiet.LogLevel = "warn" // it starts and ends a node in a second
	}
	return authority.Config{
		Dir: c.DataDir, NodeID: c.Node, KeyFile: c.NodeKey, Passphrase: c.passphrase(), Protector: protector(c.NodeKeyTPM), Version: version().Version, Logger: quiet.logger(a.stderr),
	}
}

// rebornAnswer is what --output json prints.
type rebornAnswer struct {
	Cluster       string   `json:"cluster"`
	Incarnation   uint64   `json:"incarnation"`
	Before        uint64   `json:"incarnation_before"`
	Index         uint64   `json:"index"`
	Ended         []uint32 `json:"epochs_ended"`
	Services      []string `json:"services"` // to be added again
	CAFingerprint string   `json:"ca_fingerprint"`
	RootTokenFile string   `json:"root_token_file"`
}

// finish stores the root token, for which the file was made before, and tells.
func (o *rebirthFlags) finish(a *app, cmd *cobra.Command, do func() (*authority.Reborn, error)) error {
	file, err := formedFile(o.rootToken)
	if err != nil {
		return err
	}
	defer file.Close()
	r, err := do()
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	_, err = file.WriteString(r.RootToken + "\n")
	if err := errors.Join(err, file.Sync()); err != nil {
		return err
	}
	answer := rebornAnswer{
		Cluster: r.Cluster, Incarnation: r.Incarnation, Before: r.Before, Index: r.Index, Ended: r.Ended, Services: r.Services,
		CAFingerprint: hex.EncodeToString(r.CAFingerprint[:]), RootTokenFile: file.Name(),
	}
	return a.emit(cmd, answer, func(p *printer) {
		p.line("incarnation %d begins, after %d; what was acknowledged up to index %d is there", answer.Incarnation, answer.Before, answer.Index)
		p.line("ca %s", answer.CAFingerprint)
		if len(answer.Ended) > 0 {
			p.line("tokens of the epochs %s are refused, and so are all credentials", strings.Trim(fmt.Sprint(answer.Ended), "[]"))
		}
		for _, s := range answer.Services {
			p.line("add again: %s", s)
		}
	})
}

func newSnapshotRestore(a *app) *cobra.Command {
	var o rebirthFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "make a new authority of one node out of a backup",
		Long: `Make a new authority of one node out of a backup, in an empty data directory. It is a
new incarnation: nothing that was revoked or spent since the backup comes back to life.
Every token and credential of before is refused, but for tokens of the epochs that
--keep-epoch names; of those, what was revoked since is good again until it ends. Services
are added again; what clients pin stays as it was. Compare the CA's fingerprint.

The backup is opened with the node's key file, or with the recovery identity; then a key
file that is not there is made.`,
		Example: `  writ serve --init --data-dir ./data --node-key ./node.key --root-token ./root.token \
    --listen 127.0.0.1:0 > env & node=$!
  until test -s env; do sleep 0.1; done; . ./env
  writ cluster snapshot save --out writ.backup
  kill $node; wait $node
  writ cluster snapshot restore writ.backup --data-dir ./restored --node-key ./node.key \
    --root-token ./new.token`,
		Args: exactArguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := o.rebirth(a, cmd)
			if err != nil {
				return err
			}
			b, f, _, err := openBackupFile(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			return o.finish(a, cmd, func() (*authority.Reborn, error) { return authority.Restore(cmd.Context(), r, b) })
		},
	}
	o.add(cmd)
	return cmd
}

func newClusterRecover(a *app) *cobra.Command {
	var o rebirthFlags
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "go on with one node when the quorum is lost for good",
		Long: `Go on with one stopped node, from its own data directory, when so many others are lost
for good that the rest is no majority. Choose the node that is furthest (writ cluster
status). What only the lost nodes had acknowledged is lost, so this begins a new
incarnation, as a restore does: see writ cluster snapshot restore. The data directories
of all other nodes must never be started again: wipe them, and have the nodes join anew.`,
		Example: `  writ serve --init --data-dir ./data --node-key ./node.key --root-token ./root.token \
    --listen 127.0.0.1:0 > env & node=$!
  until test -s env; do sleep 0.1; done; kill $node; wait $node
  writ cluster recover --data-dir ./data --node-key ./node.key --root-token ./new.token`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := o.rebirth(a, cmd)
			if err != nil {
				return err
			}
			return o.finish(a, cmd, func() (*authority.Reborn, error) { return authority.Recover(cmd.Context(), r) })
		},
	}
	o.add(cmd)
	return cmd
}
