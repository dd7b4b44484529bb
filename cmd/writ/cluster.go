package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

const (
	defaultPeerListen = "127.0.0.1:7481"
	// clusterBound is the staleness bound of a cluster that says no other.
	clusterBound = 2 * time.Second
)

func newCluster(a *app) *cobra.Command {
	return group("cluster", "form and manage an authority of several nodes",
		newClusterInit(a), newClusterToken(a), newClusterJoin(a), newClusterStatus(a), newClusterPromote(a), newClusterDemote(a),
		newClusterTransfer(a), newClusterRemove(a), newClusterCleanUp(a), newClusterSnapshot(a), newClusterRecover(a))
}

func newClusterInit(a *app) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "form a new cluster and run its first node",
		Long: `Form a new cluster in an empty data directory and run its first node: what
writ serve --init does, with a port for the nodes to come. Afterwards start the node
with writ serve and the same configuration.

Three machines are five commands: init on the first; then, for each of the others, token
on a machine that has the root token, and join on the new one.`,
		Example: `  writ cluster init --node n1 --listen 10.0.0.1:7480 --peer-listen 10.0.0.1:7481 \
    --data-dir ./data --node-key ./node.key --root-token ./root.token
  writ cluster token > join.token
  writ cluster join --node n2 --listen 10.0.0.2:7480 --peer-listen 10.0.0.2:7481 \
    --data-dir ./data --node-key ./node.key --addr 10.0.0.1:7480 --ca-fingerprint HEX < join.token
  writ cluster status`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.form, o.clustered = true, true
			return a.serve(cmd, &o)
		},
	}
	o.config.add(cmd)
	cmd.Flags().StringVar(&o.rootToken, "root-token", "", "write the root token to this new `file`, mode 0600")
	o.addExit(cmd, "exit once the cluster is formed")
	return cmd
}

func newClusterToken(a *app) *cobra.Command {
	var conn connection
	var r api.ClusterTokenRequest
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "token",
		Short: "make a single-use token with which one node joins",
		Long: `Make a token with which one node joins the cluster, once. It is printed together
with the fingerprint of the cluster's CA, by which the new node knows whom it joins.`,
		Example: `  writ cluster token > join.token
  writ cluster token --replica --for 24h > join.token`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.TTLSeconds, err = secondsOf(ttl); err != nil {
				return err
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.ClusterTokenResponse, error) {
				made, err := c.ClusterToken(ctx, r)
				if err == nil {
					a.say(cmd, "good once, until %s; the new node needs --ca-fingerprint %s", a.when(made.Expires), made.CAFingerprint)
				}
				return made, err
			}, func(p *printer, made *api.ClusterTokenResponse) { p.line("%s", made.Token) })
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&r.Replica, "replica", false, "the node is to serve feeds and reads, without a vote")
	cmd.Flags().DurationVar(&ttl, "for", authority.DefaultClusterTokenTTL, "how `long` it can be used, such as 30m")
	return cmd
}

func newClusterJoin(a *app) *cobra.Command {
	var o serveOptions
	var conn connection
	var tokenFile string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "join",
		Short: "join a cluster with a token, and run the node",
		Long: `Join a cluster with the token on standard input, in an empty data directory, and
run the node. It makes its own key, gets a certificate and its copy of the cluster's key,
and becomes a voter once it has caught up, unless the token is for a replica.

Where the cluster does not take the node in, the token is not lost: the same command
can be run again. Once it has, the place is the node's, whether or not the others have
reached it in --wait: writ serve goes on from there.

Afterwards start the node with writ serve and the same configuration.`,
		Example: `  writ cluster join --node n2 --listen 10.0.0.2:7480 --peer-listen 10.0.0.2:7481 \
    --data-dir ./data --node-key ./node.key --addr 10.0.0.1:7480 --ca-fingerprint HEX < join.token`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := readInput(cmd, tokenFile)
			if err != nil {
				return err
			}
			if token = strings.TrimSpace(token); token == "" {
				return &failure{Code: "no_secret", Message: "no join token given", Hint: "pass what writ cluster token printed on standard input"}
			}
			o.clustered = true
			o.join = func(ctx context.Context, cfg *authority.Config) error {
				req, err := authority.PrepareJoin(*cfg, token)
				if err != nil {
					return err
				}
				c, err := conn.open(a)
				if err != nil {
					return err
				}
				defer c.Close()
				cfg.Peers.JoinWait = wait
				cfg.Joined, err = c.ClusterJoin(ctx, *req)
				return joinFailure(err)
			}
			return a.serve(cmd, &o)
		},
	}
	o.config.add(cmd)
	conn.add(cmd)
	cmd.Flags().StringVar(&tokenFile, "join-token-file", "", "read the join token from this `file` instead of standard input")
	cmd.Flags().DurationVar(&wait, "wait", authority.DefaultJoinWait, "how `long` to wait for a leader to reach this node, such as 30s")
	o.addExit(cmd, "exit once it has joined")
	return cmd
}

