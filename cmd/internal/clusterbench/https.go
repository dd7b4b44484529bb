package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// What HTTPS alone takes on this machine: net/http's server in a process of its own,
// with a handler that reads the body and answers as many bytes as a token is, and
// net/http's client in this one. With the yardstick it says what is left for a
// cluster's own work: they share the processors.

// answerSize is about that of a TokenResponse.
const answerSize = 500

func httpsMain([]string) error {
	cert, err := selfSigned("https")
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answer := bytes.Repeat([]byte{'a'}, answerSize)
	s := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = w.Write(answer)
		}),
	}
	if err := json.NewEncoder(os.Stdout).Encode(bareAnswer{Address: ln.Addr().String()}); err != nil {
		return err
	}
	go func() { // until the one who asks is done
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = s.Close()
	}()
	if err := s.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// bareHTTPS is what so many callers make of a server that does nothing, each over a
// connection of its own.
func (b *bench) bareHTTPS(ctx context.Context, callers int) (l load, err error) {
	self, err := os.Executable()
	if err != nil {
		return l, err
	}
	cmd := exec.Command(self, "https")
	cmd.Stderr = b.nodes
	in, err := cmd.StdinPipe()
	if err != nil {
		return l, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return l, err
	}
	if err := cmd.Start(); err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, in.Close(), cmd.Wait()) }()
	var a bareAnswer
	if err := json.NewDecoder(out).Decode(&a); err != nil {
		return l, err
	}
	body, err := json.Marshal(plainRequest())
	if err != nil {
		return l, err
	}
	list := make([]*http.Transport, callers)
	for i := range list {
		// The certificate is the one that this program has just made.
		list[i] = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}
		defer list[i].CloseIdleConnections()
	}
	return drive(ctx, callers, b.each/2, func(ctx context.Context, w int) error {
		return post(ctx, list[w], "https://"+a.Address+"/", body)
	}, cmd.Process.Pid)
}

func post(ctx context.Context, t *http.Transport, url string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != answerSize {
		return errors.Join(fmt.Errorf("%d bytes of an answer", n), err)
	}
	return nil
}
