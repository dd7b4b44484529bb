package replica_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
)

// serve is all that a service has to do.
func serve(ctx context.Context, c *client.Client) (http.Handler, *replica.Replica, error) {
	r, err := replica.Open(ctx, replica.Config{Client: c, Audiences: []string{"corp"}})
	if err != nil {
		return nil, nil, err
	}
	checker, err := caveats.Standard()
	if err != nil {
		return nil, nil, err
	}
	v, err := r.Verifier(checker)
	if err != nil {
		return nil, nil, err
	}
	g, err := guard.New(v, guard.Service("files"))
	if err != nil {
		return nil, nil, err
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"},
		func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "content of", r.PathValue("path")) })
	h, err := g.Build()
	return h, r, err
}

// A service in front of a real authority: keys, revocations and call budgets
// come from a replica, and the guard asks nobody else.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "writ")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	node, stop, err := authoritytest.Run(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	defer stop()
	credential, err := node.Join(ctx, api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		log.Fatal(err)
	}
	handler, r, err := serve(ctx, node.Client(credential))
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	service := httptest.NewServer(handler)
	defer service.Close()

	issued, err := node.Root().Issue(ctx, api.IssueRequest{
		Audience: "corp", Subject: "agent-42", Owner: "owner@corp.example", Purpose: "Q3",
		Caveats: []string{"action read", "resource files/**", "max-calls 2"},
	})
	if err != nil {
		log.Fatal(err)
	}
	token, err := capability.Parse(issued.Token)
	if err != nil {
		log.Fatal(err)
	}
	agent := &http.Client{Transport: &guard.Transport{Token: token}}
	for range 3 {
		resp, err := agent.Get(service.URL + "/files/q3")
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println(resp.StatusCode)
	}
	// Output:
	// 200
	// 200
	// 403
}
