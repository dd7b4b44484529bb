package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

func newDemo(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "watch the main job run for real on this machine, in under a minute",
		Long: `Watch the main job run for real on this machine: an authority of one node and two
HTTP services, each a process of its own. A token is issued, accepted, narrowed by the
first service and passed to the second, which refuses what was narrowed away; its calls
run out; a branch of it is revoked while its sibling lives; a token for an attested
machine is worthless on another one; and the audit log shows it all. Nothing in it is
made for the demo: it is what writ dev, the guard and the replica do anywhere. It fails
if any step does not go as it says.`,
		Example: "  writ demo",
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.demo(cmd) },
	}
}

const (
	demoAudience = "corp"
	demoLimit    = 55 * time.Second
	// demoBound is how soon a revoked branch is refused, at the latest.
	demoBound = time.Second
)

// demoStep is one claim and what came of it; --output json prints them all.
type demoStep struct {
	Step   string  `json:"step"`
	Result string  `json:"result"`
	Millis float64 `json:"ms"`
}

// demo is one run.
type demo struct {
	*app
	cmd   *cobra.Command
	ctx   context.Context
	steps []demoStep
	began time.Time // of the step under way

	root        *client.Client
	ready       devReady
	desk, files *demoProcess
}

func (a *app) demo(cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
	defer cancel()
	d := &demo{app: a, cmd: cmd, ctx: ctx}
	start := time.Now()
	err := d.run()
	if err != nil {
		return fail("the demo stopped", err)
	}
	if a.output == outputJSON {
		return writeJSON(cmd.OutOrStdout(), d.steps)
	}
	p := &printer{w: cmd.OutOrStdout()}
	p.line("")
	p.line("all as claimed, in %s", time.Since(start).Round(10*time.Millisecond).String())
	return p.err
}

// title begins a step.
func (d *demo) title(format string, args ...any) {
	d.began = time.Now()
	if d.output != outputJSON {
		p := &printer{w: d.cmd.OutOrStdout()}
		p.line("")
		p.line("%d. %s", len(d.steps)+1, fmt.Sprintf(format, args...))
	}
	d.steps = append(d.steps, demoStep{Step: fmt.Sprintf(format, args...)})
}

// result ends it.
func (d *demo) result(format string, args ...any) {
	s := &d.steps[len(d.steps)-1]
	took := time.Since(d.began)
	if s.Result != "" {
		s.Result += "; "
	}
	s.Result += fmt.Sprintf(format, args...)
	s.Millis = float64(took.Microseconds()) / 1000
	if d.output != outputJSON {
		p := &printer{w: d.cmd.OutOrStdout()}
		p.line("   %s", fmt.Sprintf(format, args...))
	}
}

func (d *demo) run() error {
	dev, err := d.startAuthority()
	if err != nil {
		return err
	}
	defer dev.stop()
	if err := d.startServices(dev.env); err != nil {
		return err
	}
	defer d.desk.stop()
	defer d.files.stop()
	token, err := d.narrowAndForward()
	if err != nil {
		return err
	}
	if err := d.spend(); err != nil {
		return err
	}
	if err := d.revokeBranch(token); err != nil {
		return err
	}
	if err := d.attest(&d.ready); err != nil {
		return err
	}
	return d.readAudit()
}

// startAuthority starts writ dev.
func (d *demo) startAuthority() (*demoProcess, error) {
	d.title("an authority of one node starts: Raft, TLS, sealed keys, no other service")
	args := []string{"dev", "--until-eof", "--for", "5m", "--output", "json"}
	if hasSoftwareTPM() {
		args = append(args, "--tpm")
	}
	dev, err := d.start(nil, args...)
	if err != nil {
		return nil, err
	}
	r := &d.ready
	if err := dev.answer(r); err != nil {
		return nil, err
	}
	dev.env = []string{
		client.EnvAddr + "=" + r.Addr, client.EnvFingerprint + "=" + r.CAFingerprint, client.EnvTokenFile + "=" + r.TokenFile,
	}
	d.root, err = client.New(client.Config{Addrs: []string{r.Addr}, CAFingerprint: r.CAFingerprint, TokenFile: r.TokenFile})
	if err != nil {
		dev.stop()
		return nil, err
	}
	d.result("process %d serves https://%s after %d ms", dev.pid(), r.Addr, time.Since(d.began).Milliseconds())
	return dev, nil
}

