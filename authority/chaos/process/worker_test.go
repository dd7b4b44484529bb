//go:build linux

package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/chaos/netns"
)

// workerEnv has the test binary run as a worker.
const workerEnv = "WRIT_WORKER"

// workerConfig is what a worker is told.
type workerConfig struct {
	Role        string   // guard or client
	Name        string   // in records
	Log         string   // the file of its records
	Addrs       []string // of the nodes
	Fingerprint string
	Token       string // its credential
	Listen      string // guard: where it serves
	Guards      []string
	Lessee      string // client: a service's credential, for leases
	Bound       time.Duration
	Seed        uint64
}

var errUnknown = errors.New("no such command")

func TestMain(m *testing.M) {
	if text := os.Getenv(workerEnv); text != "" {
		if err := work(text); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	if binaries, err = os.MkdirTemp("", "writ-process-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binaries)
	os.Exit(code)
}

// work is a worker: it does what comes on standard input, one command a line, and
// ends with it.
func work(text string) error {
	var cfg workerConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	out, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	log := check.NewLog(out)
	var do func(string) error
	switch cfg.Role {
	case "guard":
		s, err := startService(cfg, log)
		if err != nil {
			return err
		}
		do = s.do
	case "client":
		l, err := startLoad(cfg, log)
		if err != nil {
			return err
		}
		do = l.do
	default:
		return errUnknown
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := do(lines.Text()); err != nil {
			return err
		}
		fmt.Println("done")
	}
	return nil
}

// worker is a worker's process.
type worker struct {
	workerConfig
	host *netns.Host
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	link *link
}

// worker starts a worker on a host of its own.
func (r *rig) worker(cfg workerConfig) (*worker, error) {
	h, err := r.lab.Host(cfg.Name)
	if err != nil {
		return nil, err
	}
	w := &worker{host: h}
	if w.link, cfg.Addrs, err = r.link(h, cfg.Seed); err != nil {
		return nil, err
	}
	r.place()
	cfg.Fingerprint, cfg.Log = r.fingerprint, filepath.Join(r.dir, cfg.Name+".jsonl")
	if cfg.Role == "guard" {
		cfg.Listen = h.Join(8080)
	}
	w.workerConfig = cfg
	r.t.Cleanup(w.kill)
	return w, w.start()
}

// start starts the process, and waits until it works.
func (w *worker) start() error {
	text, err := json.Marshal(w.workerConfig)
	if err != nil {
		return err
	}
	w.cmd = exec.Command(filepath.Join(binaries, "worker"))
	w.cmd.Env = append(os.Environ(), workerEnv+"="+string(text))
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	w.out = bufio.NewReader(out)
	if err := w.host.Start(w.cmd); err != nil {
		return err
	}
	return w.hear("ready")
}

// kill ends the process at once.
func (w *worker) kill() {
	if w.cmd != nil && w.cmd.Process != nil {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	}
}

func (w *worker) hear(word string) error {
	line, err := w.out.ReadString('\n')
	if err == nil && strings.TrimSpace(line) != word {
		err = errors.New(strings.TrimSpace(line))
	}
	if err != nil {
		return fmt.Errorf("worker %s: %w", w.Name, err)
	}
	return nil
}

// do has the worker do something, and waits until it is done.
func (w *worker) do(command string) error {
	if _, err := fmt.Fprintln(w.in, command); err != nil {
		return err
	}
	return w.hear("done")
}

// records are what the worker has recorded.
func (w *worker) records() ([]check.Record, error) {
	f, err := os.Open(w.Log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return check.Read(f)
}
