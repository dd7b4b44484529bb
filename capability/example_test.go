package capability_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// exampleKeys is a service's keys: here one, for every audience and epoch.
type exampleKeys struct{ key *capability.RootKey }

func (k exampleKeys) Key([]byte, uint32, uint32) *capability.RootKey { return k.key }

func exampleToken(key *capability.RootKey) *capability.Token {
	token, err := capability.Mint(key, capability.Identifier{
		Epoch:    1,
		ID:       capability.NewTokenID(now.UnixMilli(), [10]byte{1, 2, 3}), // random, outside an example
		NotAfter: now.Add(5 * time.Minute),
		Audience: "corp",
		Subject:  "agent-42",
	}, "action read", "resource files/**")
	if err != nil {
		panic(err)
	}
	return token
}

func ExampleMint() {
	key := capability.NewRootKey([32]byte{ /* 32 random bytes */ })
	token, err := capability.Mint(key, capability.Identifier{
		Epoch:    1,
		ID:       capability.NewTokenID(now.UnixMilli(), [10]byte{1, 2, 3}), // random, outside an example
		NotAfter: now.Add(5 * time.Minute),
		Audience: "corp",
		Subject:  "agent-42",
	}, "action read", "resource files/**")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(token) // a token never prints itself; Text does
	fmt.Println(token.Text()[:24] + "…")
	// Output:
	// (token redacted)
	// writ_AgEEd3JpdAIwAQAAAAE…
}

func ExampleToken_Attenuate() {
	token := exampleToken(capability.NewRootKey([32]byte{}))
	// No key is needed. A branch caveat with a random nonce keeps this narrowing
	// apart from others, so that it can be revoked alone.
	narrow, err := token.Attenuate("branch helper", "resource files/q3")
	if err != nil {
		fmt.Println(err)
		return
	}
	about, err := narrow.Inspect()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range about.Caveats {
		word, _, _ := strings.Cut(c.Condition, " ")
		fmt.Println(word, len(c.Condition))
	}
	// Output:
	// action 11
	// resource 17
	// branch 38
	// resource 17
}

func ExampleVerifier_Verify() {
	key := capability.NewRootKey([32]byte{})
	token, err := exampleToken(key).Attenuate("resource files/q3")
	if err != nil {
		fmt.Println(err)
		return
	}
	checker, err := caveats.Standard()
	if err != nil {
		fmt.Println(err)
		return
	}
	verifier, err := capability.NewVerifier(exampleKeys{key}, []string{"corp"}, checker,
		capability.UnsafeWithoutRevocations()) // a service uses WithRevocations
	if err != nil {
		fmt.Println(err)
		return
	}
	var grant capability.Grant
	for _, action := range []string{"read", "write"} {
		err := verifier.Verify(context.Background(), &grant, token.Bytes(), &capability.Request{
			Now: now, Action: action, Resource: []string{"files", "q3"},
		})
		if err != nil {
			fmt.Println(capability.CodeOf(err)) // what a stranger may know; err itself is for the owner
			continue
		}
		fmt.Println(grant.Subject(), "may", action)
	}
	// Output:
	// agent-42 may read
	// action_denied
}