// startServices adds, joins and starts the two services.
func (d *demo) startServices(env []string) error {
	d.title("two HTTP services join it, each a process with its own keys, revocations and guard")
	var err error
	if d.files, err = d.startService(env, "files", ""); err != nil {
		return err
	}
	if d.desk, err = d.startService(env, "desk", d.files.url); err != nil {
		d.files.stop()
		return err
	}
	d.result("files: process %d at %s", d.files.pid(), d.files.url)
	d.result("desk:  process %d at %s, which calls files", d.desk.pid(), d.desk.url)
	return nil
}

func (d *demo) startService(env []string, name, next string) (*demoProcess, error) {
	added, err := d.root.AddService(d.ctx, api.ServiceRequest{Name: name, Audiences: []string{demoAudience}})
	if err != nil {
		return nil, err
	}
	// It is not to have the operator's credential.
	p, err := d.start(append(env, client.EnvTokenFile+"="), "demo-service", "--name", name, "--next", next)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(p.in, added.JoinSecret); err != nil {
		p.stop()
		return nil, err
	}
	var r demoServiceReady
	if err := p.answer(&r); err != nil {
		return nil, err
	}
	p.url = r.URL
	return p, nil
}

func (d *demo) mint(subject string, conditions ...string) (*capability.Token, error) {
	issued, err := d.root.Issue(d.ctx, api.IssueRequest{
		Audience: demoAudience, Subject: subject, Owner: "owner@corp.example", Purpose: "the quarterly report", Caveats: conditions,
	})
	if err != nil {
		return nil, err
	}
	return capability.Parse(issued.Token)
}

// narrowAndForward shows delegation: desk narrows what it was given, and files
// holds it to that.
func (d *demo) narrowAndForward() (*capability.Token, error) {
	conditions := []string{"action read", "resource files/**"}
	d.title("agent-42 gets a token: %s", strings.Join(conditions, ", "))
	token, err := d.mint("agent-42", conditions...)
	if err != nil {
		return nil, err
	}
	ins, err := token.Inspect()
	if err != nil {
		return nil, err
	}
	d.result("token %s, %d bytes, ends in %s", ins.Identifier.ID, ins.Size, time.Until(ins.Identifier.NotAfter).Round(time.Second))

	d.title("desk accepts it, narrows it to files/q3, and reads that from files with the narrowed token")
	if err := d.expect(d.call(d.desk.url+"/summaries/q3", token))(http.StatusOK, ""); err != nil {
		return nil, err
	}
	d.title("desk, by mistake or malice, asks files for files/salaries with the same narrowed token")
	if err := d.expect(d.call(d.desk.url+"/summaries/q3?ask=salaries", token))(http.StatusForbidden, capability.CodeResourceDenied); err != nil {
		return nil, err
	}
	d.title("the agent itself, whose token was never narrowed, may read it")
	return token, d.expect(d.call(d.files.url+"/files/salaries", token))(http.StatusOK, "")
}

// spend shows that max-calls counts over both services.
func (d *demo) spend() error {
	const calls = 3
	d.title("agent-7 gets a token with max-calls %d, and calls the two services in turn", calls)
	token, err := d.mint("agent-7", "action read", "resource files/**", fmt.Sprintf("max-calls %d", calls))
	if err != nil {
		return err
	}
	for i := range calls {
		to := d.files
		if i%2 == 1 {
			to = d.desk
		}
		if err := d.expect(d.call(to.url+"/files/q3", token))(http.StatusOK, ""); err != nil {
			return err
		}
	}
	d.title("call %d is refused, at either of them", calls+1)
	for _, to := range []*demoProcess{d.files, d.desk} {
		if err := d.expect(d.call(to.url+"/files/q3", token))(http.StatusForbidden, capability.CodeBudgetExhausted); err != nil {
			return err
		}
	}
	return nil
}

