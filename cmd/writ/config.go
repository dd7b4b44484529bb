package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/capability"
)

// config is the configuration of a node: a TOML file under the environment
// under flags. The zero value of a key is its default.
type config struct {
	Node           string   `toml:"node"`            // this node's name, for good
	DataDir        string   `toml:"data_dir"`        // everything but the key file
	NodeKey        string   `toml:"node_key"`        // the node's identity, outside data_dir
	PassphraseFile string   `toml:"passphrase_file"` // protects node_key
	NodeKeyTPM     string   `toml:"node_key_tpm"`    // protects it instead
	Listen         string   `toml:"listen"`          // the API
	PeerListen     string   `toml:"peer_listen"`     // for the other nodes; empty: there are none
	PeerAddress    string   `toml:"peer_address"`    // where they reach it, if elsewhere
	APIAddress     string   `toml:"api_address"`     // where clients do; shown in the cluster's status
	PeerProfile    string   `toml:"peer_profile"`    // lan or wan: Raft's timeouts
	PeerHeartbeat  duration `toml:"peer_heartbeat"`  // one by one, over the profile's
	PeerElection   duration `toml:"peer_election"`
	PeerLease      duration `toml:"peer_lease"`
	MetricsListen  string   `toml:"metrics_listen"`  // moves /metrics there, in plain HTTP
	MaxConnections int      `toml:"max_connections"` // 0: what server.Limits says; so the next two
	MaxFeeds       int      `toml:"max_feeds"`
	MaxCallerFeeds int      `toml:"max_feeds_per_caller"`
	Hosts          []string `toml:"hosts"`           // names and addresses in the certificate
	Bound          duration `toml:"staleness_bound"` // only when the authority is formed
	RotateEvery    duration `toml:"rotate_every"`    // of the master key
	Recovery       string   `toml:"recovery"`        // offline recipient; only when the authority is formed
	LogLevel       string   `toml:"log_level"`       // debug, info, warn, error
	LogFormat      string   `toml:"log_format"`      // text or json
	TraceEndpoint  string   `toml:"trace_endpoint"`  // where spans go, OTLP over HTTP; empty: none are made
	TraceRatio     float64  `toml:"trace_ratio"`     // of calls that come without a trace

	Dischargers []configDischarger `toml:"discharger"`
}

// configDischarger is a [[discharger]] of the file.
type configDischarger struct {
	Name      string `toml:"name"`
	Location  string `toml:"location"`
	PublicKey string `toml:"public_key"` // standard base64, 32 bytes
}

// duration is a time.Duration as people write it: "5s", "24h".
type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// Defaults of a node.
const (
	defaultListen  = "127.0.0.1:7480"
	defaultDataDir = "/var/lib/writ"
	defaultNodeKey = "/etc/writ/node.key"
	maxConfigFile  = 1 << 20
)

func defaultConfig() config {
	return config{Node: "n1", DataDir: defaultDataDir, NodeKey: defaultNodeKey, Listen: defaultListen, LogLevel: "info", LogFormat: "text", TraceRatio: 0.01}
}

// setting is one key that the environment and flags can set.
type setting struct {
	key, use string
	set      func(c *config, text string) error
}

func text(field func(*config) *string) func(*config, string) error {
	return func(c *config, s string) error { *field(c) = s; return nil }
}

func period(field func(*config) *duration) func(*config, string) error {
	return func(c *config, s string) error { return field(c).UnmarshalText([]byte(s)) }
}

func count(field func(*config) *int) func(*config, string) error {
	return func(c *config, s string) (err error) {
		*field(c), err = strconv.Atoi(s)
		return err
	}
}

