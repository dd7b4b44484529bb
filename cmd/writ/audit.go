package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/client"
)

func explainAudit(err error) *failure {
	msg := lower(err.Error())
	switch {
	case errors.Is(err, audit.ErrCorrupt):
		return &failure{Code: "audit_corrupt", Message: msg, Hint: "the files hold what writ never wrote: keep a copy, and compare with a checkpoint kept elsewhere"}
	case errors.Is(err, audit.ErrProof):
		return &failure{Code: "audit_proof", Message: msg, Hint: "history was changed, or this is another log: keep the checkpoint that you had"}
	case errors.Is(err, audit.ErrSignature):
		return &failure{Code: "audit_signature", Message: msg, Hint: "is the verifier key that of this cluster and incarnation?"}
	case errors.Is(err, audit.ErrOrigin):
		return &failure{Code: "audit_origin", Message: msg, Hint: "a restored cluster begins a new log; its first record is the old one's checkpoint"}
	case errors.Is(err, audit.ErrMalformed):
		return &failure{Code: "audit_malformed", Message: msg}
	}
	return nil
}

func newAudit(a *app) *cobra.Command {
	return group("audit", "read the audit log and check that nobody rewrote it",
		newAuditVerify(a), newAuditLog(a), newAuditCheckpoint(a), newAuditProve(a))
}

type auditVerifyOptions struct {
	conn connection
	dir  string
	key  string
	kept string
}

func newAuditVerify(a *app) *cobra.Command {
	var o auditVerifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "recompute the whole audit log and hold it against its checkpoint",
		Long: `Fetch every record, recompute the tree, and hold it against the checkpoint that the
authority signed. With --kept FILE the checkpoint is also held against the one in
that file, which a run before left there: then a log that was rewritten, cut or
exchanged in between shows, whoever holds the signing key. Keep that file where the
operator of the authority cannot write.

With --dir the files of a stopped node are checked instead, offline: DATA_DIR/audit, or
a copy of it, with the verifier key that --key gives (writ audit checkpoint prints it).`,
		Example: `  writ audit verify
  writ audit verify --kept checkpoint`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.auditVerify(cmd, &o) },
	}
	o.conn.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "check the log in this `directory`, offline")
	f.StringVar(&o.key, "key", "", "verifier `key` of the log; without it, the one that the authority names is used")
	f.StringVar(&o.kept, "kept", "", "`file` with the checkpoint of the run before; made, and moved on after success")
	return cmd
}

// auditReport is what --output json prints.
type auditReport struct {
	Origin      string `json:"origin"`
	Size        int64  `json:"size"`
	Root        string `json:"root"`
	Signed      int64  `json:"signed"`         // records that a checked signature covers
	First       int64  `json:"first"`          // first record whose body was read
	Kept        *int64 `json:"kept,omitempty"` // size of the checkpoint that was kept
	Checkpoints int    `json:"checkpoints"`
}

func (a *app) auditVerify(cmd *cobra.Command, o *auditVerifyOptions) error {
	var key note.Verifier
	if o.key != "" {
		var err error
		if key, err = audit.ParseVerifier(o.key); err != nil {
			return fail("--key", err)
		}
	}
	if o.dir != "" && key == nil {
		return &failure{Code: "usage", Message: "--dir needs --key", Hint: "writ audit checkpoint prints the verifier key: keep it apart from the node"}
	}
	kept, err := readKept(o.kept, key)
	if err != nil {
		return err
	}
	var report *auditReport
	var checkpoint []byte
	if o.dir != "" {
		report, err = verifyFiles(o.dir, key, kept)
	} else {
		report, checkpoint, err = a.verifyRemote(cmd, o, key, kept)
	}
	if err != nil {
		return err
	}
	if kept != nil {
		report.Kept = &kept.Size
	}
	if o.kept != "" && checkpoint != nil {
		if err := replaceFile(o.kept, checkpoint); err != nil {
			return err
		}
	}
	return a.emit(cmd, report, func(p *printer) {
		p.line("ok: %d records, root %s", report.Size, report.Root)
		p.field("log", report.Origin)
		p.field("signed", fmt.Sprintf("%d records", report.Signed))
		if report.First > 0 {
			p.field("archived", fmt.Sprintf("%d records, hashes only", report.First))
		}
		if report.Kept != nil {
			p.field("kept", fmt.Sprintf("the first %d records are those of the checkpoint that was kept", *report.Kept))
		}
	})
}

func readKept(file string, key note.Verifier) (*audit.Checkpoint, error) {
	if file == "" {
		return nil, nil
	}
	msg, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// It is the user's own file: without a key it is trusted as it stands.
	read := audit.ReadUnverified
	if key != nil {
		read = func(msg []byte) (audit.Checkpoint, error) { return audit.VerifyCheckpoint(msg, key) }
	}
	c, err := read(msg)
	if err != nil {
		return nil, fail(file, err)
	}
	return &c, nil
}

