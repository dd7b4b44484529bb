package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/writ-dev/writ/authority/api"
)

// Cluster returns the cluster as the node that answers sees it.
func (c *Client) Cluster(ctx context.Context) (*api.ClusterStatus, error) {
	return answer[api.ClusterStatus](ctx, c, get("/v1/cluster", nil))
}

// ClusterToken makes a single-use token with which one node joins.
func (c *Client) ClusterToken(ctx context.Context, r api.ClusterTokenRequest) (*api.ClusterTokenResponse, error) {
	return answer[api.ClusterTokenResponse](ctx, c, change("/v1/cluster/tokens", r))
}

// ClusterJoin exchanges a join token for a place in the cluster. The token is
// the authorization; the same request again gets the same place.
func (c *Client) ClusterJoin(ctx context.Context, r api.ClusterJoinRequest) (*api.ClusterJoinResponse, error) {
	k := change("/v1/cluster/join", r)
	k.anonymous = true
	return answer[api.ClusterJoinResponse](ctx, c, k)
}

func nodePath(node, verb string) string { return "/v1/cluster/nodes/" + url.PathEscape(node) + verb }

// PromoteNode gives a node a vote.
func (c *Client) PromoteNode(ctx context.Context, node string) (*api.NodeStatus, error) {
	return answer[api.NodeStatus](ctx, c, change(nodePath(node, "/promote"), struct{}{}))
}

// DemoteNode makes a node a read replica.
func (c *Client) DemoteNode(ctx context.Context, node string) (*api.NodeStatus, error) {
	return answer[api.NodeStatus](ctx, c, change(nodePath(node, "/demote"), struct{}{}))
}

// LeadNode has a voter lead.
func (c *Client) LeadNode(ctx context.Context, node string) (*api.NodeStatus, error) {
	return answer[api.NodeStatus](ctx, c, change(nodePath(node, "/lead"), struct{}{}))
}

// CleanUpNodes removes the nodes that have not answered the leader for so long.
func (c *Client) CleanUpNodes(ctx context.Context, r api.CleanUpRequest) (*api.CleanUpResponse, error) {
	return answer[api.CleanUpResponse](ctx, c, change("/v1/cluster/clean-up", r))
}

// RemoveNode removes a node for good; with force even if the rest may lose its
// majority.
func (c *Client) RemoveNode(ctx context.Context, node string, force bool) error {
	k := call{method: http.MethodDelete, path: nodePath(node, ""), change: true}
	if force {
		k.query = url.Values{"force": {"true"}}
	}
	return c.do(ctx, k, nil)
}
