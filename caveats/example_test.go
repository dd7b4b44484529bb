package caveats_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// A service verifies a token that was narrowed on its way.
func Example() {
	key := capability.NewRootKey([32]byte{ /* from the authority */ })
	token, err := capability.Mint(key, capability.Identifier{
		ID: capability.NewTokenID(now.UnixMilli(), [10]byte{}), NotAfter: now.Add(5 * time.Minute),
		Audience: "corp", Subject: "agent-42",
	}, "action read", "resource files/**")
	if err != nil {
		panic(err)
	}
	narrowed, err := token.Attenuate("resource files/q3")
	if err != nil {
		panic(err)
	}

	checker, err := caveats.Standard()
	if err != nil {
		panic(err)
	}
	verifier, err := capability.NewVerifier(keyring{key}, []string{"corp"}, checker, capability.UnsafeWithoutRevocations())
	if err != nil {
		panic(err)
	}
	var grant capability.Grant
	for _, resource := range []string{"q3", "q4"} {
		err := verifier.Verify(context.Background(), &grant, narrowed.Bytes(), &capability.Request{
			Now: now, Action: "read", Resource: []string{"files", resource},
		})
		fmt.Println(resource, err)
	}
	// Output:
	// q3 <nil>
	// q4 resource_denied by caveat "resource files/q3": the resource is "files/q4"
}

func ExampleValidate() {
	fmt.Println(caveats.Validate("resource files/reports/**"))
	fmt.Println(caveats.Validate("resource /files"))
	fmt.Println(caveats.Validate("acton read"))
	// Output:
	// <nil>
	// invalid caveat: "resource /files": "/files" begins with a slash: a resource does not; it is written resource PATTERN…, such as: resource files/q3 files/reports/**
	// invalid caveat: no condition is called "acton"; did you mean action?
}

func ExampleDescribe() {
	for _, condition := range []string{"resource files/reports/**", "argument amount <= 100.00", "max-rate 10/1m"} {
		fmt.Println(caveats.Describe(condition))
	}
	// Output:
	// only on everything below "files/reports"
	// only if the argument "amount" is at most 100.00
	// at most 10 calls each minute at any one verifier
}

func ExampleArgument() {
	// A string that looks like a number stays a string.
	condition, err := caveats.Argument("invoice", "in", capability.StringValue("2026-001"), capability.StringValue("7"))
	fmt.Println(condition, err)
	// Output: argument invoice in 2026-001 "7" <nil>
}

func ExampleParseArguments() {
	args, canonical, err := caveats.ParseArguments([]byte(`{ "path": "reports\/q3", "amount": 1e2 }`), caveats.Limits{})
	fmt.Println(len(args), string(canonical), err)

	_, _, err = caveats.ParseArguments([]byte(`{"amount": 5, "Amount": 5000}`), caveats.Limits{})
	fmt.Println(err)
	// Output:
	// 2 {"amount":1e2,"path":"reports/q3"} <nil>
	// invalid arguments: a name for the second time, perhaps in another case at byte 22
}

func ExampleSplitURLPath() {
	fmt.Println(caveats.SplitURLPath("/files/q%203"))
	fmt.Println(caveats.SplitURLPath("/files/..%2fetc"))
	// Output:
	// [files q 3] <nil>
	// [] invalid resource: segment that nothing may match: "..%2fetc"
}

// A service's own condition.
func ExampleWithExtension() {
	_, err := caveats.Standard(caveats.WithExtension("region", func(_ *capability.Clearance, args string) error {
		if args == "eu" {
			return nil
		}
		return capability.CodeContextDenied
	}))
	fmt.Println(err)
	_, err = caveats.Standard(caveats.WithExtension("Region", nil))
	fmt.Println(errors.Is(err, caveats.ErrCondition), err)
	// Output:
	// <nil>
	// false caveats: extension name "Region" is not 1 to 64 of a-z, 0-9, '.', '_' and '-'
}