// replaceFile writes a file in whole or not at all.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".writ-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// logDir is the directory of the newest incarnation's log beneath a node's
// audit directory, or dir itself if it is a log.
func logDir(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	newest := uint64(0)
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && e.IsDir() {
			newest = max(newest, n)
		}
	}
	if newest == 0 {
		return dir, nil
	}
	return filepath.Join(dir, strconv.FormatUint(newest, 10)), nil
}

func verifyFiles(dir string, key note.Verifier, kept *audit.Checkpoint) (*auditReport, error) {
	dir, err := logDir(dir)
	if err != nil {
		return nil, err
	}
	var known []audit.Checkpoint
	if kept != nil {
		known = append(known, *kept)
	}
	r, err := audit.VerifyDir(dir, key, known...)
	if err != nil {
		return nil, err
	}
	return &auditReport{
		Origin: r.Origin, Size: r.Size, Root: base64.StdEncoding.EncodeToString(r.Root[:]), Signed: r.Signed,
		First: r.First, Checkpoints: r.Checkpoints,
	}, nil
}

func (a *app) verifyRemote(cmd *cobra.Command, o *auditVerifyOptions, key note.Verifier, kept *audit.Checkpoint) (*auditReport, []byte, error) {
	c, err := o.conn.open(a)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	ctx := cmd.Context()
	signed, checkpoint, err := fetchCheckpoint(ctx, c, key)
	if err != nil {
		return nil, nil, err
	}
	checks := []audit.Checkpoint{checkpoint}
	if kept != nil {
		if kept.Origin != checkpoint.Origin {
			return nil, nil, fmt.Errorf("%w: %q was kept, this is %q", audit.ErrOrigin, kept.Origin, checkpoint.Origin)
		}
		if kept.Size > checkpoint.Size {
			return nil, nil, fmt.Errorf("%w: the log shrank from %d records to %d", audit.ErrProof, kept.Size, checkpoint.Size)
		}
		checks = []audit.Checkpoint{*kept, checkpoint}
	}
	edge, err := audit.VerifyRecords(remoteRecords(ctx, c, checkpoint.Size), checks...)
	if err != nil {
		return nil, nil, err
	}
	root := edge.Root()
	return &auditReport{
		Origin: checkpoint.Origin, Size: edge.Size(), Root: base64.StdEncoding.EncodeToString(root[:]),
		Signed: checkpoint.Size, Checkpoints: len(checks),
	}, signed, nil
}

// fetchCheckpoint fetches the signed checkpoint and checks its signature: with
// key, or else with the key that the authority names.
func fetchCheckpoint(ctx context.Context, c *client.Client, key note.Verifier) ([]byte, audit.Checkpoint, error) {
	answer, err := c.Checkpoint(ctx)
	if err != nil {
		return nil, audit.Checkpoint{}, err
	}
	if key == nil {
		if key, err = audit.ParseVerifier(answer.VerifierKey); err != nil {
			return nil, audit.Checkpoint{}, err
		}
	}
	checkpoint, err := audit.VerifyCheckpoint([]byte(answer.Checkpoint), key)
	return []byte(answer.Checkpoint), checkpoint, err
}

const auditPage = 1000