// joinFailure says of an answer that decides nothing that the token is good for
// another try: the same node with the same token gets the same place.
func joinFailure(err error) error {
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return err
	}
	switch e.Problem.Code {
	case api.CodeNotLeader, api.CodeIndeterminate, api.CodeOverloaded, capability.CodeUnavailable:
		f := *explain(err)
		f.Hint = "the token is not lost: run the same command again, once a majority of the voters is up"
		return &f
	}
	return err
}

func nodeRow(n *api.NodeStatus) []string {
	role := "replica"
	switch {
	case n.Leader:
		role = "leader"
	case n.Voter:
		role = "voter"
	case n.Wanted:
		role = "catching up"
	}
	state := n.State
	switch {
	case n.State == "removed":
		role = "-"
	case !n.Answers && n.AwaySeconds > 0: // else the leader has not asked yet, or is another
		state = "does not answer for " + (time.Duration(n.AwaySeconds) * time.Second).String()
	case !n.Answers:
		state = "does not answer"
	case n.DiskFull:
		state = "disk full"
	}
	knows := "-" // only the leader has asked
	if n.Version != 0 {
		knows = fmt.Sprint(n.Version)
	}
	return []string{n.Node, role, state, fmt.Sprint(n.Lag), (time.Duration(n.RoundUs) * time.Microsecond).String(),
		(time.Duration(n.SkewMs) * time.Millisecond).String(), knows, n.Raft, n.API}
}

// newClusterChange is a command that changes one node.
func newClusterChange(a *app, use, short, long string, do func(context.Context, *client.Client, string) (*api.NodeStatus, error)) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     use + " NODE",
		Short:   short,
		Long:    long,
		Example: "  writ cluster " + use + " n2",
		Args:    exactArguments("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.NodeStatus, error) { return do(ctx, c, args[0]) },
				func(p *printer, n *api.NodeStatus) {
					p.table([]string{"NODE", "ROLE", "STATE"}, [][]string{nodeRow(n)[:3]})
				})
		},
	}
	conn.add(cmd)
	return cmd
}

func newClusterPromote(a *app) *cobra.Command {
	return newClusterChange(a, "promote", "give a node a vote",
		"Give a node a vote. One that has yet to catch up gets it then.",
		func(ctx context.Context, c *client.Client, node string) (*api.NodeStatus, error) {
			return c.PromoteNode(ctx, node)
		})
}

func newClusterDemote(a *app) *cobra.Command {
	return newClusterChange(a, "demote", "take a node's vote away",
		"Take a node's vote away: it goes on as a replica, which serves feeds and reads.",
		func(ctx context.Context, c *client.Client, node string) (*api.NodeStatus, error) {
			return c.DemoteNode(ctx, node)
		})
}

func newClusterTransfer(a *app) *cobra.Command {
	return newClusterChange(a, "transfer-leader", "have another voter lead",
		"Have another voter lead, before work on the machine of the one that does.",
		func(ctx context.Context, c *client.Client, node string) (*api.NodeStatus, error) {
			return c.LeadNode(ctx, node)
		})
}

func newClusterRemove(a *app) *cobra.Command {
	var conn connection
	var force, compromised bool
	var reason string
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "remove a node for good",
		Long: `Remove a node for good: its name and its key never come back. It is refused when the
voters that would be left and answer are no majority.

With --compromised nothing is left that works of what the node knew or somebody copied
from it: every key is replaced, the CA's too, and every token and every credential of
before ends, the one of this call included. Cut the node's machine off first. Afterwards,
on a node that is left, writ keys root gives you a new root token; clients pin the new
fingerprint, and services are added again. It works for a node that was removed before,
and can be repeated.`,
		Example: "  writ cluster remove n3\n  writ cluster remove n3 --compromised --reason 'its disk was stolen'",
		Args:    exactArguments("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if compromised {
				if reason == "" {
					return usage(cmd, "--compromised needs a --reason")
				}
				return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.ExpelResponse, error) {
					return c.ExpelNode(ctx, args[0], api.ExpelRequest{Reason: reason, Force: force})
				}, func(p *printer, r *api.ExpelResponse) { a.printExpelled(cmd, p, r) })
			}
			type removed struct {
				Node string `json:"removed"`
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*removed, error) {
				return &removed{args[0]}, c.RemoveNode(ctx, args[0], force)
			}, func(p *printer, r *removed) { p.line("removed %s", r.Node) })
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "even if the rest may lose its majority")
	cmd.Flags().BoolVar(&compromised, "compromised", false, "leave it nothing that works: every key is replaced, every token and credential ends")
	cmd.Flags().StringVar(&reason, "reason", "", "`why`, for the audit log; with --compromised")
	return cmd
}

