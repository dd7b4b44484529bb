package client

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

// tokenFile is the credential as it was last read.
type tokenFile struct {
	text    string
	modTime time.Time
	size    int64
}

// token returns the credential's text form.
func (c *Client) token(ctx context.Context) (string, error) {
	switch {
	case c.cfg.Token != "":
		return c.cfg.Token, nil
	case c.cfg.TokenSource != nil:
		text, err := c.cfg.TokenSource(ctx)
		if err != nil {
			return "", fmt.Errorf("credential: %w", err)
		}
		return text, checkToken(text)
	case c.cfg.TokenFile != "":
		return c.readFile()
	}
	return "", ErrNoToken
}

func (c *Client) readFile() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := os.Open(c.cfg.TokenFile)
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	if c.file.text != "" && info.ModTime().Equal(c.file.modTime) && info.Size() == c.file.size {
		return c.file.text, nil
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(capability.MaxTextSize)+256))
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if err := checkToken(text); err != nil {
		return "", fmt.Errorf("%s: %w", c.cfg.TokenFile, err)
	}
	c.file = tokenFile{text: text, modTime: info.ModTime(), size: info.Size()}
	return text, nil
}

// checkToken keeps what is no token out of a header; it does not say what is
// in it.
func checkToken(text string) error {
	if len(text) > capability.MaxTextSize || !strings.HasPrefix(text, capability.TextPrefix) {
		return errNotText
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return errNotText
		}
	}
	return nil
}

var errNotText = fmt.Errorf("credential is not a token in text form: %w", capability.CodeMalformed)
