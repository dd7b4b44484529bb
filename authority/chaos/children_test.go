package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A run has a process of its own, without the race detector, so that a pass over
// all kinds of faults, and over all planted bugs, takes seconds; and on a runtime
// without chance, so that a seed is the same run each time.

// built is the binary with all planted bugs, none of which it shows by itself.
var built struct {
	once sync.Once
	path string
	err  error
}

// campaignBinary builds this package on the fixed runtime with all planted bugs, once.
func campaignBinary(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		files := make(map[string]string)
		if built.err = errors.Join(fix(t.Context(), files), plant(files)); built.err != nil {
			return
		}
		dir, err := place()
		if err != nil {
			built.err = err
			return
		}
		built.path, built.err = build(t.Context(), dir, files)
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.path != "" {
		_ = os.RemoveAll(filepath.Dir(built.path))
	}
	os.Exit(code)
}

// build compiles this package's tests into dir, with files in place of those of
// the same names.
func build(ctx context.Context, dir string, files map[string]string) (string, error) {
	replace := make(map[string]string)
	for file, source := range files {
		replace[file] = filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(file, "/"), "/", "_"))
		if err := os.WriteFile(replace[file], []byte(source), 0o600); err != nil {
			return "", err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "chaos.test")
	if out, err := goCommand(ctx, "test", "-c", "-overlay", list, "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
}

// childTime is many times what a run takes. One that does not end collects no
// garbage either, and would take all the memory of the machine.
const childTime = 2 * time.Minute

// child runs one seed in a process of its own. What it says ends in err where it
// found something.
func child(ctx context.Context, binary string, seed uint64, faults int, env ...string) (*result, error) {
	dir, err := place()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, childTime)
	defer cancel()
	run := exec.CommandContext(ctx, binary, "-test.run", "^TestSim$", "-chaos.seed", fmt.Sprint(seed), "-chaos.faults", fmt.Sprint(faults))
	run.Dir = dir
	run.Env = append(slices.Clone(fixedEnv), env...)
	out, err := run.CombinedOutput()
	for line := range bytes.Lines(out) {
		if text, ok := bytes.CutPrefix(line, []byte(resultMark)); ok {
			r := new(result)
			if bad := json.Unmarshal(text, r); bad != nil {
				return nil, errors.Join(err, bad)
			}
			if err != nil {
				err = fmt.Errorf("%w: %.64000s", err, out)
			}
			return r, err
		}
	}
	return nil, fmt.Errorf("seed %d ended without a result: %w: %.64000s", seed, err, out)
}

// place makes a directory in memory, if files can be there: what a disk does is
// simulated. All its names are of one length, since a process finds its own, and how
// long it is would move what is allocated after it.
func place() (string, error) {
	parent := os.TempDir()
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		parent = memory
	}
	dir := filepath.Join(parent, fmt.Sprintf("writ-chaos-%016x", rand.Uint64()))
	return dir, os.Mkdir(dir, 0o700)
}

// faultsPerRun is how many faults one run has: six runs go through all kinds.
const faultsPerRun = 6

// TestAllFaults goes through every kind of fault.
func TestAllFaults(t *testing.T) {
	path := campaignBinary(t)
	var mu sync.Mutex
	met := make(map[string]int)
	t.Run("seeds", func(t *testing.T) {
		for seed := range uint64((len(faults) + faultsPerRun - 1) / faultsPerRun) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				r, err := child(t.Context(), path, seed, faultsPerRun)
				if err != nil {
					t.Fatal(err, r)
				}
				t.Log(r.Report)
				mu.Lock()
				defer mu.Unlock()
				for kind, n := range r.Report.Faults {
					met[kind] += n
				}
			})
		}
	})
	for _, kind := range kinds() {
		if met[kind] == 0 {
			t.Errorf("vacuous: no fault of kind %q", kind)
		}
	}
}

// TestReproduced runs seeds twice: a seed is one run, and another seed another.
func TestReproduced(t *testing.T) {
	const seeds = 3
	path := campaignBinary(t)
	var traces [2 * seeds]string
	t.Run("seeds", func(t *testing.T) {
		for i := range traces {
			t.Run(fmt.Sprint(i%seeds), func(t *testing.T) {
				t.Parallel()
				r, err := child(t.Context(), path, uint64(i%seeds), 2)
				if err != nil {
					t.Fatal(err, r)
				}
				traces[i] = r.Trace
			})
		}
	})
	for i, trace := range traces[:seeds] {
		if trace != traces[i+seeds] {
			t.Errorf("seed %d was two different runs", i)
		}
		if slices.Contains(traces[:i], trace) {
			t.Errorf("seed %d was the run of an earlier one", i)
		}
	}
}

// TestPlanted has the campaign find every planted bug within a few seeds.
func TestPlanted(t *testing.T) {
	path := campaignBinary(t)
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			seeds := seedsWith(p.fault)
			for _, seed := range seeds {
				r, err := child(t.Context(), path, seed, faultsPerRun, plantedEnv+"="+p.name)
				if err == nil {
					continue
				}
				if r == nil {
					t.Logf("seed %d: %v", seed, err)
					continue // the campaign could not even be held: not what was asked
				}
				if text := strings.Join(r.Report.Violations, "\n"); strings.Contains(text, p.found) {
					t.Logf("seed %d: %.1000s", seed, text)
					return
				}
			}
			t.Errorf("not found with seeds %v", seeds)
		})
	}
}
