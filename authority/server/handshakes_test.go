package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
}

// deaf is a connection on which nothing is read before the end.
type deaf struct {
	net.Conn
	end <-chan struct{}
}

// Read implements net.Conn.
func (d deaf) Read([]byte) (int, error) {
	<-d.end
	return 0, io.EOF
}

// TestHandshakesAreFewAtATime: one waits while another is computed, and for no client
// that has yet to say something, or has gone.
func TestHandshakesAreFewAtATime(t *testing.T) {
	base := selfSigned(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := limitHandshakes(base.Clone(), 1)
		connect := func(wrap func(net.Conn) net.Conn) (ours net.Conn, client *tls.Conn) {
			ours, theirs := net.Pipe()
			go func() {
				_ = tls.Server(ours, cfg).HandshakeContext(t.Context())
				ours.Close()
			}()
			if wrap != nil {
				theirs = wrap(theirs)
			}
			client = tls.Client(theirs, &tls.Config{InsecureSkipVerify: true})
			return ours, client
		}
		good := func() (done chan error) {
			done = make(chan error, 1)
			ours, client := connect(nil)
			go func() {
				done <- client.HandshakeContext(t.Context())
				client.Close()
				ours.Close()
			}()
			synctest.Wait()
			return done
		}
		silent, _ := connect(nil) // has yet to say hello
		if err := <-good(); err != nil {
			t.Fatalf("beside a silent client: %v", err)
		}
		// A pipe holds nothing: a node is not done with its part before it is read.
		end := make(chan struct{})
		defer close(end)
		slow, client := connect(func(c net.Conn) net.Conn { return deaf{c, end} })
		go func() { _ = client.Handshake() }()
		synctest.Wait()
		waits := good()
		select {
		case err := <-waits:
			t.Fatalf("two at a time: %v", err)
		default:
		}
		slow.Close()
		if err := <-waits; err != nil {
			t.Errorf("after the one before has gone: %v", err)
		}
		// Nor does one keep its room for as long as it likes.
		deafAgain, client := connect(func(c net.Conn) net.Conn { return deaf{c, end} })
		go func() { _ = client.Handshake() }()
		synctest.Wait()
		began := time.Now()
		if err := <-good(); err != nil || time.Since(began) > handshakeMost {
			t.Errorf("behind one that stalls: %v, after %v", err, time.Since(began))
		}
		deafAgain.Close()
		silent.Close()
	})
}

// TestHandshakesKeepTheirConfiguration: what a caller has for its connections holds,
// and they are resumed.
func TestHandshakesKeepTheirConfiguration(t *testing.T) {
	base := selfSigned(t)
	asked, verified := 0, 0
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { asked++; return nil, nil }
	base.VerifyConnection = func(tls.ConnectionState) error { verified++; return nil }
	ln, err := tls.Listen("tcp", "127.0.0.1:0", limitHandshakes(base, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		for range 2 {
			c, err := ln.Accept()
			if err == nil {
				_, err = c.Write([]byte("x")) // and with it the ticket
				err = errors.Join(err, c.Close())
			}
			served <- err
		}
	}()
	own := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, ServerName: "node", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i := range 2 {
		c, err := tls.Dial("tcp", ln.Addr().String(), own)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if s := c.ConnectionState(); s.NegotiatedProtocol != "h2" || s.DidResume != (i == 1) {
			t.Errorf("connection %d: %q, resumed %v", i, s.NegotiatedProtocol, s.DidResume)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	if asked != 2 || verified != 2 {
		t.Errorf("asked for a configuration %d times, verified %d connections", asked, verified)
	}
}
