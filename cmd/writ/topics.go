package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// topics are help without a command: writ help NAME.
var topics = []struct{ name, short, text string }{
	{"exit-codes", "what a command's exit code means", `
  0  done; for verify: allow
  1  an error: nothing was decided, or nothing was done; usage errors too
  2  verify only: deny

With --output json an error is one JSON object on standard error:

  {"code": "unreachable", "error": "…", "hint": "…"}

Codes are stable. Those of a refusal are the ones that services answer with.

  writ verify --action read < t || test $? -eq 2 && echo denied`},
	{"environment", "the variables that commands read", `
  WRIT_ADDR            addresses of the authority, HOST:PORT, apart by commas
  WRIT_CA_FINGERPRINT  SHA-256 of the authority's CA certificate, in hexadecimal
  WRIT_TOKEN_FILE      file with the credential that commands act with
  WRIT_TOKEN           that credential itself, where a file is impossible
  WRIT_KEY_FILE        file with the key that this credential names, where it names one
  WRIT_TPM             the TPM: a device, unix:PATH or tcp:HOST:PORT; /dev/tpmrm0 unless set
  WRIT_TPM_DIR         the directory of its holder key and of the wallet
  WRIT_DEV_DIR         the directory of a writ dev, for writ dev --stop
  WRIT_…               every key of the configuration of writ serve, in capitals:
                       data_dir is WRIT_DATA_DIR

Flags win over the environment, and the environment over a configuration file.
The token that a command works on comes from standard input or --token-file,
never from the environment and never from the command line.

  writ dev --detach > env && . ./env`},
	{"config", "the configuration of a node", `
A TOML file; a key that is not known is an error. Beside each key, its default.

  node = "n1"                          this node's name, for good
  data_dir = "/var/lib/writ"           everything but the key file; mode 0700
  node_key = "/etc/writ/node.key"      file with the node's identity, outside data_dir
  passphrase_file = ""                 protects node_key
  listen = "127.0.0.1:7480"            the API
  peer_listen = ""                     for the other nodes of a cluster; empty: there are none
  peer_address = ""                    where they reach this node, if elsewhere
  api_address = ""                     where clients do; shown by writ cluster status
  peer_profile = ""                    lan (the default) or wan: how far apart the nodes are
  metrics_listen = ""                  moves /metrics there, in plain HTTP
  hosts = []                           names and addresses in the certificate, besides
                                       node, localhost and the loopback addresses
  staleness_bound = "5s"               how old a service's revocations may be; set when
                                       the authority is formed
  rotate_every = "24h"                 how long a master key mints
  recovery = ""                        writ-recipient-…: who can open the cluster key
                                       offline; set when the authority is formed
  log_level = "info"                   debug, info, warn, error
  log_format = "text"                  text, json
  trace_endpoint = ""                  where spans go: http://127.0.0.1:4318, OTLP over HTTP
  trace_ratio = 0.01                   which part of the calls without a trace begins one

  [[discharger]]                       who discharges third-party caveats
  name = "approvals"
  location = "https://approvals.corp.example"
  public_key = "…"                     32 bytes in base64

The environment wins over the file (WRIT_DATA_DIR), and flags over both (--data-dir).

  writ serve --check --config writ.toml`},
	{"caveats", "the conditions that narrow a token", `
Conditions are a conjunction: each one only narrows. One that a service does not
know denies.

  time-before 2030-01-02T15:04:05Z  before this moment (RFC 3339)
  time-after 2030-01-02T15:04:05Z   after this moment
  action read list                  the action is one of these
  resource files/q3 files/reports/** files/*/meta
                                    the resource matches one: exact, everything below,
                                    one segment whatever it is
  argument amount <= 99.50          an argument of the call: =, <, <=, >, >= a number
  argument region in eu us          is one value, in several, prefix a text
  context env is prod               a fact that the service supplies, likewise
  service files mail                the service is one of these
  client-ip 10.0.0.0/8 2001:db8::1  the caller's address
  max-calls 3                       at most so many calls through this point of the tree
  max-rate 5/1s                     at most so many in a time, at each verifier
  holder jkt:…                      proof of possession of one of these keys (jkt:, x5t:)
  request …                         this one request
  branch helper                     always true; names the branch, so that it can be revoked
  device …                          denies when that device is revoked
  log metadata                      the service must log the call: minimal, metadata, full
  ext:tenant blue                   a service's own condition

Words are apart by one space; one with a space in it stands in double quotes. writ
inspect says in plain English what each condition of a token demands.

  writ attenuate -c 'action read' -c 'resource files/reports/**' < t > t2`},
}

func helpTopics() []*cobra.Command {
	var out []*cobra.Command
	for _, t := range topics {
		out = append(out, &cobra.Command{Use: t.name, Short: t.short, Long: sentence(t.short) + "\n" + strings.TrimRight(t.text, "\n")})
	}
	return out
}

// newHelp is cobra's help command, with messages and exit codes like ours.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "help about any command or topic",
		Long:    "Help about any command or topic.",
		Example: "  writ help caveats",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 || found == nil {
				return usage(root, "no help for %q", strings.Join(args, " "))
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}
