package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// The ports that tests choose for nodes which must find one another again. One
// that the system picks for a moment could be anybody's a moment later, such as the
// source of a connection that another test makes. So they lie below those that the
// system picks.
const (
	firstPort = 20_000
	lastPort  = 32_000
)

// keepAddress is where a listener keeps a port for one test: nothing else is on
// that address, and nodes are on others.
const keepAddress = "127.255.255.254"

// keepPort returns a port that nobody listens on, and what keeps other tests from
// it until it is closed.
func keepPort() (port string, keeper io.Closer, err error) {
	for range 1000 {
		port := fmt.Sprint(firstPort + rand.N(lastPort-firstPort))
		anywhere, err := net.Listen("tcp", ":"+port)
		if err != nil {
			continue
		}
		anywhere.Close()
		if keeper, err := net.Listen("tcp", net.JoinHostPort(keepAddress, port)); err == nil {
			return port, keeper, nil
		}
	}
	return "", nil, fmt.Errorf("no port between %d and %d is free", firstPort, lastPort)
}

// freePort returns an address of loopback that is the test's own.
func freePort(t *testing.T) string {
	t.Helper()
	port, keeper, err := keepPort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Close() })
	return net.JoinHostPort("127.0.0.1", port)
}

// A port that is kept is given to nobody else, and a node can listen there.
func TestPortsAreKept(t *testing.T) {
	taken := map[string]bool{}
	for range 200 {
		address := freePort(t)
		if taken[address] {
			t.Fatalf("%s was given twice", address)
		}
		taken[address] = true
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
	}
	for address := range taken {
		_, port, _ := net.SplitHostPort(address)
		if ln, err := net.Listen("tcp", ":"+port); err == nil {
			ln.Close()
			t.Fatalf("%s is not kept", address)
		}
	}
}
