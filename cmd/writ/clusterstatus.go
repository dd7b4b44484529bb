package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
)

func newClusterStatus(a *app) *cobra.Command {
	var conn connection
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show the nodes of the cluster",
		Long: `Show the nodes of the cluster, as the node that answers sees them. With --wait, only
once there is a leader and every member answers, has caught up, and has the vote that
it is to have: what to wait for between two steps of work on the cluster.`,
		Example: "  writ cluster status --wait 30s",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.ClusterStatus, error) {
				if wait > 0 {
					return awaitWhole(ctx, c, wait)
				}
				return c.Cluster(ctx)
			}, func(p *printer, s *api.ClusterStatus) {
				p.line("cluster %s, incarnation %d, version %d; %s answers, in term %d", s.Cluster, s.Incarnation, s.Version, s.Node, s.Term)
				var rows [][]string
				for i := range s.Nodes {
					rows = append(rows, nodeRow(&s.Nodes[i]))
				}
				p.table([]string{"NODE", "ROLE", "STATE", "LAG", "ROUND TRIP", "SKEW", "KNOWS", "PEERS", "API"}, rows)
			})
		},
	}
	conn.add(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "how `long` to wait until every member is as it is to be, such as 30s")
	return cmd
}

// caughtUp is how many entries a member may be behind and count as caught up: in
// a cluster that works, none is at zero all the time.
const caughtUp = 256

// unwell says what keeps the cluster from being whole, or nothing.
func unwell(s *api.ClusterStatus) string {
	if s.Leader == "" {
		return "no node leads"
	}
	for i := range s.Nodes {
		switch n := &s.Nodes[i]; {
		case n.State == "removed":
		case n.State != "active":
			return fmt.Sprintf("%s is %s", n.Node, n.State)
		case !n.Answers:
			return n.Node + " does not answer"
		case n.Voter != n.Wanted:
			return n.Node + " has yet to get its vote, or to lose it"
		case n.Lag > caughtUp:
			return fmt.Sprintf("%s is %d entries behind", n.Node, n.Lag)
		}
	}
	return ""
}

// awaitWhole asks for the status until nothing is amiss.
func awaitWhole(ctx context.Context, c *client.Client, wait time.Duration) (*api.ClusterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	why := "no node answers"
	for {
		s, err := c.Cluster(ctx)
		if err == nil {
			if why = unwell(s); why == "" {
				return s, nil
			}
		} else if e, refused := errors.AsType[*client.Error](err); refused && e.Problem.Status/100 == 4 {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, &failure{Code: "not_whole", Message: fmt.Sprintf("after %s: %s", wait, why), Hint: "writ cluster status shows every node"}
		}
	}
}
