package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
)

func newService(a *app) *cobra.Command {
	return group("service", "manage the services that verify tokens",
		newServiceAdd(a), newServiceList(a), newServiceRemove(a), newServiceJoin(a))
}

func newServiceAdd(a *app) *cobra.Command {
	var conn connection
	var r api.ServiceRequest
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a service and print its single-use join secret",
		Long: `Add a service and print its single-use join secret, which writ service join
exchanges for the service's own credential.

A service with keys of an audience can mint for that audience, and for nothing
else. Where services of several owners share an audience, add them with --keyless:
they verify through the authority.`,
		Example: `  writ service add files --audience corp > secret
  writ service join files --out files.token < secret`,
		Args: exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			if len(r.Audiences) == 0 {
				return usage(cmd, "--audience is required")
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.ServiceResponse, error) {
				added, err := c.AddService(ctx, r)
				if err == nil {
					a.say(cmd, "join secret of %s, good once, until %s", added.Name, a.when(added.Expires))
				}
				return added, err
			}, func(p *printer, added *api.ServiceResponse) { p.line("%s", added.JoinSecret) })
		},
	}
	conn.add(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&r.Audiences, "audience", nil, "an `audience` whose tokens it verifies; repeat it for more")
	f.StringArrayVar(&r.Derive, "derive", nil, "an `audience` that it may derive tokens for; repeat it for more")
	f.BoolVar(&r.Keyless, "keyless", false, "it verifies through the authority and gets no keys")
	return cmd
}

func newServiceList(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list services",
		Long:    "List the services that verify tokens.",
		Example: "  writ service list",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.ServiceList, error) {
				return c.Services(ctx)
			}, a.printServices)
		},
	}
	conn.add(cmd)
	return cmd
}

func (a *app) printServices(p *printer, list *api.ServiceList) {
	var rows [][]string
	for _, s := range list.Services {
		verifies := "with keys"
		if s.Keyless {
			verifies = "keyless"
		}
		joined := "not yet joined"
		if s.Joined {
			joined = "joined"
		}
		rows = append(rows, []string{s.Name, joined, verifies, strings.Join(s.Audiences, ","), strings.Join(s.Derive, ","), s.AddedBy, a.when(s.Added)})
	}
	p.table([]string{"NAME", "STATE", "VERIFIES", "AUDIENCES", "DERIVES FOR", "ADDED BY", "ADDED"}, rows)
}

func newServiceRemove(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a service and revoke its credentials",
		Long: `Remove a service and revoke its credentials. It keeps whatever keys it has: if it
is not trusted any more, rekey its audiences (writ keys rekey).`,
		Example: `  writ service add mail --audience corp > secret
  writ service remove mail`,
		Args: exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (map[string]string, error) {
				return map[string]string{"removed": args[0]}, c.RemoveService(ctx, args[0])
			}, func(p *printer, _ map[string]string) { p.line("removed %s", args[0]) })
		},
	}
	conn.add(cmd)
	return cmd
}

func newServiceJoin(a *app) *cobra.Command {
	var conn connection
	var secretFile, out, holder string
	cmd := &cobra.Command{
		Use:   "join NAME",
		Short: "exchange a join secret for the service's credential",
		Long: `Exchange the join secret on standard input for the service's credential, once. The
service renews the credential by itself from then on.

With --holder it is good for nothing without that key, and neither is what renews it:
the service's client names the key's file (WRIT_KEY_FILE).`,
		Example: `  writ service add web --audience corp > secret
  writ service join web --out web.token --holder "$(writ key new --out web.key)" < secret`,
		Args: exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			secret, err := readInput(cmd, secretFile)
			if err != nil {
				return err
			}
			if secret = strings.TrimSpace(secret); secret == "" {
				return &failure{Code: "no_secret", Message: "no join secret given", Hint: "pass what writ service add printed on standard input"}
			}
			c, err := conn.open(a)
			if err != nil {
				return err
			}
			defer c.Close()
			joined, err := c.Join(cmd.Context(), api.JoinRequest{Name: args[0], JoinSecret: secret, Holder: holder})
			if errors.Is(err, api.CodeUnauthorized) {
				f := *explain(err)
				f.Hint = "a secret is good once, for a day, and for the service of this name: writ service add prints one"
				return &f
			}
			if err != nil {
				return err
			}
			if out != "" && out != "-" {
				// The secret is spent: what cannot be stored must not be lost.
				if err := writeSecret(cmd, out, joined.Token); err != nil {
					_ = writeSecret(cmd, "-", joined.Token)
					return fail("the credential went to standard output instead", err)
				}
				joined.Token = ""
			}
			a.say(cmd, "credential of %s, not after %s", args[0], a.when(joined.NotAfter))
			return a.emit(cmd, joined, func(p *printer) {
				if joined.Token != "" {
					p.line("%s", joined.Token)
				}
			})
		},
	}
	conn.add(cmd)
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "read the join secret from this `file` instead of standard input")
	cmd.Flags().StringVar(&holder, "holder", "", "bind the credential to this `key` of the service, jkt:…")
	cmd.Flags().StringVar(&out, "out", "", "write the credential to this new `file`, mode 0600")
	return cmd
}