// revokeBranch shows that one branch dies alone.
func (d *demo) revokeBranch(token *capability.Token) error {
	d.title("agent-42 hands two helpers a branch of its token each, offline; both work")
	helper, err := token.Attenuate("branch helper", "resource files/q3")
	if err != nil {
		return err
	}
	backup, err := token.Attenuate("branch backup", "resource files/q3")
	if err != nil {
		return err
	}
	for _, t := range []*capability.Token{helper, backup} {
		if err := d.expect(d.call(d.files.url+"/files/q3", t))(http.StatusOK, ""); err != nil {
			return err
		}
	}
	d.title("the first helper's branch leaks, and is revoked")
	if _, err := d.root.RevokeSelf(d.ctx, api.SelfRevokeRequest{Token: helper.Text(), Reason: "leaked"}); err != nil {
		return err
	}
	acknowledged := time.Now()
	for accepted := 0; ; accepted++ {
		status, code, err := d.call(d.files.url+"/files/q3", helper)
		took := time.Since(acknowledged)
		if err != nil {
			return err
		}
		if status == http.StatusUnauthorized && code == capability.CodeRevoked {
			d.result("refused with %d %s %.1f ms after the revocation was acknowledged (%d calls got in before)",
				status, code, float64(took.Microseconds())/1000, accepted)
			if took > demoBound {
				return fmt.Errorf("that is later than %s", demoBound)
			}
			break
		}
		if status != http.StatusOK || took > demoBound {
			return fmt.Errorf("files answered %d %s %s after the revocation", status, code, took)
		}
	}
	d.title("its sibling, and the token that both came from, still work")
	for _, t := range []*capability.Token{backup, token} {
		if err := d.expect(d.call(d.files.url+"/files/q3", t))(http.StatusOK, ""); err != nil {
			return err
		}
	}
	return nil
}

// readAudit shows the audit log and checks it.
func (d *demo) readAudit() error {
	d.title("the audit log shows it all, and its tree is the one that the authority signed")
	_, checkpoint, err := fetchCheckpoint(d.ctx, d.root, nil)
	if err != nil {
		return err
	}
	seen := map[string]int{}
	records := func(yield func([]byte, error) bool) {
		for r, err := range remoteRecords(d.ctx, d.root, checkpoint.Size) {
			if err == nil {
				var record map[string]any
				if err = json.Unmarshal(r, &record); err == nil {
					kind := fmt.Sprint(record["action"])
					seen[kind]++
					d.result("%s", auditLine(record))
				}
			}
			if !yield(r, err) {
				return
			}
		}
	}
	edge, err := audit.VerifyRecords(records, checkpoint)
	if err != nil {
		return err
	}
	for _, kind := range []string{"issue", "revoke", "lease"} {
		if seen[kind] == 0 {
			return fmt.Errorf("the audit log holds no record of the action %q", kind)
		}
	}
	root := edge.Root()
	d.result("verified: %d records, root %x…", edge.Size(), root[:8])
	return nil
}

// call calls a service with a token and returns its answer's status and code.
func (d *demo) call(url string, token *capability.Token) (int, capability.Code, error) {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+token.Text())
	return d.do(http.DefaultClient, req)
}

// do returns the status and the code of the answer to a request.
func (d *demo) do(c *http.Client, req *http.Request) (int, capability.Code, error) {
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp.StatusCode, "", err
	}
	var problem struct {
		Code capability.Code `json:"code"`
	}
	err = json.Unmarshal(body, &problem)
	return resp.StatusCode, problem.Code, err
}

// expect compares an answer with what was claimed.
func (d *demo) expect(status int, code capability.Code, err error) func(int, capability.Code) error {
	return func(wantStatus int, wantCode capability.Code) error {
		if err != nil {
			return err
		}
		d.result("%s", strings.TrimSpace(fmt.Sprintf("%d %s %s", status, http.StatusText(status), code)))
		if status != wantStatus || code != wantCode {
			return fmt.Errorf("expected %d %s, got %d %s", wantStatus, wantCode, status, code)
		}
		return nil
	}
}

// demoProcess is a child that answers with one JSON document on standard
// output, and ends when its standard input does.
type demoProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	log bytes.Buffer
	env []string
	url string
}

// start starts this binary again.
func (d *demo) start(env []string, args ...string) (*demoProcess, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &demoProcess{cmd: exec.Command(exe, args...)}
	p.cmd.Args[0] = os.Args[0]
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.log
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	return p, p.cmd.Start()
}

func (p *demoProcess) pid() int { return p.cmd.Process.Pid }

// answer waits for the child's answer; without one the child is stopped.
func (p *demoProcess) answer(v any) error {
	err := json.NewDecoder(io.LimitReader(p.out, 64<<10)).Decode(v)
	if err != nil {
		p.stop()
		return errors.New(strings.Join(p.cmd.Args[1:2], " ") + " did not start: " + strings.TrimSpace(p.log.String()))
	}
	return nil
}

// stop ends the child and waits for it.
func (p *demoProcess) stop() {
	_ = p.in.Close()
	done := make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}
