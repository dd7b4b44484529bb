package authority

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// takeBackup returns a backup of a node.
func takeBackup(t *testing.T, a *Authority) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := a.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openBackup(t *testing.T, b []byte) *BackupFile {
	t.Helper()
	f, err := OpenBackup(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// verdict is what the node's own keys, revocations and registry say of a token.
func verdict(t *testing.T, a *Authority, text string) error {
	t.Helper()
	v, err := capability.NewVerifier(keysOf{a.keys, false}, []string{"corp"}, a.checker,
		capability.WithRevocations(a.fresh.revocations(), 0), capability.WithRegistry(registry{a.machine}), capability.WithBudgets(noBudgets{}))
	if err != nil {
		t.Fatal(err)
	}
	var g capability.Grant
	return v.VerifyText(t.Context(), &g, text, &capability.Request{Now: time.Now(), Action: "read"})
}

// noBudgets lets every call through: what is left is asked of the node.
type noBudgets struct{}

func (noBudgets) Spend(context.Context, *capability.BudgetPath) (bool, error) { return false, nil }

// elsewhere is a node of another machine: nothing of cfg's but the name.
func elsewhere(t *testing.T, cfg Config) Config {
	dir := t.TempDir()
	cfg.Dir, cfg.KeyFile, cfg.Bootstrap = filepath.Join(dir, "data"), filepath.Join(dir, "key"), false
	return cfg
}

// TestRestoreLetsNothingComeBack: what was revoked or spent after the backup stays
// dead, in a restore that keeps nothing and in one that keeps an epoch.
func TestRestoreLetsNothingComeBack(t *testing.T) {
	cfg := testConfig(t)
	recovery, err := seal.GenerateIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Recovery = recovery.Recipient().String()
	a, root := openNode(t, cfg)
	issue := func(caveats ...string) *api.TokenResponse {
		t.Helper()
		r, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest(caveats...))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	oldest, err := a.AuditCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leaked, spent, good := issue("action read"), issue("max-calls 2"), issue("action read")
	service, err := a.AddService(t.Context(), Call{Caller: root}, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	b := takeBackup(t, a)
	rootText := root.Credential.Text()
	strange, _ := openNode(t, testConfig(t))
	foreign, err := strange.AuditCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	// Since then: revoked, spent, joined, issued.
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeToken, Token: leaked.ID.String(), Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := a.Lease(t.Context(), Call{Caller: root}, leaseRequest(parse(t, spent.Token), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Join(t.Context(), Call{}, &api.JoinRequest{Name: "files", JoinSecret: service.JoinSecret}); err != nil {
		t.Fatal(err)
	}
	later := issue("action read")
	newest, err := a.AuditCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	closeNode(t, a)

	for _, tokens := range []*api.TokenResponse{leaked, spent, good} {
		if bytes.Contains(b, []byte(tokens.Token)) || bytes.Contains(b, tokens.ID[:]) {
			t.Error("a backup can be read without a key")
		}
	}
	if bytes.Contains(b, []byte("owner@corp.example")) {
		t.Error("a backup shows who owns what")
	}

	for name, checkpoint := range map[string]string{"older than the backup": oldest.Checkpoint, "of another log": foreign.Checkpoint, "none": "nonsense"} {
		r := Rebirth{Config: elsewhere(t, cfg), Recovery: recovery, Checkpoint: []byte(checkpoint)}
		if _, err := Restore(t.Context(), r, openBackup(t, b)); !errors.Is(err, ErrConfig) {
			t.Errorf("a checkpoint %s: %v", name, err)
		}
	}
	for _, keep := range [][]uint32{nil, {1}} {
		next := elsewhere(t, cfg)
		r := Rebirth{Config: next, Recovery: recovery, KeepEpochs: keep, Checkpoint: []byte(newest.Checkpoint)}
		reborn, err := Restore(t.Context(), r, openBackup(t, b))
		if err != nil {
			t.Fatal(err)
		}
		if reborn.Incarnation <= 1 || reborn.Before != 1 || !slices.Equal(reborn.Services, []string{"files"}) || len(reborn.Ended) != 1-len(keep) {
			t.Errorf("%+v", reborn)
		}
		n, _ := openNode(t, next)
		if n.CAFingerprint() != a.CAFingerprint() || reborn.CAFingerprint != a.CAFingerprint() {
			t.Error("clients that pin the CA are locked out")
		}
		if e := n.machine.Epochs(); keep != nil && (e[0].Until != e[1].MintsFrom+state.MaxTTL.Milliseconds()+2*cfg.Bound.Milliseconds() || e[0].Revoked) {
			t.Errorf("a kept epoch mints no more, and ends with its last token: %+v", e)
		}
		newRoot := callerOf(t, n, reborn.RootToken)
		var g capability.Grant
		if err := n.AdminVerifier().VerifyText(t.Context(), &g, rootText, &capability.Request{Now: time.Now()}); err == nil {
			t.Error("an operator's credential of before is good")
		}
		if at := n.cursor(); at.Incarnation != reborn.Incarnation {
			t.Errorf("cursor %+v", at)
		}
		for name, token := range map[string]*api.TokenResponse{"revoked since": leaked, "spent since": spent, "issued before": good, "issued since": later} {
			err := verdict(t, n, token.Token)
			if keep == nil && err == nil {
				t.Errorf("a token %s is accepted", name)
			}
			if keep != nil && token == good && err != nil {
				t.Errorf("a token of a kept epoch: %v", err)
			}
			if keep != nil && token == later && !errors.Is(err, capability.CodeUnregistered) {
				t.Errorf("a token that the backup has not: %v", err)
			}
		}
		refused := capability.CodeUnknownKey
		if keep != nil {
			refused = capability.CodeBudgetExhausted
		}
		if _, err := n.Lease(t.Context(), Call{Caller: newRoot}, leaseRequest(parse(t, spent.Token), 1)); !errors.Is(err, refused) {
			t.Errorf("leasing calls of a token from before: %v, not %v", err, refused)
		}
		if _, err := n.Join(t.Context(), Call{}, &api.JoinRequest{Name: "files", JoinSecret: service.JoinSecret}); err == nil {
			t.Error("a join secret that was spent is good again")
		}
		if _, _, err := openBackup(t, takeBackup(t, n)).Inspect(recovery); err != nil {
			t.Errorf("the recovery recipient is forgotten: %v", err)
		}
		// It works.
		fresh, err := n.Issue(t.Context(), Call{Caller: newRoot}, issueRequest("action read"))
		if err != nil || verdict(t, n, fresh.Token) != nil {
			t.Errorf("the new incarnation does not issue: %v, %v", err, verdict(t, n, fresh.Token))
		}
		if _, err := n.AddService(t.Context(), Call{Caller: newRoot}, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}}); err != nil {
			t.Errorf("the service cannot be added again: %v", err)
		}
		// The audit log goes on from the newest checkpoint that anyone kept.
		first, err := n.AuditRecords(t.Context(), 0, 2)
		if err != nil || string(first.Records[0]) != newest.Checkpoint || !strings.Contains(string(first.Records[1]), "restored from the backup of") {
			t.Errorf("the new audit log begins with %q, %v", first.Records, err)
		}
		checkpoint, err := n.AuditCheckpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		closeNode(t, n)
		verifier, err := audit.ParseVerifier(checkpoint.VerifierKey)
		if err != nil {
			t.Fatal(err)
		}
		known, err := audit.VerifyCheckpoint([]byte(checkpoint.Checkpoint), verifier)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.VerifyDir(filepath.Join(next.Dir, "audit", originDir(known.Origin)), verifier, known); err != nil {
			t.Error(err)
		}
		// And again after a restart, from its own files.
		n, _ = openNode(t, next)
		if verdict(t, n, fresh.Token) != nil || verdict(t, n, leaked.Token) == nil && keep == nil {
			t.Error("a restart makes another state of it")
		}
		closeNode(t, n)
	}
}

// TestBackupOpensForItsRecipientsOnly, and a file that is damaged is refused
// before anything is written.
func TestBackupOpensForItsRecipientsOnly(t *testing.T) {
	cfg := testConfig(t)
	a, root := openNode(t, cfg)
	if _, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest()); err != nil {
		t.Fatal(err)
	}
	b := takeBackup(t, a)
	identity, err := seal.ReadIdentityFile(cfg.KeyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	summary, meta, err := openBackup(t, b).Inspect(identity)
	if err != nil || summary.Tokens != 2 || meta.Index < summary.Index || !slices.Equal(summary.Epochs, []uint32{1}) {
		t.Errorf("%+v, %+v, %v", summary, meta, err)
	}
	h := openBackup(t, b).Header
	if h.Cluster != a.machine.Cluster().ID || h.Incarnation != 1 || h.Node != "n1" || !slices.Equal(h.Recipients(), []string{"n1"}) {
		t.Errorf("%+v", h)
	}
	stranger, err := seal.GenerateIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openBackup(t, b).Inspect(stranger); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a stranger's key: %v", err)
	}
	next := elsewhere(t, cfg)
	if _, err := Restore(t.Context(), Rebirth{Config: next, Recovery: stranger}, openBackup(t, b)); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a stranger's key: %v", err)
	}
	if _, err := os.Stat(next.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a refused restore has written something")
	}
	for i := 0; i < len(b); i += max(1, len(b)/97) {
		bad := bytes.Clone(b)
		bad[i] ^= 2
		if _, err := OpenBackup(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, ErrBackup) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
		if _, err := OpenBackup(bytes.NewReader(b[:i]), int64(i)); !errors.Is(err, ErrBackup) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	// Whoever can mend the checksum still cannot alter what is under it.
	for _, at := range []int{len(backupMagic) + 20, len(b) - 100} {
		bad := bytes.Clone(b[:len(b)-32])
		bad[at] ^= 2
		sum := sha256.Sum256(bad)
		bad = append(bad, sum[:]...)
		f := openBackup(t, bad)
		if _, _, err := f.Inspect(identity); err == nil {
			t.Errorf("byte %d altered, and the checksum mended: accepted", at)
		}
		if _, err := Restore(t.Context(), Rebirth{Config: next, Recovery: identity}, f); err == nil {
			t.Errorf("byte %d altered, and the checksum mended: restored", at)
		}
		for _, path := range []string{next.Dir, next.KeyFile} {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("byte %d altered: a refused restore has written %s", at, path)
			}
		}
	}
	other := bytes.Clone(b)
	other[len(backupMagic)-2] = '9'
	if _, err := OpenBackup(bytes.NewReader(other), int64(len(other))); !errors.Is(err, ErrBackup) || !strings.Contains(err.Error(), "another version") {
		t.Errorf("another version's: %v", err)
	}
	if _, err := Restore(t.Context(), Rebirth{Config: cfg}, openBackup(t, b)); !errors.Is(err, raftstore.ErrNotEmpty) {
		t.Errorf("over a node: %v", err)
	}
}

// TestUnfinishedRestore: a node whose restore was interrupted does not start, and
// can be restored again.
func TestUnfinishedRestore(t *testing.T) {
	cfg := testConfig(t)
	a, _ := openNode(t, cfg)
	b := takeBackup(t, a)
	closeNode(t, a)
	next := elsewhere(t, cfg)
	next.KeyFile = cfg.KeyFile
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Restore(ended, Rebirth{Config: next}, openBackup(t, b)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, _, err := Open(t.Context(), next); !errors.Is(err, ErrUnfinished) {
		t.Errorf("half restored, it opens: %v", err)
	}
	if _, err := Recover(t.Context(), Rebirth{Config: next}); !errors.Is(err, ErrUnfinished) {
		t.Errorf("half restored, it can be recovered: %v", err)
	}
	reborn, err := Restore(t.Context(), Rebirth{Config: next}, openBackup(t, b))
	if err != nil {
		t.Fatal(err)
	}
	n, _ := openNode(t, next)
	callerOf(t, n, reborn.RootToken)
}

// TestRefusedIncarnation: what cannot be kept is named, nothing is issued for it,
// and it can be done again.
func TestRefusedIncarnation(t *testing.T) {
	cfg := testConfig(t)
	cfg.OnFatal = func(err error) { t.Errorf("it ends with %v", err) }
	a, _ := openNode(t, cfg)
	b := takeBackup(t, a)
	closeNode(t, a)
	next := elsewhere(t, cfg)
	next.KeyFile = cfg.KeyFile
	for name, begin := range map[string]func(keep ...uint32) (*Reborn, error){
		"restored": func(keep ...uint32) (*Reborn, error) {
			return Restore(t.Context(), Rebirth{Config: next, KeepEpochs: keep}, openBackup(t, b))
		},
		"recovered": func(keep ...uint32) (*Reborn, error) {
			return Recover(t.Context(), Rebirth{Config: cfg, KeepEpochs: keep})
		},
	} {
		_, err := begin(7)
		if wantCode(t, err, api.CodeInvalid); !strings.Contains(err.Error(), "epoch 7 cannot be kept") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := begin(1); err != nil {
			t.Errorf("%s, the second time: %v", name, err)
		}
	}
	for _, cfg := range []Config{cfg, next} {
		n, _ := openNode(t, cfg)
		if tokens := n.machine.Counts().Tokens; tokens != 2 { // the roots of before and of now
			t.Errorf("%d tokens", tokens)
		}
		closeNode(t, n)
	}
}

// TestTwoRestores of one backup are two incarnations: a replica of the first drops
// what it has when it meets the second.
func TestTwoRestores(t *testing.T) {
	cfg := testConfig(t)
	a, _ := openNode(t, cfg)
	b := takeBackup(t, a)
	closeNode(t, a)
	var first uint64
	for _, later := range []time.Duration{0, 2 * time.Second} {
		next := elsewhere(t, cfg)
		next.KeyFile = cfg.KeyFile
		next.Clock = func() time.Time { return time.Now().Add(later) }
		reborn, err := Restore(t.Context(), Rebirth{Config: next}, openBackup(t, b))
		if err != nil {
			t.Fatal(err)
		}
		if reborn.Incarnation == first {
			t.Errorf("both are incarnation %d", first)
		}
		first = reborn.Incarnation
	}
}

// TestRecover: a node by itself goes on, in a new incarnation.
func TestRecover(t *testing.T) {
	cfg := testConfig(t)
	a, root := openNode(t, cfg)
	before, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), Rebirth{Config: cfg}); !errors.Is(err, raftstore.ErrLocked) {
		t.Errorf("while it runs: %v", err)
	}
	closeNode(t, a)
	a, _ = openNode(t, cfg) // which the attempt has not kept from starting
	closeNode(t, a)
	reborn, err := Recover(t.Context(), Rebirth{Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := openNode(t, cfg)
	callerOf(t, n, reborn.RootToken)
	if verdict(t, n, before.Token) == nil {
		t.Error("a token of before is accepted: the lost nodes may have revoked it")
	}
	if info, err := n.Token(t.Context(), before.ID); err != nil || info.Subject != "agent-42" {
		t.Errorf("the registry is lost: %+v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "audit", "1")); err != nil {
		t.Error("the audit log of before is gone")
	}
}

// TestRotateClusterKey rotates it under load: no change is lost, nothing that
// was sealed before or meanwhile is unreadable, and a restart opens it.
func TestRotateClusterKey(t *testing.T) {
	cfg := testConfig(t)
	a, root := openNode(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			for ctx.Err() == nil {
				r, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
				if err != nil || verdict(t, a, r.Token) != nil {
					t.Errorf("issuing meanwhile: %v", err)
					return
				}
			}
		})
	}
	var first []byte
	for n := uint32(1); n <= 5; n++ {
		if first == nil {
			first = a.machine.SealedKey("ca", 1).Sealed
		}
		got, err := a.RotateClusterKey(t.Context(), Call{Caller: root})
		if err != nil || got != n {
			t.Fatalf("rotation %d: %d, %v", n, got, err)
		}
		if _, err := a.Rotate(t.Context(), Call{Caller: root}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	work.Wait()
	if bytes.Equal(first, a.machine.SealedKey("ca", 1).Sealed) {
		t.Error("nothing was sealed anew")
	}
	recovery, err := seal.GenerateIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.SetRecovery(t.Context(), Call{Caller: root}, recovery.Recipient().String()); err != nil {
		t.Fatal(err)
	}
	if list := a.Recipients(); list.Number != 5 || len(list.Recipients) != 2 || list.Recipients[1].Recipient != recovery.Recipient().String() {
		t.Errorf("%+v", list)
	}
	b := takeBackup(t, a)
	if _, _, err := openBackup(t, b).Inspect(recovery); err != nil {
		t.Errorf("a recipient that came later: %v", err)
	}
	r, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	closeNode(t, a)
	n, _ := openNode(t, cfg)
	if err := verdict(t, n, r.Token); err != nil {
		t.Error(err)
	}
	for _, e := range n.machine.Epochs() {
		if _, err := n.keys.secret("master", e.Epoch); err != nil {
			t.Errorf("epoch %d: %v", e.Epoch, err)
		}
	}
}

// TestChangeNodeKey: the new file opens the node and the old one nothing; the
// recovery identity makes one where the file is lost; a copy of the directory
// with neither does not start.
func TestChangeNodeKey(t *testing.T) {
	cfg := testConfig(t)
	recovery, err := seal.GenerateIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Recovery = recovery.Recipient().String()
	a, _ := openNode(t, cfg)
	closeNode(t, a)
	next := cfg
	next.KeyFile = cfg.KeyFile + ".2"
	if err := ChangeNodeKey(t.Context(), cfg, nil, NodeKey{File: next.KeyFile}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(t.Context(), cfg); !errors.Is(err, ErrKeyFile) {
		t.Errorf("the old key: %v", err)
	}
	n, _ := openNode(t, next)
	closeNode(t, n)
	if err := ChangeNodeKey(t.Context(), next, nil, NodeKey{File: next.KeyFile}); !errors.Is(err, ErrKeyFile) {
		t.Errorf("over a key file: %v", err)
	}
	if err := ChangeNodeKey(t.Context(), next, nil, NodeKey{File: filepath.Join(cfg.Dir, "key")}); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a key file within the data directory: %v", err)
	}
	for _, file := range []string{cfg.KeyFile, next.KeyFile} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Open(t.Context(), next); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a copy without a key: %v", err)
	}
	stranger, _ := seal.GenerateIdentity(rand.Reader)
	if err := ChangeNodeKey(t.Context(), next, stranger, NodeKey{File: next.KeyFile}); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a stranger's: %v", err)
	}
	text := func(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }
	passphrase := text("correct horse")
	if err := ChangeNodeKey(t.Context(), next, recovery, NodeKey{File: next.KeyFile, Passphrase: passphrase}); err != nil {
		t.Fatal(err)
	}
	if err := ReprotectNodeKey(NodeKey{File: next.KeyFile, Passphrase: text("wrong")}, NodeKey{Passphrase: text("x")}); !errors.Is(err, seal.ErrPassphrase) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if err := ReprotectNodeKey(NodeKey{File: next.KeyFile, Passphrase: passphrase}, NodeKey{Passphrase: text("battery staple")}); err != nil {
		t.Fatal(err)
	}
	next.Passphrase = passphrase
	if _, _, err := Open(t.Context(), next); !errors.Is(err, seal.ErrPassphrase) {
		t.Errorf("the old passphrase: %v", err)
	}
	next.Passphrase = text("battery staple")
	n, _ = openNode(t, next)
	closeNode(t, n)
}
