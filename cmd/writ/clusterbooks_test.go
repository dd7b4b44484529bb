package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The machines of a cluster's runbooks are directories of one: $TOP/n1 stands for
// n1's file system, 127.0.0.1 for its address, $TOP/n2 and 127.0.0.2 for n2's,
// and so on. What a runbook does on a machine goes through these.
var machineTools = map[string]string{
	// ssh runs a command where the paths of an installed node are the machine's.
	"ssh": `#!/bin/sh -eu
machine=$1; shift
command=$(echo "$*" | sed "s,/\(etc/writ\|var/lib/writ\|usr/local/bin\),$TOP/$machine/\1,g")
cd "$TOP/$machine"
exec env -i PATH="$TOP/$machine/usr/local/bin:$PATH" TOP="$TOP" HOME="$TOP/$machine" TMPDIR="${TMPDIR-/tmp}" \
  WRIT_CONFIG="$TOP/$machine/etc/writ/writ.toml" sh -euc "$command"
`,
	"scp": `#!/bin/sh -eu
while test $# -gt 1; do from="${from-} $1"; shift; done
cp $from "$TOP/${1%%:*}${1#*:}"
`,
	"sudo": `#!/bin/sh -eu
test "$1" = -u && shift 2
exec "$@"
`,
	"systemctl": `#!/bin/sh -eu
case "$1" in
enable|start)
	: > "$HOME/up"
	writ serve > "$HOME/up" 2>> "$HOME/log" & echo $! > "$HOME/pid"
	until test -s "$HOME/up"; do kill -0 "$(cat "$HOME/pid")"; sleep 0.05; done ;;
stop)
	kill "$(cat "$HOME/pid")" 2>/dev/null || exit 0
	while kill -0 "$(cat "$HOME/pid")" 2>/dev/null; do sleep 0.05; done ;;
restart)
	systemctl stop writ; systemctl start writ ;;
esac
`,
}

// formThree forms a cluster of three, each under its service manager.
const formThree = `
ssh n1 writ cluster init --exit --root-token /etc/writ/root.token > up; . ./up
cp n1/etc/writ/root.token root.token; export WRIT_TOKEN_FILE=$PWD/root.token
ssh n1 systemctl start writ
for n in n2 n3; do
  writ cluster token --addr "$A1" > join.token 2>> log
  ssh $n writ cluster join --exit --addr "$A1" --ca-fingerprint "$WRIT_CA_FINGERPRINT" < join.token >> log 2>&1
  ssh $n systemctl start writ
  writ cluster status --addr "$A1" --wait 50s
done
export WRIT_ADDR="$A1,$A2,$A3"
`

// crash has a machine lose its power.
const crash = `
crash() { kill -9 "$(cat $1/pid)"; }
refused() { if "$@"; then echo "not refused: $*"; exit 9; fi; } # a ! would not end the script
denied() { code=0; "$@" || code=$?; test $code = 2; }
# A removed node learns it from the others, ends, and needs nobody to know it from then on.
removed() {
  code=0; ssh $1 timeout 20 writ serve -o json 2> err || code=$?; test $code = 1; tail -n 5 err | grep '"code": "removed"'
  code=0; ssh $1 writ doctor --config /etc/writ/writ.toml > out || code=$?; test $code = 1; grep '^fail  member .*removed from the cluster' out
}
`

type clusterBook struct {
	before, after string
	// during, if any, goes with the runbook's own commands; what it returns ends
	// and judges it.
	during func(t *testing.T, top string) func()
}

const mint = "writ mint --audience corp --subject a --owner o --purpose p"

