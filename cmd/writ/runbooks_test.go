package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// systemctl stands in for the real one: it starts and stops writ serve.
const systemctl = `#!/bin/sh -eu
case "$1" in
start)
	: > "$HOME/up"
	writ serve > "$HOME/up" 2>> "$HOME/log" & echo $! > "$HOME/pid"
	until test -s "$HOME/up"; do kill -0 "$(cat "$HOME/pid")"; sleep 0.05; done ;;
stop)
	kill "$(cat "$HOME/pid")"
	while kill -0 "$(cat "$HOME/pid")" 2>/dev/null; do sleep 0.05; done ;;
esac
`

// formAlone forms an authority, with a service that has joined, a token, and a
// token that was revoked after the backup.
const formAlone = `
recovery=$(writ keys recovery --out recovery.txt)
writ serve --init --recovery "$recovery" --root-token root.token > up 2> log & echo $! > pid
until test -s up; do kill -0 "$(cat pid)"; sleep 0.05; done; . ./up
writ service add files --audience corp > join.secret
writ mint --audience corp --subject a --owner o --purpose p > before
writ mint --audience corp --subject b --owner o --purpose p > leaked
`

const ended = `
refused() { if "$@"; then echo "not refused: $*"; exit 9; fi; } # a ! would not end the script
trap 'kill -9 "$(cat pid)" 2>/dev/null || :' EXIT
`

var runbooks = map[string]struct{ before, after string }{
	"backup": {formAlone + "rm recovery.txt\n", `test -s writ.backup; test "$(stat -c %a writ.backup)" = 600; refused grep -q corp writ.backup`},
	"restore": {formAlone + `
writ cluster snapshot save --out writ.backup
writ revoke --whole --reason leaked < leaked
writ audit checkpoint > writ.checkpoint
`, `
test -s join.secret
for t in before leaked; do code=0; writ verify < $t > out || code=$?; cat out; test $code = 2; done
writ mint --audience corp --subject a --owner o --purpose p > after
writ verify < after
refused writ tokens list --credential-file root.token
`},
	"lost-node-key":       {formAlone + "cp node.key leaked.key\n", `writ verify < before; systemctl stop writ; refused writ serve --node-key leaked.key --listen 127.0.0.1:0`},
	"compromised-service": {formAlone, `code=0; writ verify < before || code=$?; test $code = 2; test -s join.secret`},
}

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// runbookCommands are the commands of a runbook as they stand.
func runbookCommands(t *testing.T, name string) (commands string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/runbooks/" + name + ".md")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range shellBlock.FindAllSubmatch(text, -1) {
		commands += string(b[1])
	}
	if commands == "" {
		t.Fatal("no commands")
	}
	return commands
}

// TestRunbooks runs the commands of every runbook that one machine will do for
// as they stand. TestClusterRunbooks runs the others.
func TestRunbooks(t *testing.T) {
	paths, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatal("no runbooks", err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".md")
		_, alone := runbooks[name]
		if _, several := clusterBooks[name]; !alone && !several {
			t.Errorf("nothing runs the runbook %s", name)
		}
	}
	binDir := bin(t)
	for name, book := range runbooks {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(systemctl), 0o700); err != nil {
				t.Fatal(err)
			}
			script := "PATH=$HOME:$PATH\n" + ended + book.before + runbookCommands(t, name) + book.after
			api := freePort(t)
			env := []string{
				"WRIT_DATA_DIR=" + filepath.Join(dir, "data"), "WRIT_NODE_KEY=" + filepath.Join(dir, "node.key"), "WRIT_LISTEN=" + api, "WRIT_ADDR=" + api,
			}
			if out, code := shell(t, binDir, dir, env, script); code != 0 {
				log, _ := os.ReadFile(filepath.Join(dir, "log"))
				t.Errorf("exit code %d\n%s\nthe node's log:\n%s", code, out, log)
			}
		})
	}
}