// remoteRecords yields records 0 to size, page by page.
func remoteRecords(ctx context.Context, c *client.Client, size int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for n := int64(0); n < size; {
			page, err := c.AuditRecords(ctx, n, int(min(auditPage, size-n)))
			if err == nil && (page.From != n || len(page.Records) == 0) {
				err = fmt.Errorf("%w: the authority left out record %d", audit.ErrProof, n)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, r := range page.Records {
				if n++; n > size {
					return
				}
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

func newAuditLog(a *app) *cobra.Command {
	var conn connection
	var from int64
	var limit int
	cmd := &cobra.Command{
		Use:   "log",
		Short: "print audit records, one line of JSON each",
		Long: `Print audit records, oldest first, one line of JSON each, exactly as the tree has
them hashed. writ audit verify decides whether they are whole.`,
		Example: "  writ audit log --from 0 --limit 100",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from < 0 || limit < 0 {
				return usage(cmd, "--from and --limit are not negative")
			}
			c, err := conn.open(a)
			if err != nil {
				return err
			}
			defer c.Close()
			status, err := c.AuditRecords(cmd.Context(), from, 1)
			if err != nil {
				return err
			}
			size := status.Size
			if limit > 0 {
				size = min(size, from+int64(limit))
			}
			for n := from; n < size; {
				page, err := c.AuditRecords(cmd.Context(), n, int(min(auditPage, size-n)))
				if err != nil {
					return err
				}
				if len(page.Records) == 0 {
					return nil
				}
				for _, r := range page.Records {
					if err := writeAll(cmd.OutOrStdout(), append(recordLine(r), '\n')); err != nil {
						return err
					}
				}
				n += int64(len(page.Records))
			}
			return nil
		},
	}
	conn.add(cmd)
	cmd.Flags().Int64Var(&from, "from", 0, "`number` of the first record")
	cmd.Flags().IntVar(&limit, "limit", 0, "print at most this `many` (default: all)")
	return cmd
}

// recordLine is a record on one line that a terminal can bear.
func recordLine(r []byte) []byte {
	if !json.Valid(r) {
		return []byte(safe(string(r)))
	}
	return bytes.ReplaceAll(asciiJSON(r), []byte("\n"), []byte(" "))
}

func newAuditCheckpoint(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "print the audit log's signed checkpoint",
		Long: `Print the audit log's signed checkpoint, in the format of C2SP tlog-checkpoint. Keep
it where the operator of the authority cannot write: whatever is rewritten later does
not agree with it. The verifier key goes to standard error.`,
		Example: "  writ audit checkpoint > checkpoint\n  writ audit verify --kept checkpoint",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open(a)
			if err != nil {
				return err
			}
			defer c.Close()
			answer, err := c.Checkpoint(cmd.Context())
			if err != nil {
				return err
			}
			key, err := audit.ParseVerifier(answer.VerifierKey)
			if err != nil {
				return err
			}
			if _, err := audit.VerifyCheckpoint([]byte(answer.Checkpoint), key); err != nil {
				return err
			}
			if text := strings.ReplaceAll(answer.Checkpoint, "\n", ""); safe(text) != text {
				return fmt.Errorf("%w: the checkpoint holds what does not print", audit.ErrMalformed)
			}
			a.say(cmd, "verifier key %s", answer.VerifierKey)
			// Its bytes are signed: they are printed as they are.
			return a.emit(cmd, answer, func(p *printer) { p.err = writeAll(p.w, []byte(answer.Checkpoint)) })
		},
	}
	conn.add(cmd)
	return cmd
}

func newAuditProve(a *app) *cobra.Command {
	var conn connection
	var key string
	var record int64
	cmd := &cobra.Command{
		Use:   "prove",
		Short: "prove that one record is in the log",
		Long: `Fetch one record, the signed checkpoint and the proof that the record is in the log,
and check them: neither the other records nor the authority are trusted for it.`,
		Example: "  writ audit prove --record 0",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if record < 0 {
				return usage(cmd, "--record is not negative")
			}
			var verifier note.Verifier
			if key != "" {
				var err error
				if verifier, err = audit.ParseVerifier(key); err != nil {
					return fail("--key", err)
				}
			}
			c, err := conn.open(a)
			if err != nil {
				return err
			}
			defer c.Close()
			return a.auditProve(cmd, c, verifier, record)
		},
	}
	conn.add(cmd)
	cmd.Flags().Int64Var(&record, "record", 0, "`number` of the record, from 0")
	cmd.Flags().StringVar(&key, "key", "", "verifier `key` of the log; without it, the one that the authority names is used")
	return cmd
}

// inclusion is what --output json prints: all that someone else needs to check it.
type inclusion struct {
	Record     json.RawMessage `json:"record"`       // for reading
	Bytes      []byte          `json:"record_bytes"` // exactly what the tree has hashed
	Number     int64           `json:"number"`
	Proof      []string        `json:"proof"`
	Checkpoint string          `json:"checkpoint"`
}

func (a *app) auditProve(cmd *cobra.Command, c *client.Client, key note.Verifier, n int64) error {
	ctx := cmd.Context()
	signed, checkpoint, err := fetchCheckpoint(ctx, c, key)
	if err != nil {
		return err
	}
	if n >= checkpoint.Size {
		return &failure{Code: "not_found", Message: fmt.Sprintf("the log has %d records: there is no record %d yet", checkpoint.Size, n)}
	}
	page, err := c.AuditRecords(ctx, n, 1)
	if err != nil {
		return err
	}
	if page.From != n || len(page.Records) != 1 {
		return fmt.Errorf("%w: the authority left out record %d", audit.ErrProof, n)
	}
	answer, err := c.Inclusion(ctx, checkpoint.Size, n)
	if err != nil {
		return err
	}
	proof := make([]audit.Hash, len(answer.Hashes))
	out := inclusion{Record: page.Records[0], Bytes: page.Records[0], Number: n, Checkpoint: string(signed), Proof: []string{}}
	for i, h := range answer.Hashes {
		if len(h) != len(proof[i]) {
			return fmt.Errorf("%w: a hash of %d bytes", audit.ErrProof, len(h))
		}
		copy(proof[i][:], h)
		out.Proof = append(out.Proof, base64.StdEncoding.EncodeToString(h))
	}
	if err := audit.VerifyInclusion(checkpoint, n, page.Records[0], proof); err != nil {
		return err
	}
	if !json.Valid(out.Record) {
		return fmt.Errorf("%w: record %d is no JSON", audit.ErrMalformed, n)
	}
	a.say(cmd, "record %d is in the log of %d records that was signed", n, checkpoint.Size)
	return a.emit(cmd, out, func(p *printer) { p.err = writeAll(p.w, append(recordLine(page.Records[0]), '\n')) })
}