func newClusterCleanUp(a *app) *cobra.Command {
	var conn connection
	var away time.Duration
	cmd := &cobra.Command{
		Use:   "clean-up",
		Short: "remove the nodes that have been away for long",
		Long: `Remove for good every node that has not answered for as long as --away says, as far as
the node that leads knows: it counts from when it began to lead. Nothing is removed
without this command, or remove: a network that heals must not find its nodes expelled.`,
		Example: "  writ cluster clean-up --away 72h",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if away < time.Second {
				return usage(cmd, "say for how long a node has to be away: --away 72h")
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.CleanUpResponse, error) {
				return c.CleanUpNodes(ctx, api.CleanUpRequest{AwaySeconds: int64(away / time.Second)})
			}, func(p *printer, r *api.CleanUpResponse) {
				for _, node := range r.Removed {
					p.line("removed %s", node)
				}
				if len(r.Removed) == 0 {
					a.say(cmd, "no node has been away for so long")
				}
			})
		},
	}
	conn.add(cmd)
	cmd.Flags().DurationVar(&away, "away", 0, "for how `long` a node has not answered, such as 72h")
	return cmd
}

func (a *app) printExpelled(cmd *cobra.Command, p *printer, r *api.ExpelResponse) {
	p.line("export WRIT_CA_FINGERPRINT=%s", r.CAFingerprint)
	a.say(cmd, "removed %s; incarnation %d has begun", r.Node, r.Incarnation)
	a.say(cmd, "every token and credential has ended: run writ keys root on a node that is left")
	if len(r.Services) > 0 {
		a.say(cmd, "services to add again, with the new fingerprint: %s", strings.Join(r.Services, ", "))
	}
}

// peers opens the listener for other nodes, if the configuration has one, and
// says where this node is reached.
func (c *config) peers(api net.Addr) (*authority.PeerConfig, error) {
	if c.PeerListen == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", c.PeerListen)
	if err != nil {
		return nil, err
	}
	p := &authority.PeerConfig{
		Listener: ln, Advertise: c.PeerAddress, API: c.APIAddress, Profile: raftstore.Profile(c.PeerProfile),
		Heartbeat: time.Duration(c.PeerHeartbeat), Election: time.Duration(c.PeerElection), Lease: time.Duration(c.PeerLease),
	}
	if p.Advertise == "" {
		p.Advertise = ln.Addr().String()
	}
	if p.API == "" && api != nil {
		p.API = api.String()
	}
	return p, nil
}

// quorumWait is how long a node waits for a quorum before it says that it
// serves. Without one it serves all the same, and says why it is not ready.
const quorumWait = 5 * time.Second

// awaitQuorum waits a little until the node can decide.
func (n *node) awaitQuorum(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, quorumWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n.Ready(ctx) != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.log.Warn("serving without a quorum", "why", n.Ready(ctx))
			return
		}
	}
}

// checkPeers checks the keys that are about other nodes.
func (c *config) checkPeers() error {
	if c.PeerListen == "" {
		if c.PeerAddress != "" {
			return configError("peer_address needs peer_listen")
		}
		return nil
	}
	if err := checkListen("peer_listen", c.PeerListen); err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(c.PeerListen)
	if ip := net.ParseIP(host); c.PeerAddress == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
		return configError("peer_listen %s is no address that others can reach: set peer_address", c.PeerListen)
	}
	switch raftstore.Profile(c.PeerProfile) {
	case "", raftstore.ProfileLAN, raftstore.ProfileWAN:
		return c.checkTimeouts()
	}
	return configError("peer_profile %q is neither lan nor wan", c.PeerProfile)
}

// minHeartbeat is the least that a follower can wait for its leader.
const minHeartbeat = duration(50 * time.Millisecond)

// checkTimeouts checks Raft's timeouts as far as they are set one by one.
func (c *config) checkTimeouts() error {
	show := func(d duration) time.Duration { return time.Duration(d) }
	switch h, e, l := c.PeerHeartbeat, c.PeerElection, c.PeerLease; {
	case h == 0 && (e != 0 || l != 0):
		return configError("peer_election and peer_lease need peer_heartbeat")
	case h == 0:
		return nil
	case h < minHeartbeat:
		return configError("peer_heartbeat %v is under %v", show(h), show(minHeartbeat))
	case e != 0 && e < h:
		return configError("peer_election %v is less than peer_heartbeat %v", show(e), show(h))
	case l < 0 || l > h/2:
		return configError("peer_lease %v is more than half of peer_heartbeat %v: a leader that was replaced could answer with what is no longer so", show(l), show(h))
	}
	return nil
}
