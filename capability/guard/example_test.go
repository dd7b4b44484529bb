package guard_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// A service that anybody with the right capability may read files from.
func Example() {
	authority, err := guardtest.New() // stands for a replica of the authority
	if err != nil {
		log.Fatal(err)
	}

	g, err := guard.New(authority.Verifier, guard.Service("files"))
	if err != nil {
		log.Fatal(err)
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"},
		func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s for %s\n", r.PathValue("path"), guard.FromContext(r.Context()).Subject())
		})
	handler, err := g.Build()
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()

	token, err := authority.Mint("action read", "resource files/reports/**")
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &guard.Transport{Token: token}}
	for _, path := range []string{"/files/reports/q3", "/files/payroll"} {
		fmt.Print(get(client, server.URL+path))
	}
	// Output:
	// 200 reports/q3 for agent-42
	// 403 resource_denied
}

// A service that narrows what it was given before it calls the next: the
// second service refuses what was narrowed away, whatever the first one asks.
func ExampleGrant_Client() {
	authority, err := guardtest.New()
	if err != nil {
		log.Fatal(err)
	}
	store := start(authority, "GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"},
		func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "content of", r.PathValue("path")) })
	defer store.Close()

	front := start(authority, "GET /summary/{name}", guard.Route{Action: "read", Resource: "files/{name}"},
		func(w http.ResponseWriter, r *http.Request) {
			grant := guard.FromContext(r.Context())
			client, err := grant.Client(nil, "action read", "resource files/"+r.PathValue("name"))
			if err != nil {
				http.Error(w, "cannot forward", http.StatusBadGateway)
				return
			}
			fmt.Fprint(w, get(client, store.URL+"/files/"+r.PathValue("name")), get(client, store.URL+"/files/payroll"))
		})
	defer front.Close()

	token, err := authority.Mint("action read", "resource files/**")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(get(&http.Client{Transport: &guard.Transport{Token: token}}, front.URL+"/summary/q3"))
	// Output:
	// 200 200 content of q3
	// 403 resource_denied
}

func start(authority *guardtest.Authority, pattern string, route guard.Route, h http.HandlerFunc) *httptest.Server {
	g, err := guard.New(authority.Verifier)
	if err != nil {
		log.Fatal(err)
	}
	g.HandleFunc(pattern, route, h)
	handler, err := g.Build()
	if err != nil {
		log.Fatal(err)
	}
	return httptest.NewServer(handler)
}

// get returns the status and the body, or the code of a refusal.
func get(client *http.Client, url string) string {
	resp, err := client.Get(url)
	if err != nil {
		return err.Error() + "\n"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error() + "\n"
	}
	if resp.StatusCode != http.StatusOK {
		for _, code := range []capability.Code{capability.CodeResourceDenied, capability.CodeActionDenied} {
			if strings.Contains(string(body), string(code)) {
				return fmt.Sprintln(resp.StatusCode, code)
			}
		}
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}
