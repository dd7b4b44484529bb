// Command manifests decodes Kubernetes manifests strictly, as an API server
// would, and Grafana dashboards by Grafana's own schema: a field that there is not,
// or a value of another type, is an error. It is a module of its own, so that
// nothing of it is in writ's.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: manifests FILE…")
		os.Exit(2)
	}
	for _, path := range os.Args[1:] {
		kind, check := "objects", checkManifest
		if filepath.Ext(path) == ".json" {
			kind, check = "panels", checkDashboard
		}
		n, err := check(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Printf("%s: %d %s\n", path, n, kind)
	}
}

// checkDashboard decodes a dashboard.
func checkDashboard(path string) (panels int, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	plugins.RegisterDefaultPlugins() // the kinds of panel and of query
	var d dashboard.Dashboard
	// Where nothing is wrong it returns an error all the same, a list of none.
	if err := d.UnmarshalJSONStrict(b); err != nil && err.Error() != "" {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if err := d.Validate(); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return len(d.Panels), nil
}

// checkManifest decodes every document of a file.
func checkManifest(path string) (n int, err error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{apps.AddToScheme, core.AddToScheme, networking.AddToScheme, policy.AddToScheme} {
		if err := add(scheme); err != nil {
			return 0, err
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for documents := yaml.NewYAMLReader(bufio.NewReader(f)); ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if _, kind, err := strict.Decode(document, nil, nil); err != nil {
			return n, fmt.Errorf("%s: document %d (%v): %w", path, n+1, kind, err)
		}
	}
}
