package capability_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

// pyScript is the other side: pymacaroons reads a token that Writ made, verifies
// it, narrows it, and mints one of its own from the same key and identifier.
const pyScript = `
import base64, json, sys
from pymacaroons import Macaroon, Verifier, MACAROON_V2
from pymacaroons.serializers import BinarySerializer

task = json.load(sys.stdin)
key = bytes.fromhex(task["key"])

def b64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

def read(text):
    return Macaroon.deserialize(text, serializer=BinarySerializer())

def write(m):
    return m.serialize(serializer=BinarySerializer())

def verifies(m, key, conditions):
    v = Verifier()
    for c in conditions:
        v.satisfy_exact(c)
    try:
        return v.verify(m, key)
    except Exception as e:
        return repr(e)

m = read(task["token"])
out = {
    "conditions": [c.caveat_id_bytes.decode() for c in m.caveats],
    "signature": m.signature,
    "verifies": verifies(m, key, task["conditions"]),
    "wrong_key": verifies(m, bytes(32), task["conditions"]),
    "unsatisfied": verifies(m, key, []),
}
m.add_first_party_caveat(task["add"])
out["narrowed"] = write(m)
own = Macaroon(identifier=bytes.fromhex(task["identifier"]), key=key, location="here", version=MACAROON_V2)
for c in task["conditions"]:
    own.add_first_party_caveat(c)
out["minted"] = write(own)
json.dump(out, sys.stdout)
`

type pyAnswer struct {
	Conditions  []string `json:"conditions"`
	Signature   string   `json:"signature"`
	Verifies    any      `json:"verifies"`
	WrongKey    any      `json:"wrong_key"`
	Unsatisfied any      `json:"unsatisfied"`
	Narrowed    string   `json:"narrowed"`
	Minted      string   `json:"minted"`
}

// TestPymacaroons: Debian's python3-pymacaroons reads and verifies our tokens,
// adds a caveat that our verifier enforces, and the other way round.
func TestPymacaroons(t *testing.T) {
	secret := [32]byte{1, 2, 3}
	conditions := []string{"ok", "branch left"}
	tok := mint(t, conditions...)
	id := testIdentifier()
	id.Issued = len(conditions)
	task := must[[]byte](t)(json.Marshal(map[string]any{
		"key": hex.EncodeToString(secret[:]), "token": base64.RawURLEncoding.EncodeToString(tok.Bytes()),
		"conditions": conditions, "add": "deny", "identifier": hex.EncodeToString(must[[]byte](t)(id.AppendBinary(nil))),
	}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", pyScript)
	cmd.Stdin = bytes.NewReader(task)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("pymacaroons did not run: %v\n%s\nhint: if it is not installed, apt-get install python3-pymacaroons", err, stderr.Bytes())
	}
	var got pyAnswer
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Conditions) != 2 || got.Conditions[0] != "ok" || got.Conditions[1] != "branch left" {
		t.Errorf("pymacaroons reads the caveats %q", got.Conditions)
	}
	if got.Verifies != true || got.WrongKey == true || got.Unsatisfied == true {
		t.Errorf("pymacaroons says %v with the key, %v with another, %v with a caveat unsatisfied", got.Verifies, got.WrongKey, got.Unsatisfied)
	}
	set := tok.Bytes()
	if got.Signature != hex.EncodeToString(set[len(set)-32:]) {
		t.Errorf("pymacaroons computes the signature %s", got.Signature)
	}
	read := func(text string) *capability.Token {
		return must[*capability.Token](t)(capability.Parse(capability.TextPrefix + text))
	}
	_, err = verify(t, verifier(t), read(got.Narrowed))
	wantCode(t, err, capability.CodeActionDenied)
	minted := read(got.Minted)
	g, err := verify(t, verifier(t), minted)
	wantCode(t, err, "")
	if g.Subject() != id.Subject || minted.Branch() != tok.Branch() {
		t.Errorf("what pymacaroons mints is %v of %s", minted.Branch(), g.Subject())
	}
	narrowed := must[*capability.Token](t)(minted.Attenuate("deny"))
	_, err = verify(t, verifier(t), narrowed)
	wantCode(t, err, capability.CodeActionDenied)
}
