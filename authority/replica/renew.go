package replica

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

const (
	renewTimeout = 30 * time.Second
	renewCheck   = time.Hour        // longest between two looks at the credential
	renewAgain   = 30 * time.Second // after a failure
)

// runRenewal renews the service's credential when a third of its life is left.
func (r *Replica) runRenewal() {
	for {
		wait, err := r.renewDue()
		if err == nil && wait <= 0 {
			err = r.renew()
			wait = 0
		}
		if err != nil {
			r.log.Error("renewing the service's credential", "file", r.cfg.CredentialFile, "error", err)
			wait = renewAgain
		}
		if !r.pause(min(max(wait, time.Second), renewCheck)) {
			return
		}
	}
}

// renewDue is how long until the credential is to be renewed.
func (r *Replica) renewDue() (time.Duration, error) {
	f, err := os.Open(r.cfg.CredentialFile)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(capability.MaxTextSize)+256))
	if err != nil {
		return 0, err
	}
	t, err := capability.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("credential: %w", err)
	}
	i, err := t.Inspect()
	if err != nil {
		return 0, fmt.Errorf("credential: %w", err)
	}
	life := i.Identifier.NotAfter.Sub(i.Identifier.ID.Time())
	return i.Identifier.NotAfter.Add(-life / 3).Sub(r.now()), nil
}

func (r *Replica) renew() error {
	ctx, cancel := context.WithTimeout(r.ctx, renewTimeout)
	defer cancel()
	c, err := r.client.Renew(ctx)
	if err != nil {
		return err
	}
	if err := replaceFile(r.cfg.CredentialFile, c.Token+"\n"); err != nil {
		return err
	}
	r.log.Info("the service's credential was renewed", "not_after", c.NotAfter)
	return nil
}
