package mcpguard_test

import (
	"context"
	"fmt"
	"log"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/capability/guard/mcpguard"
)

type payment struct {
	To     string `json:"to"`
	Amount int    `json:"amount"`
}

// A tool server in memory, and an agent whose token lets it pay up to 100.
func Example() {
	ctx := context.Background()
	authority, err := guardtest.New() // stands for a replica of the authority
	if err != nil {
		log.Fatal(err)
	}
	g, err := mcpguard.New(authority.Verifier, mcpguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	server := mcp.NewServer(&mcp.Implementation{Name: "bank", Version: "1"}, nil)
	server.AddReceivingMiddleware(g.Middleware())
	mcp.AddTool(server, &mcp.Tool{Name: "pay"}, func(ctx context.Context, _ *mcp.CallToolRequest, p payment) (*mcp.CallToolResult, any, error) {
		fmt.Printf("%s pays %d to %s\n", guard.FromContext(ctx).Subject(), p.Amount, p.To)
		return &mcp.CallToolResult{}, nil, nil
	})
	agentSide, serverSide := mcp.NewInMemoryTransports()
	if _, err := server.Connect(ctx, serverSide, nil); err != nil {
		log.Fatal(err)
	}

	token, err := authority.Mint("action call", "resource pay", "argument amount <= 100")
	if err != nil {
		log.Fatal(err)
	}
	agent := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil)
	agent.AddSendingMiddleware(mcpguard.Attach(mcpguard.Static(token)))
	session, err := agent.Connect(ctx, agentSide, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	for _, amount := range []int{100, 101} {
		_, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "pay", Arguments: payment{To: "alice", Amount: amount}})
		if err != nil {
			fmt.Println(amount, "refused:", mcpguard.CodeOf(err))
		}
	}
	// Output:
	// agent-42 pays 100 to alice
	// 101 refused: argument_denied
}