// clusterBooks are the runbooks that need several machines.
var clusterBooks = map[string]clusterBook{
	"rolling-upgrade": {before: `
cp "$NEXT" writ.new
# The cluster's version must not rise while one node is old: it has three of the leader's rounds to do so.
cat >> tools/scp <<'END'
case $1 in n3:*) sleep 3; writ cluster status | grep -q ' version 2;' || { echo the version rose early; exit 9; } ;; esac
END
echo "$WRIT_ADDR $WRIT_CA_FINGERPRINT" > cluster
`, during: upgradeLoad, after: `
until writ cluster status | grep ' version 3;'; do sleep 0.1; done
# The old binary does not start on what the new one has written, and says why.
ssh n2 systemctl stop writ
code=0; ssh n2 "$OLD" serve > out 2>&1 || code=$?
test $code = 1; grep 'this node knows 2' out; grep 'a later version of writ' out
ssh n2 systemctl start writ; writ cluster status --wait 30s
`},
	"replace-node": {before: "crash n3", after: `
writ cluster status | grep 'n4 .*active'; writ cluster status | grep 'n3 .*removed'
` + mint + ` --addr "$A4" > t; writ verify --addr "$A2" < t
removed n3
`},
	"compromised-node": {before: mint + ` > before; cp root.token old.token; export OLDPIN="$WRIT_CA_FINGERPRINT"
writ service add files --audience corp > old.secret
writ cluster snapshot save --out old.backup
ssh n3 systemctl stop writ
cp -r n3 stolen
writ cluster snapshot inspect --open --node-key stolen/etc/writ/node.key old.backup
`, after: `
denied writ verify < before
refused writ cluster status --credential-file old.token
refused writ cluster status --ca-fingerprint "$OLDPIN"
refused writ service join --name files < old.secret
refused writ keys root --config n3/etc/writ/writ.toml --out thief.token
refused writ cluster snapshot inspect --open --node-key stolen/etc/writ/node.key writ.backup
writ cluster snapshot inspect --open --node-key n1/etc/writ/node.key writ.backup
removed n3
writ cluster status | grep 'n4 .*active'; writ cluster status | grep 'n3 .*removed'
` + mint + ` --addr "$A4" > t; writ verify --addr "$A2" < t
`},
	"moved-node": {before: "export OLD=127.0.0.3 NEW=127.0.0.9; " + mint + " > t", after: `
writ cluster status | grep 'n3 .*active.*127.0.0.9.*127.0.0.9'
writ verify --addr "127.0.0.9:${A3#*:}" < t
`},
	"lost-quorum": {before: mint + " > before; crash n2; crash n3", after: `
denied writ verify < before
writ cluster status | grep 'n3 .*voter'; test -s join.secret
` + mint + ` --addr "$A3" > t; writ verify --addr "$A1" < t
`},
	"backup": {before: `
writ keys set-recovery --recipient "$(writ keys recovery --out old.txt)"
writ cluster transfer-leader n1; export WRIT_ADDR="$A3"
`, after: `writ cluster status | grep 'n1 .*leader'; writ cluster snapshot inspect writ.backup | grep 'by n3'`},
	"restore-cluster": {before: `
writ keys set-recovery --recipient "$(writ keys recovery --out recovery.txt)"
` + mint + ` > before; ` + mint + ` > leaked
` + mint + ` -c 'max-calls 1' > spent
writ cluster snapshot save --out writ.backup
writ revoke --whole --reason leaked < leaked
writ verify --spend < spent; denied writ verify --spend < spent
for n in n1 n2 n3; do crash $n; rm -rf $n/var/lib/writ $n/etc/writ/*.key $n/etc/writ/*.token; mkdir -m 700 $n/var/lib/writ; done
`, after: `
for n in "$A1" "$A2" "$A3"; do
  for t in before leaked spent; do denied writ verify --addr "$n" < $t; done
  ` + mint + ` --addr "$n" > after; writ verify < after
done
`},
}

// runClusterBook runs the commands of one runbook on the machines.
func runClusterBook(t *testing.T, book clusterBook, commands string) {
	top := t.TempDir()
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		path = filepath.Join(top, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range machineTools {
		write("tools/"+name, text, 0o700)
	}
	env, more := []string{"TOP=" + top}, ""
	if book.during != nil {
		more = fmt.Sprintf("staleness_bound = %q\n", upgradeBound)
		later, err := nextWrit()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, "NEXT="+later, "OLD="+filepath.Join(bin(t), "writ"))
	}
	binary, err := os.ReadFile(filepath.Join(bin(t), "writ"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 4; i++ {
		n, host := fmt.Sprintf("n%d", i), fmt.Sprintf("127.0.0.%d", i)
		api, peers := port(t, freePort(t)), port(t, freePort(t))
		write(n+"/etc/writ/writ.toml", fmt.Sprintf(`node = %q
data_dir = "%s/%s/var/lib/writ/data"
node_key = "%s/%[3]s/etc/writ/node.key"
listen = "%[5]s:%s"
peer_listen = "%[5]s:%[7]s"
peer_profile = "wan" # a machine that is busy with other tests must not look like a lost one
%[8]s`, n, top, n, top, host, api, peers, more), 0o600)
		write(n+"/var/lib/writ/.keep", "", 0o600)
		write(n+"/usr/local/bin/writ", string(binary), 0o755)
		env = append(env, fmt.Sprintf("A%d=%s:%s", i, host, api))
	}
	t.Cleanup(func() { endMachines(t, top) })
	path := filepath.Join(top, "tools") + ":" + bin(t)
	if out, code := shell(t, path, top, env, crash+formThree+book.before+"\nexport -p > env"); code != 0 {
		t.Fatalf("before: exit code %d\n%s\n%s", code, out, machineLogs(top))
	}
	judge := func() {}
	if book.during != nil {
		judge = book.during(t, top)
	}
	out, code := shell(t, path, top, env, ". ./env\n"+crash+commands+book.after)
	judge()
	if code != 0 || t.Failed() {
		t.Errorf("exit code %d\n%s\n%s", code, out, machineLogs(top))
	}
}

func port(t *testing.T, address string) string {
	t.Helper()
	return address[strings.LastIndex(address, ":")+1:]
}

// endMachines ends what the service managers have started.
func endMachines(t *testing.T, top string) {
	pids, err := filepath.Glob(filepath.Join(top, "n*", "pid"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range pids {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		var pid int
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			continue // it never started
		}
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
}

func machineLogs(top string) string {
	var all strings.Builder
	paths, _ := filepath.Glob(filepath.Join(top, "n*", "log"))
	for _, path := range append(paths, filepath.Join(top, "log")) {
		text, _ := os.ReadFile(path)
		if len(text) > 3000 {
			text = text[len(text)-3000:]
		}
		fmt.Fprintf(&all, "%s:\n%s\n", path, text)
	}
	return all.String()
}

// TestClusterRunbooks runs the commands of every runbook that is about several
// machines as they stand.
func TestClusterRunbooks(t *testing.T) {
	for name, book := range clusterBooks {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait more than they work
			runClusterBook(t, book, runbookCommands(t, name))
		})
	}
}
