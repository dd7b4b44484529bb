// Package tpm reaches a TPM: the kernel's device, or the socket of a software
// TPM.
package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// DefaultDevice is the kernel's TPM behind its resource manager.
const DefaultDevice = "/dev/tpmrm0"

const (
	header      = 10 // of a response: tag, size, code
	maxResponse = 4096
	maxDelay    = 2 * time.Second
	timeout     = 30 * time.Second // for one command of a software TPM
)

// Conn is a connection to a TPM. It is safe for concurrent use: the TPM does one
// command at a time.
type Conn struct {
	mu     sync.Mutex
	device transport.TPMCloser // nil for a socket

	network, address string // of a socket
}

// Open opens a device such as "/dev/tpmrm0", "unix:PATH" or "tcp:HOST:PORT".
func Open(address string) (*Conn, error) {
	network, rest, _ := strings.Cut(address, ":")
	switch network {
	case "unix", "tcp":
		return &Conn{network: network, address: rest}, nil
	}
	device, err := linuxtpm.Open(address)
	if err != nil {
		return nil, fmt.Errorf("open TPM: %w", err)
	}
	return &Conn{device: device}, nil
}

// Send implements transport.TPM. A command that the TPM asks to be sent again
// (TPM_RC_RETRY, TPM_RC_YIELDED and TPM_RC_TESTING: it has not begun) is, for a
// few seconds, as the kernel does.
func (c *Conn) Send(command []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for delay := time.Millisecond; ; delay *= 2 {
		response, err := c.once(command)
		if err != nil || len(response) < header || delay > maxDelay {
			return response, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
			time.Sleep(delay)
		default:
			return response, nil
		}
	}
}

func (c *Conn) once(command []byte) ([]byte, error) {
	if c.device != nil {
		return c.device.Send(command)
	}
	return c.exchange(command)
}

// exchange connects for one command, since a software TPM serves one client at
// a time: others get their turn in between.
func (c *Conn) exchange(command []byte) ([]byte, error) {
	conn, err := net.DialTimeout(c.network, c.address, timeout)
	if err != nil {
		return nil, fmt.Errorf("reach TPM: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(command); err != nil {
		return nil, fmt.Errorf("reach TPM: %w", err)
	}
	response := make([]byte, header, 512)
	if _, err := io.ReadFull(conn, response); err != nil {
		return nil, fmt.Errorf("reach TPM: %w", err)
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < header || size > maxResponse {
		return nil, errors.New("the TPM's response has an impossible size")
	}
	response = append(response, make([]byte, size-header)...)
	if _, err := io.ReadFull(conn, response[header:]); err != nil {
		return nil, fmt.Errorf("reach TPM: %w", err)
	}
	return response, nil
}

// Close lets go of the TPM.
func (c *Conn) Close() error {
	if c.device != nil {
		return c.device.Close()
	}
	return nil
}
