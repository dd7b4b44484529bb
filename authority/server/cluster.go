package server

import (
	"net/http"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// clusterRoutes are the endpoints about the nodes themselves.
func clusterRoutes() []*route {
	post, get := http.MethodPost, http.MethodGet
	node := []param{{name: "node", doc: "the node's name", path: true, required: true}}
	return []*route{
		{method: get, pattern: "/v1/cluster", id: "clusterStatus", summary: "Show the cluster as this node sees it",
			action: "read", access: "cluster", endpoint: withoutBody("read", on("cluster"), clusterStatus)},
		{method: post, pattern: "/v1/cluster/tokens", id: "addNode", summary: "Make a single-use token with which one node joins; shown once",
			action: "cluster", access: "nodes", lane: laneRevocations,
			endpoint: withBody("cluster", func(*exchange, *api.ClusterTokenRequest) (resources, error) { return one("nodes") }, clusterToken)},
		{method: post, pattern: "/v1/cluster/join", id: "joinCluster", summary: "Exchange a join token for a place in the cluster, once",
			access: "the single-use join token in the body is the authorization", lane: laneRevocations, anonymous: true, limit: 4 << 10,
			endpoint: withBody[api.ClusterJoinRequest]("", nil, joinCluster)},
		{method: post, pattern: "/v1/cluster/clean-up", id: "cleanUpNodes", summary: "Remove the nodes that have not answered for so long",
			action: "cluster", access: "nodes", lane: laneRevocations,
			endpoint: withBody("cluster", func(*exchange, *api.CleanUpRequest) (resources, error) { return one("nodes") }, cleanUp)},
		{method: post, pattern: "/v1/cluster/nodes/{node}/promote", id: "promoteNode", summary: "Give a node a vote",
			action: "cluster", access: "nodes/NODE", lane: laneRevocations, params: node,
			endpoint: withBody("cluster", bodyNodeAccess, func(x *exchange, _ *struct{}) (*api.NodeStatus, error) { return setVoter(x, true) })},
		{method: post, pattern: "/v1/cluster/nodes/{node}/demote", id: "demoteNode", summary: "Make a node a read replica",
			action: "cluster", access: "nodes/NODE", lane: laneRevocations, params: node,
			endpoint: withBody("cluster", bodyNodeAccess, func(x *exchange, _ *struct{}) (*api.NodeStatus, error) { return setVoter(x, false) })},
		{method: post, pattern: "/v1/cluster/nodes/{node}/lead", id: "leadNode", summary: "Have a voter lead",
			action: "cluster", access: "nodes/NODE", lane: laneRevocations, params: node,
			endpoint: withBody("cluster", bodyNodeAccess, lead)},
		{method: http.MethodDelete, pattern: "/v1/cluster/nodes/{node}", id: "removeNode", summary: "Remove a node for good",
			action: "cluster", access: "nodes/NODE", lane: laneRevocations, status: http.StatusNoContent,
			params:   append(node, param{name: "force", doc: "true: even if the rest may lose its majority"}),
			endpoint: noResponse(withoutBody("cluster", nodeAccess, removeNode))},
	}
}

func nodeAccess(x *exchange) (resources, error) {
	name := x.r.PathValue("node")
	if !capability.ValidName(name, 50) {
		return nil, invalid("a node's name is 1 to 50 bytes of visible ASCII")
	}
	return one("nodes", name)
}

func bodyNodeAccess(x *exchange, _ *struct{}) (resources, error) { return nodeAccess(x) }

func clusterStatus(x *exchange) (*api.ClusterStatus, error) { return x.s.a.ClusterStatus(x.ctx()), nil }

func clusterToken(x *exchange, r *api.ClusterTokenRequest) (*api.ClusterTokenResponse, error) {
	return x.s.a.ClusterToken(x.ctx(), x.call, r)
}

func joinCluster(x *exchange, r *api.ClusterJoinRequest) (*api.ClusterJoinResponse, error) {
	if !x.s.joins.allow() {
		return nil, errOverloaded
	}
	return x.s.a.JoinCluster(x.ctx(), x.call, r)
}

func cleanUp(x *exchange, r *api.CleanUpRequest) (*api.CleanUpResponse, error) {
	return x.s.a.CleanUp(x.ctx(), x.call, r)
}

func setVoter(x *exchange, voter bool) (*api.NodeStatus, error) {
	return x.s.a.SetVoter(x.ctx(), x.call, x.r.PathValue("node"), voter)
}

func lead(x *exchange, _ *struct{}) (*api.NodeStatus, error) {
	return x.s.a.Lead(x.ctx(), x.r.PathValue("node"))
}

func removeNode(x *exchange) (*struct{}, error) {
	force, err := x.flag("force")
	if err != nil {
		return nil, err
	}
	return nil, x.s.a.RemoveNode(x.ctx(), x.call, x.r.PathValue("node"), force)
}
