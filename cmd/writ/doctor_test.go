package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/authoritytest"
)

// doctor runs writ doctor at an hour that is off by ahead.
func doctor(t *testing.T, n *authoritytest.Node, ahead time.Duration, args ...string) (map[string]finding, int) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "root.token")
	if err := os.WriteFile(token, []byte(n.RootToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"WRIT_ADDR": n.Addr, "WRIT_CA_FINGERPRINT": n.CAFingerprint, "WRIT_TOKEN_FILE": token}
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errOut, func(key string) string { return env[key] })
	a.now = func() time.Time { return time.Now().Add(ahead) }
	code := a.run(t.Context(), append([]string{"doctor", "-o", "json"}, args...))
	var list findings
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatalf("%v: %s %s", err, out.String(), errOut.String())
	}
	found := map[string]finding{}
	for _, f := range list {
		found[f.Check] = f
	}
	return found, code
}

// The clock: in order, ten minutes off, and so far off that the certificate
// is not valid and the credential has ended.
func TestDoctorClock(t *testing.T) {
	n := authoritytest.Start(t)
	found, code := doctor(t, n, 0)
	if code != exitOK || found["clock"].Result != "ok" || found["reach"].Result != "ok" || found["credential"].Result != "ok" {
		t.Errorf("in order: exit code %d, %v", code, found)
	}
	found, code = doctor(t, n, 10*time.Minute)
	if code != exitOK || found["clock"].Result != "warn" || !strings.Contains(found["clock"].Detail, "differ by 10m") || found["clock"].Hint == "" {
		t.Errorf("ten minutes ahead: exit code %d, %v", code, found)
	}
	found, code = doctor(t, n, 50*365*24*time.Hour)
	if code != exitError || found["reach"].Result != "fail" || found["clock"].Result != "warn" || found["credential"].Result != "fail" ||
		!strings.Contains(found["credential"].Detail, "expired") {
		t.Errorf("fifty years ahead: exit code %d, %v", code, found)
	}
}

// Somebody else listens on the node's port.
func TestDoctorPort(t *testing.T) {
	n := authoritytest.Start(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 mail.example ESMTP\r\n"))
			c.Close()
		}
	}()
	found, code := doctor(t, n, 0, "--data-dir", filepath.Join(n.Dir, "data"), "--node-key", filepath.Join(n.Dir, "node.key"), "--listen", ln.Addr().String())
	if code != exitError || found["port"].Result != "fail" || !strings.Contains(found["port"].Hint, "another process") || found["key file"].Result != "ok" {
		t.Errorf("exit code %d, %v", code, found)
	}
}