// settings are in the order of the help text.
var settings = []setting{
	{"node", "this node's `name`, for good", text(func(c *config) *string { return &c.Node })},
	{"data_dir", "`directory` of everything but the key file", text(func(c *config) *string { return &c.DataDir })},
	{"node_key", "`file` with the node's identity, outside the data directory", text(func(c *config) *string { return &c.NodeKey })},
	{"passphrase_file", "`file` with the passphrase of the key file", text(func(c *config) *string { return &c.PassphraseFile })},
	{"node_key_tpm", "`TPM` that the key file is sealed to: a device, unix:PATH or tcp:HOST:PORT", text(func(c *config) *string { return &c.NodeKeyTPM })},
	{"listen", "`HOST:PORT` of the API", text(func(c *config) *string { return &c.Listen })},
	{"peer_listen", "`HOST:PORT` for the other nodes of a cluster", text(func(c *config) *string { return &c.PeerListen })},
	{"peer_address", "`HOST:PORT` where the other nodes reach this one, if it is another", text(func(c *config) *string { return &c.PeerAddress })},
	{"api_address", "`HOST:PORT` where clients reach this node, if it is another", text(func(c *config) *string { return &c.APIAddress })},
	{"peer_profile", "lan or wan: how far apart the nodes are", text(func(c *config) *string { return &c.PeerProfile })},
	{"peer_heartbeat", "how long a follower waits for its leader, instead of what the profile says", period(func(c *config) *duration { return &c.PeerHeartbeat })},
	{"peer_election", "how long a candidate waits for votes; at least peer_heartbeat, which it is by default", period(func(c *config) *duration { return &c.PeerElection })},
	{"peer_lease", "how long a leader leads without a quorum; at most half of peer_heartbeat, which it is by default", period(func(c *config) *duration { return &c.PeerLease })},
	{"metrics_listen", "`HOST:PORT` to move /metrics to, in plain HTTP", text(func(c *config) *string { return &c.MetricsListen })},
	{"max_connections", "how many connections to the API are open at a time", count(func(c *config) *int { return &c.MaxConnections })},
	{"max_feeds", "how many feeds are open at a time", count(func(c *config) *int { return &c.MaxFeeds })},
	{"max_feeds_per_caller", "how many of them are of one credential's holder", count(func(c *config) *int { return &c.MaxCallerFeeds })},
	{"hosts", "names and addresses in the certificate, apart by commas", func(c *config, s string) error {
		c.Hosts = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
		return nil
	}},
	{"staleness_bound", "how old a service's revocations may be, set when the authority is formed", period(func(c *config) *duration { return &c.Bound })},
	{"rotate_every", "how long a master key mints", period(func(c *config) *duration { return &c.RotateEvery })},
	{"recovery", "offline `recipient` of the cluster key, set when the authority is formed", text(func(c *config) *string { return &c.Recovery })},
	{"log_level", "debug, info, warn or error", text(func(c *config) *string { return &c.LogLevel })},
	{"log_format", "text or json", text(func(c *config) *string { return &c.LogFormat })},
	{"trace_endpoint", "`URL` that takes traces, OTLP over HTTP", text(func(c *config) *string { return &c.TraceEndpoint })},
	{"trace_ratio", "which part of the calls that come without a trace begins one, 0 to 1", func(c *config, s string) (err error) {
		c.TraceRatio, err = strconv.ParseFloat(s, 64)
		return err
	}},
}

// configFlags read a node's configuration.
type configFlags struct {
	file   string
	values map[string]*string
}

func (f *configFlags) add(cmd *cobra.Command) {
	var keys []string
	for _, s := range settings {
		keys = append(keys, s.key)
	}
	f.addSome(cmd, keys...)
}

// addSome adds the flags of these keys only.
func (f *configFlags) addSome(cmd *cobra.Command, keys ...string) {
	cmd.Flags().StringVar(&f.file, "config", "", "read the configuration from this TOML `file` (WRIT_CONFIG)")
	f.values = map[string]*string{}
	for _, s := range settings {
		if slices.Contains(keys, s.key) {
			f.values[s.key] = cmd.Flags().String(flagOf(s.key), "", s.use+" ("+envOf(s.key)+")")
		}
	}
}

func flagOf(key string) string { return strings.ReplaceAll(key, "_", "-") }
func envOf(key string) string  { return "WRIT_" + strings.ToUpper(key) }

// load reads file, environment and flags, each over the one before, and
// checks the whole.
func (f *configFlags) load(a *app, cmd *cobra.Command) (*config, error) {
	c := defaultConfig()
	file := f.file
	if file == "" {
		file = a.getenv("WRIT_CONFIG")
	}
	if file != "" {
		if err := c.read(file); err != nil {
			return nil, err
		}
	}
	for _, s := range settings {
		from, value := envOf(s.key), a.getenv(envOf(s.key))
		if flag := flagOf(s.key); cmd.Flags().Changed(flag) {
			from, value = "--"+flag, *f.values[s.key]
		} else if value == "" {
			continue
		}
		if err := s.set(&c, value); err != nil {
			return nil, configError("%s: %v", from, err)
		}
	}
	return &c, c.check()
}

func configError(format string, args ...any) *failure {
	return &failure{Code: "config", Message: fmt.Sprintf(format, args...), Hint: "writ help config tells every key"}
}

// read reads a TOML file. A key that is not known is an error: a typing
// mistake must not leave a default in force.
func (c *config) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return err
	}
	if len(b) > maxConfigFile {
		return configError("%s is larger than %d bytes", path, maxConfigFile)
	}
	err = toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(c)
	if err == nil {
		return nil
	}
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(unknown.Errors) > 0 {
		first := unknown.Errors[0]
		line, column := first.Position()
		return configError("%s:%d:%d: unknown key %q", path, line, column, strings.Join(first.Key(), "."))
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := wrong.Position()
		message := strings.TrimPrefix(wrong.Error(), "toml: ")
		if m := wrongType.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("%s cannot be of type %s", strings.Join(wrong.Key(), "."), m[1])
		}
		return configError("%s:%d:%d: %s", path, line, column, message)
	}
	return configError("%s: %v", path, err)
}

