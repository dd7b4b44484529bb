package pop_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// A token that is bound to a key, in the holder's hands and in a thief's.
func Example() {
	root := capability.NewRootKey([32]byte{1})
	checker, err := caveats.Standard()
	check(err)
	verifier, err := capability.NewVerifier(keys{root}, []string{"files"}, checker, capability.UnsafeWithoutRevocations())
	check(err)

	// The service: it says under which origin it is reached.
	server := httptest.NewUnstartedServer(nil)
	proofs, err := pop.New(pop.Config{Origins: []string{"http://" + server.Listener.Addr().String()}})
	check(err)
	g, err := guard.New(verifier, guard.Possession(proofs), guard.Logger(slog.New(slog.DiscardHandler)))
	check(err)
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"},
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	server.Config.Handler, err = g.Build()
	check(err)
	server.Start()
	defer server.Close()

	// The agent makes a key, and is issued a token that names it.
	key, err := pop.GenerateKey(pop.Ed25519)
	check(err)
	holder, err := caveats.Holder(key.HolderKey())
	check(err)
	token, err := capability.Mint(root, capability.Identifier{
		Epoch: 1, Generation: 1, Audience: "files", Subject: "agent-42",
		ID: capability.NewTokenID(time.Now().UnixMilli(), [10]byte{1}), NotAfter: time.Now().Add(time.Minute),
	}, holder)
	check(err)

	agent := &http.Client{Transport: &guard.Transport{Token: token, Base: &pop.Transport{Signer: key}}}
	resp, err := agent.Get(server.URL + "/files/q3")
	check(err)
	fmt.Println("the agent:", resp.StatusCode)

	thief := &http.Client{Transport: &guard.Transport{Token: token}}
	resp, err = thief.Get(server.URL + "/files/q3")
	check(err)
	fmt.Println("a thief:", resp.StatusCode)
	// Output:
	// the agent: 204
	// a thief: 401
}

type keys struct{ root *capability.RootKey }

func (k keys) Key([]byte, uint32, uint32) *capability.RootKey { return k.root }

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A key that is slow, such as one in a TPM, signs a session key once in five
// minutes. Any crypto.Signer will do.
func ExampleSession() {
	slow, err := pop.GenerateKey(pop.ES256) // pop.NewKey(signer) for a key in a device
	check(err)
	session := pop.NewSession(slow, 0, nil)
	client := http.Client{Transport: &guard.Transport{Base: &pop.Transport{Signer: session}}}
	fmt.Println(client.Transport != nil, session.HolderKey() == slow.HolderKey())
	// Output: true true
}
