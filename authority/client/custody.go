package client

import (
	"context"
	"io"
	"net/http"

	"github.com/writ-dev/writ/authority/api"
)

// SaveSnapshot writes a backup, a sealed file, from the first node that has one
// to give. What it wrote is whole only if there is no error and
// authority.OpenBackup takes it. ctx bounds it; Config.Timeout does not.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer) (err error) {
	k := call{method: http.MethodGet, path: "/v1/cluster/snapshot", accept: api.BackupType}
	for _, base := range c.bases {
		var begun bool
		if begun, err = c.saveFrom(ctx, k, base, w); begun || err == nil {
			return err
		}
		if _, again := retryIn(err, 0); !again {
			return err
		}
	}
	return err
}

func (c *Client) saveFrom(ctx context.Context, k call, base string, w io.Writer) (begun bool, err error) {
	req, err := c.request(ctx, k, base, "", nil)
	if err != nil {
		return false, err
	}
	resp, err := c.lanes[laneCalls].Do(req)
	if err != nil {
		return false, networkError(base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, problem(base, resp)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return true, networkError(base, err)
	}
	return true, nil
}

// Recipients says for whom the cluster key is wrapped.
func (c *Client) Recipients(ctx context.Context) (*api.RecipientList, error) {
	return answer[api.RecipientList](ctx, c, get("/v1/keys/recipients", nil))
}

// SetRecovery has the cluster key wrapped for a recovery recipient.
func (c *Client) SetRecovery(ctx context.Context, r api.RecoveryRequest) (*api.RecipientList, error) {
	return answer[api.RecipientList](ctx, c, change("/v1/keys/recovery", r))
}

// RotateClusterKey has every key sealed anew under a new cluster key.
func (c *Client) RotateClusterKey(ctx context.Context) (*api.RecipientList, error) {
	return answer[api.RecipientList](ctx, c, change("/v1/keys/cluster", struct{}{}))
}

// CA tells by which fingerprint clients know the cluster.
func (c *Client) CA(ctx context.Context) (*api.CAInfo, error) {
	return answer[api.CAInfo](ctx, c, get("/v1/keys/ca", nil))
}

// RotateCA gives the cluster another CA.
func (c *Client) RotateCA(ctx context.Context, r api.CARequest) (*api.CAInfo, error) {
	return answer[api.CAInfo](ctx, c, change("/v1/keys/ca", r))
}

// RetireCA ends the CA before the present one.
func (c *Client) RetireCA(ctx context.Context) (*api.CAInfo, error) {
	return answer[api.CAInfo](ctx, c, change("/v1/keys/ca/retire", struct{}{}))
}

// ExpelNode removes a compromised node, and ends every key, credential and token
// of before. The client's credential has ended when it returns, and its pin.
func (c *Client) ExpelNode(ctx context.Context, node string, r api.ExpelRequest) (*api.ExpelResponse, error) {
	return answer[api.ExpelResponse](ctx, c, change(nodePath(node, "/expel"), r))
}
