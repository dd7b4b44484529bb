package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// What Raft says at every attempt is said once a minute of each node, and again
// when a node that was away refuses; everything else is said every time.
func TestRaftIsNotSaidAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newRaftLogger(slog.New(slog.NewTextHandler(&out, nil)))
		said := func(what string) (n int) { return strings.Count(out.String(), what) }
		minute := func(err error) {
			for range 600 {
				for _, id := range []raft.ServerID{"n2", "n3"} {
					l.Error("failed to heartbeat to", "peer", id, "backoff time", time.Second, "error", err)
				}
				l.Warn("Election timeout reached, restarting election")
				l.Info("election won", "term", 7)
				time.Sleep(100 * time.Millisecond)
			}
		}
		away := fmt.Errorf("%w: it is away", ErrUnreachable)
		minute(away)
		if said("peer=n2") != 1 || said("peer=n3") != 1 || said("restarting election") != 1 || said("election won") != 600 {
			t.Errorf("in a minute: %.2000s", &out)
		}
		minute(away)
		if said("peer=n2") != 2 || said("peer=n3 ") != 2 || said("held_back=599") != 3 {
			t.Errorf("in the next: %.2000s", &out)
		}
		minute(fmt.Errorf("%w: it does not know the key", ErrRefused))
		if said("does not know the key") != 2 {
			t.Errorf("when it refuses: %.2000s", &out)
		}
	})
}

// A stranger who connects for ever does not fill the log, from however many
// addresses.
func TestRefusedConnectionsDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tr := &Transport{cfg: TransportConfig{Logger: slog.New(slog.NewTextHandler(&out, nil))}}
		lines := func() int { return bytes.Count(out.Bytes(), []byte{'\n'}) }
		for port := range 1000 {
			tr.logRefused(fmt.Sprintf("10.0.0.1:%d", port), ErrRefused)
		}
		if lines() != 1 {
			t.Errorf("%d lines of one host", lines())
		}
		for host := range 1000 {
			tr.logRefused(fmt.Sprintf("10.0.%d.%d:1", 1+host/250, host%250), ErrRefused)
		}
		if lines() > maxSayings+1 || len(tr.refused.said) > maxSayings+1 {
			t.Errorf("%d lines of 1001 hosts, %d remembered", lines(), len(tr.refused.said))
		}
		time.Sleep(sayEvery)
		tr.logRefused("10.0.9.9:1", errors.New("another"))
		tr.logRefused("10.0.0.1:1", errors.New("the first"))
		if !strings.Contains(out.String(), "another") || !strings.Contains(out.String(), "the first") {
			t.Error("nothing is said after a minute")
		}
	})
}

// Whoever is refused by a node that runs is said so there.
func TestRefusedConnectionIsSaid(t *testing.T) {
	said := make(chan string, 16)
	b := testTransport(t, "n2", func(cfg *TransportConfig) {
		cfg.Logger = slog.New(slog.NewTextHandler(lines(said), nil))
	})
	conn, err := net.Dial("tcp", b.cfg.Advertise)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case line := <-said:
			if strings.Contains(line, "refused a connection") {
				return
			}
		case <-testContext(t).Done():
			t.Fatal("it is not in the log")
		}
	}
}

type lines chan string

// Write implements io.Writer.
func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}
