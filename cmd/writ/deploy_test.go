package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const deployDir = "../../deploy/"

func readDeploy(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(deployDir + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	pageMetric = regexp.MustCompile("(?m)^\\| `(writ_[a-z_]+)` \\| (\\w+) \\|")
	usedMetric = regexp.MustCompile(`\b(?:writ|go|process)_[a-z_]+`)
)

// metricsOfPage are the metrics that docs/metrics.md tells; a test of the server
// holds the page to what a node says.
func metricsOfPage(t *testing.T) map[string]bool {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, m := range pageMetric.FindAllSubmatch(page, -1) {
		known[string(m[1])] = true
		if string(m[2]) == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				known[string(m[1])+suffix] = true
			}
		}
	}
	if len(known) < 20 {
		t.Fatalf("the page tells %d metrics: it was read wrongly", len(known))
	}
	for _, standard := range []string{"process_resident_memory_bytes", "go_memstats_heap_inuse_bytes"} {
		known[standard] = true
	}
	return known
}

// metricsExist holds an expression to the page.
func metricsExist(t *testing.T, known map[string]bool, where, expression string) (used []string) {
	t.Helper()
	used = usedMetric.FindAllString(expression, -1)
	for _, m := range used {
		if !known[m] {
			t.Errorf("%s: there is no metric %s", where, m)
		}
	}
	return used
}

// The alerts can be loaded, name metrics that exist, and each has its runbook.
func TestAlerts(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(readDeploy(t, "prometheus/alerts.yml")))
	d.KnownFields(true)
	if err := d.Decode(&rules); err != nil {
		t.Fatal(err)
	}
	runbooks, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	known := metricsOfPage(t)
	n := 0
	for _, r := range rules.Groups[0].Rules {
		n++
		if used := metricsExist(t, known, r.Alert, r.Expr); len(used) == 0 && !strings.Contains(r.Expr, "up{") {
			t.Errorf("%s looks at no metric: %s", r.Alert, r.Expr)
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has severity %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" || r.Annotations["runbook"] != "docs/operations.md#"+strings.ToLower(r.Alert) {
			t.Errorf("%s: annotations %v", r.Alert, r.Annotations)
		}
		if !bytes.Contains(runbooks, []byte("\n### "+r.Alert+"\n")) {
			t.Errorf("docs/operations.md has no section %s", r.Alert)
		}
	}
	if n < 10 || len(rules.Groups) != 1 {
		t.Errorf("%d alerts in %d groups", n, len(rules.Groups))
	}
}

// The dashboard can be read, and every panel asks for metrics that exist.
func TestDashboard(t *testing.T) {
	var board struct {
		Title, UID    string
		SchemaVersion int
		Panels        []struct {
			ID      int
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal(readDeploy(t, "grafana/writ.json"), &board); err != nil {
		t.Fatal(err)
	}
	known, used := metricsOfPage(t), map[string]bool{}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: %+v", p.ID, p.Title, p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			for _, m := range metricsExist(t, known, p.Title, target.Expr) {
				used[m] = true
			}
			if strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") || strings.Count(target.Expr, "{") != strings.Count(target.Expr, "}") {
				t.Errorf("panel %q: %s", p.Title, target.Expr)
			}
		}
	}
	// Whatever a node counts can be seen.
	for _, m := range slices.Sorted(maps.Keys(known)) {
		if base := strings.TrimSuffix(strings.TrimSuffix(m, "_sum"), "_count"); strings.HasPrefix(m, "writ_") && !used[m] && !used[base+"_bucket"] {
			t.Errorf("no panel shows %s", m)
		}
	}
	if board.Title == "" || board.UID == "" || board.SchemaVersion < 36 || len(board.Templating.List) != 3 {
		t.Errorf("dashboard %+v", board)
	}
}

// object is a part of a manifest.
type object map[string]any