// wrongType is how the TOML reader speaks of a value of the wrong type.
var wrongType = regexp.MustCompile(`^cannot decode TOML (\w+) into`)

func (c *config) check() error {
	if !capability.ValidName(c.Node, 64) {
		return configError("node %q is not 1 to 64 visible ASCII characters", c.Node)
	}
	if c.DataDir == "" || c.NodeKey == "" {
		return configError("data_dir and node_key are needed")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return err
	}
	key, err := filepath.Abs(c.NodeKey)
	if err != nil {
		return err
	}
	if inside, err := filepath.Rel(dir, key); err == nil && inside != ".." && !strings.HasPrefix(inside, ".."+string(filepath.Separator)) {
		return configError("node_key %s lies inside data_dir: whoever copies one has both", c.NodeKey)
	}
	if c.PassphraseFile != "" && c.NodeKeyTPM != "" {
		return configError("passphrase_file and node_key_tpm: a key file has one protection")
	}
	if err := checkListen("listen", c.Listen); err != nil {
		return err
	}
	if c.MetricsListen != "" {
		if err := checkListen("metrics_listen", c.MetricsListen); err != nil {
			return err
		}
	}
	if err := c.checkPeers(); err != nil {
		return err
	}
	if err := c.checkLimits(); err != nil {
		return err
	}
	if c.Bound != 0 && time.Duration(c.Bound) < 100*time.Millisecond {
		return configError("staleness_bound %s is under 100ms", time.Duration(c.Bound))
	}
	if _, err := c.level(); err != nil {
		return configError("log_level %q is none of debug, info, warn, error", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return configError("log_format %q is neither text nor json", c.LogFormat)
	}
	if err := c.checkTracing(); err != nil {
		return err
	}
	if c.Recovery != "" {
		if _, err := seal.ParseRecipient(c.Recovery); err != nil {
			return configError("recovery: %v", err)
		}
	}
	_, err = c.dischargers()
	return err
}

func checkListen(key, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return configError("%s %q is no HOST:PORT", key, addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return configError("%s %q: the port is no number to 65535", key, addr)
	}
	return nil
}

func (c *config) level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(c.LogLevel))
	return l, err
}

func (c *config) dischargers() ([]authority.Discharger, error) {
	var out []authority.Discharger
	for i, d := range c.Dischargers {
		key, err := base64.StdEncoding.Strict().DecodeString(d.PublicKey)
		if err != nil || len(key) != len(capability.DischargerPublicKey{}) {
			return nil, configError("discharger %d: public_key is not 32 bytes in base64", i+1)
		}
		if !capability.ValidName(d.Name, 64) {
			return nil, configError("discharger %d: name %q is not 1 to 64 visible ASCII characters", i+1, d.Name)
		}
		out = append(out, authority.Discharger{Name: d.Name, Location: d.Location, PublicKey: capability.DischargerPublicKey(key)})
	}
	return out, nil
}

// logger logs to w as configured.
func (c *config) logger(w io.Writer) *slog.Logger {
	level, _ := c.level() // checked
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// passphrase reads the passphrase that protects the key file, or is nil.
func (c *config) passphrase() func() ([]byte, error) {
	if c.PassphraseFile == "" {
		return nil
	}
	return func() ([]byte, error) {
		info, err := os.Stat(c.PassphraseFile)
		if err != nil {
			return nil, err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return nil, &failure{Code: "permission", Message: fmt.Sprintf("%s has mode %04o", c.PassphraseFile, mode), Hint: "chmod 600 " + c.PassphraseFile}
		}
		b, err := os.ReadFile(c.PassphraseFile)
		if err != nil {
			return nil, err
		}
		b = []byte(strings.TrimRight(string(b), "\r\n"))
		if len(b) == 0 {
			return nil, configError("%s is empty", c.PassphraseFile)
		}
		return b, nil
	}
}

// mostConnections is far beyond what one node serves.
const mostConnections = 1 << 20

func (c *config) checkLimits() error {
	for _, l := range []struct {
		key string
		n   int
	}{
		{"max_connections", c.MaxConnections}, {"max_feeds", c.MaxFeeds}, {"max_feeds_per_caller", c.MaxCallerFeeds},
	} {
		if l.n < 0 || l.n > mostConnections {
			return configError("%s is not 1 to %d", l.key, mostConnections)
		}
	}
	// A feed is a connection, and what is left over is for everything else.
	if c.MaxFeeds > 0 && c.MaxFeeds >= c.MaxConnections {
		return configError("max_feeds %d needs a max_connections that is more", c.MaxFeeds)
	}
	return nil
}

// limits are the server's.
func (c *config) limits() server.Limits {
	return server.Limits{Connections: c.MaxConnections, Streams: c.MaxFeeds, PerCaller: c.MaxCallerFeeds}
}