func (o object) at(path ...string) any {
	var v any = map[string]any(o)
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func objects(v any) (all []object) {
	list, _ := v.([]any)
	for _, e := range list {
		m, _ := e.(map[string]any)
		all = append(all, m)
	}
	return all
}

// The manifests can be read, with no key twice, and fit together: selectors
// find the pods, ports have their names, probes ask what a node answers,
// volumes are there, and every variable is one that writ reads.
func TestManifests(t *testing.T) {
	byKind := map[string][]object{}
	for d := yaml.NewDecoder(bytes.NewReader(readDeploy(t, "kubernetes/writ.yaml"))); ; {
		o := object{}
		if err := d.Decode((*map[string]any)(&o)); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		kind, _ := o["kind"].(string)
		if o["apiVersion"] == nil || kind == "" || o.at("metadata", "name") == nil || kind != "Namespace" && o.at("metadata", "namespace") != "writ" {
			t.Errorf("%s %v: no version, name or namespace", kind, o.at("metadata", "name"))
		}
		byKind[kind] = append(byKind[kind], o)
	}
	one := func(kind string) object {
		t.Helper()
		if len(byKind[kind]) != 1 {
			t.Fatalf("%d objects of kind %s", len(byKind[kind]), kind)
		}
		return byKind[kind][0]
	}
	set := one("StatefulSet")
	if set.at("spec", "replicas") != 3 {
		t.Errorf("%v nodes", set.at("spec", "replicas"))
	}
	labels, _ := set.at("spec", "template", "metadata", "labels").(map[string]any)
	selects := func(what string, selector any) {
		t.Helper()
		m, _ := selector.(map[string]any)
		if len(m) == 0 {
			t.Errorf("%s selects nothing", what)
		}
		for k, v := range m {
			if labels[k] != v {
				t.Errorf("%s selects %s=%v, and the pods have %v", what, k, v, labels)
			}
		}
	}
	selects("the StatefulSet", set.at("spec", "selector", "matchLabels"))
	selects("the PodDisruptionBudget", one("PodDisruptionBudget").at("spec", "selector", "matchLabels"))
	selects("the NetworkPolicy", one("NetworkPolicy").at("spec", "podSelector", "matchLabels"))
	apart := objects(set.at("spec", "template", "spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"))
	if len(apart) != 1 {
		t.Fatal("nodes may share a machine")
	}
	selects("anti-affinity", apart[0].at("labelSelector", "matchLabels"))

	container := objects(set.at("spec", "template", "spec", "containers"))[0]
	ports := map[string]any{}
	for _, p := range objects(container["ports"]) {
		ports[p["name"].(string)] = p["containerPort"]
	}
	headless := false
	for _, s := range byKind["Service"] {
		name := s.at("metadata", "name").(string)
		selects("Service "+name, s.at("spec", "selector"))
		headless = headless || name == set.at("spec", "serviceName") && s.at("spec", "clusterIP") == "None"
		for _, p := range objects(s.at("spec", "ports")) {
			if ports[p["targetPort"].(string)] != p["port"] {
				t.Errorf("Service %s: port %v", name, p)
			}
		}
	}
	if !headless {
		t.Errorf("the StatefulSet's serviceName %v is no headless Service", set.at("spec", "serviceName"))
	}
	for probe, path := range map[string]string{"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"} {
		get, _ := container.at(probe, "httpGet").(map[string]any)
		if get["path"] != path || get["scheme"] != "HTTPS" || get["port"] != "api" {
			t.Errorf("%s: %v", probe, get)
		}
	}
	volumes := map[any]bool{}
	for _, v := range objects(set.at("spec", "template", "spec", "volumes")) {
		volumes[v["name"]] = true
	}
	for _, v := range objects(set.at("spec", "volumeClaimTemplates")) {
		volumes[v.at("metadata", "name")] = true
	}
	for _, m := range objects(container["volumeMounts"]) {
		if !volumes[m["name"]] {
			t.Errorf("there is no volume %v", m["name"])
		}
	}
	if container.at("securityContext", "readOnlyRootFilesystem") != true || set.at("spec", "template", "spec", "securityContext", "runAsNonRoot") != true {
		t.Error("the pod has more rights than it needs")
	}

	// What the pod's environment configures is in order.
	c := defaultConfig()
	env := map[string]string{}
	for _, e := range objects(container["env"]) {
		value, _ := e["value"].(string)
		if value == "" {
			value = "writ-0"
		}
		env[e["name"].(string)] = strings.ReplaceAll(value, "$(WRIT_NODE)", "writ-0")
	}
	for _, s := range settings {
		if value, ok := env[envOf(s.key)]; ok {
			delete(env, envOf(s.key))
			if err := s.set(&c, value); err != nil {
				t.Errorf("%s: %v", s.key, err)
			}
		}
	}
	if err := c.check(); err != nil {
		t.Errorf("the pod's configuration: %v", err)
	}
	delete(env, "WRIT_ADDR")
	delete(env, "WRIT_TOKEN_FILE")
	if len(env) != 0 {
		t.Errorf("writ reads none of %v", env)
	}
}

var (
	shellWrit  = regexp.MustCompile(`^exec writ ((?:[a-z][a-z-]* ?)+)`)
	shellFlags = regexp.MustCompile(`--[a-z-]+`)
	envName    = regexp.MustCompile(`WRIT_[A-Z_]+`)
)

// What the unit, the image and the start script say to writ, it understands.
func TestDeployedCommands(t *testing.T) {
	flagsOf := map[string]map[string]bool{}
	for _, c := range everyCommand(t) {
		known := map[string]bool{}
		for _, f := range shellFlags.FindAllString(c.UsageString(), -1) {
			known[f] = true
		}
		flagsOf[strings.TrimPrefix(c.CommandPath(), "writ ")] = known
	}
	reads := map[string]bool{"WRIT_ADDR": true, "WRIT_TOKEN_FILE": true, "WRIT_CA_FINGERPRINT": true}
	for _, s := range settings {
		reads[envOf(s.key)] = true
	}
	checked := 0
	for _, name := range []string{"systemd/writ.service", "Dockerfile", "kubernetes/writ.yaml"} {
		text := strings.ReplaceAll(string(readDeploy(t, name)), "\\\n", " ")
		for _, v := range envName.FindAllString(text, -1) {
			if !reads[v] {
				t.Errorf("%s: writ reads no %s", name, v)
			}
		}
		text = strings.NewReplacer("/usr/local/bin/writ\", \"", "exec writ ", "\", \"", " ", "=/usr/local/bin/writ ", " exec writ ").Replace(text)
		for _, line := range strings.Split(text, "\n") {
			at := strings.Index(line, "exec writ ")
			if at < 0 {
				continue
			}
			line = line[at:]
			m := shellWrit.FindStringSubmatch(line)
			if m == nil {
				t.Errorf("%s: %s", name, line)
				continue
			}
			command := strings.TrimSpace(m[1])
			known, ok := flagsOf[command]
			if !ok {
				t.Errorf("%s: there is no command writ %s", name, command)
			}
			for _, f := range shellFlags.FindAllString(line, -1) {
				if !known[f] {
					t.Errorf("%s: writ %s has no flag %s", name, command, f)
				}
			}
			checked++
		}
	}
	if checked < 6 {
		t.Errorf("only %d commands were found", checked)
	}
}
