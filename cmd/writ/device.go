package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/discharger"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

func newDevice(a *app) *cobra.Command {
	return group("device", "attest machines by their TPMs, and manage what is trusted",
		newDeviceID(a), newDeviceEnroll(a), newDeviceList(a), newDeviceShow(a), newDeviceRevoke(a), newDeviceForget(a),
		newDevicePCRs(a), newDeviceRoots(a), newDevicePolicy(a))
}

// deviceID is what writ device id prints.
type deviceID struct {
	Device string `json:"device"`
	Holder string `json:"holder"`
	EK     string `json:"ek"`
}

func newDeviceID(a *app) *cobra.Command {
	var tpm tpmFlags
	cmd := &cobra.Command{
		Use:   "id",
		Short: "show this machine's device id, and the key that its TPM holds",
		Long: `Show this machine's device id (the hash of its endorsement key) and the holder key,
which is made in the TPM when it is first asked for and never leaves it. A token for
this machine names one of the two.`,
		Example: `  writ device id`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := tpm.open(a)
			if err != nil {
				return err
			}
			id := deviceID{Device: h.Device().String(), Holder: h.HolderKey().String(), EK: string(h.Kind())}
			return a.emit(cmd, id, func(p *printer) {
				p.field("device", id.Device)
				p.field("holder", id.Holder)
				p.field("ek", id.EK)
			})
		},
	}
	tpm.add(cmd)
	return cmd
}

func newDeviceEnroll(a *app) *cobra.Command {
	var tpm tpmFlags
	conn := connection{tpm: &tpm}
	var policy string
	cmd := &cobra.Command{
		Use:   "enroll",
		Short: "have the authority attest this machine once, without a token",
		Long: `Have the authority attest this machine once, without a token: its TPM proves its keys
and quotes its PCRs, and the device is recorded. The credential has to allow enroll on
devices. A token that demands attestation does not need it: writ discharge enrolls too.`,
		Example: `  writ device enroll --policy dev`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if policy == "" {
				return usage(cmd, "--policy is required")
			}
			h, err := tpm.open(a)
			if err != nil {
				return err
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.AttestResponse, error) {
				w, err := wallet.Open(wallet.Config{
					Attester: h, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: c}, Posture: tpm.posture(), Now: a.now,
				})
				if err != nil {
					return nil, err
				}
				return w.Enroll(ctx, wallet.OwnLocation, policy)
			}, func(p *printer, r *api.AttestResponse) {
				p.field("device", r.Device)
				p.field("holder", r.Holder)
			})
		},
	}
	conn.add(cmd)
	tpm.add(cmd)
	tpm.addPosture(cmd)
	cmd.Flags().StringVar(&policy, "policy", "", "`name` of the policy to satisfy")
	return cmd
}

// deviceBook is who knows devices: an authority, or the store of a discharger on
// its own.
type deviceBook interface {
	Devices(ctx context.Context, cursor string, limit int) (*api.DeviceList, error)
	Device(context.Context, capability.DeviceID) (*api.DeviceInfo, error)
	Revoke(context.Context, api.RevokeRequest) (*api.RevokeResponse, error)
	ForgetDevice(context.Context, capability.DeviceID, api.ForgetDeviceRequest) (*api.ForgetDeviceResponse, error)
}

// deviceFlags say which book.
type deviceFlags struct {
	conn  connection
	store string
}

func (f *deviceFlags) add(cmd *cobra.Command) {
	f.conn.add(cmd)
	cmd.Flags().StringVar(&f.store, "store", "", "`directory` of a discharger on its own (writ discharger --dir) to look into, and no authority")
}

// askBook is ask, of a book.
func askBook[T any](a *app, cmd *cobra.Command, f *deviceFlags,
	call func(ctx context.Context, b deviceBook) (T, error), text func(p *printer, answer T)) error {
	if f.store == "" {
		return ask(a, cmd, &f.conn, func(ctx context.Context, c *client.Client) (T, error) { return call(ctx, c) }, text)
	}
	if _, err := os.Stat(f.store); err != nil {
		return err
	}
	file, err := discharger.OpenFile(f.store, a.now)
	if err != nil {
		return err
	}
	answer, err := call(cmd.Context(), fileBook{file})
	if err != nil {
		return err
	}
	return a.emit(cmd, answer, func(p *printer) { text(p, answer) })
}

// deviceCommand is a command about one device.
func deviceCommand[T any](a *app, cmd *cobra.Command,
	call func(ctx context.Context, b deviceBook, id capability.DeviceID) (T, error), text func(p *printer, answer T)) *cobra.Command {
	var f deviceFlags
	cmd.Args = exactArguments("DEVICE")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := capability.ParseDeviceID(args[0])
		if err != nil {
			return usage(cmd, "%q is no device id", args[0])
		}
		return askBook(a, cmd, &f, func(ctx context.Context, b deviceBook) (T, error) { return call(ctx, b, id) }, text)
	}
	f.add(cmd)
	return cmd
}

func newDeviceList(a *app) *cobra.Command {
	var f deviceFlags
	var cursor string
	var limit int
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list devices",
		Long:    "List the devices that have been attested. --after takes the next page.",
		Example: "  writ device list",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askBook(a, cmd, &f, func(ctx context.Context, b deviceBook) (*api.DeviceList, error) {
				page, err := b.Devices(ctx, cursor, limit)
				if err == nil {
					a.sayMore(cmd, page.Next)
				}
				return page, err
			}, func(p *printer, page *api.DeviceList) {
				var rows [][]string
				for _, d := range page.Devices {
					state := "good"
					if !d.Revoked.IsZero() {
						state = "revoked"
					}
					rows = append(rows, []string{d.Device, state, d.Policy + "@" + strconv.FormatUint(d.PolicyVersion, 10), d.PCRSet, a.when(d.Attested)})
				}
				p.table([]string{"DEVICE", "STATE", "POLICY", "PCRS", "ATTESTED"}, rows)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&cursor, "after", "", "the next page, from the `cursor` of the one before")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this `many` (default 100)")
	return cmd
}

const deviceExample = `  writ device enroll --policy dev --output json > d
  D=$(sed -n 's/.*"device": *"\([0-9a-f]*\)".*/\1/p' d)
`

func newDeviceShow(a *app) *cobra.Command {
	return deviceCommand(a, &cobra.Command{
		Use:     "show DEVICE",
		Short:   "show what is known of a device",
		Long:    "Show what is known of a device, from its last good evidence. The posture is the holder's word.",
		Example: deviceExample + `  writ device show "$D"`,
	}, func(ctx context.Context, b deviceBook, id capability.DeviceID) (*api.DeviceInfo, error) {
		return b.Device(ctx, id)
	}, a.printDevice)
}

func (a *app) printDevice(p *printer, d *api.DeviceInfo) {
	p.field("device", d.Device)
	p.field("holder", d.Holder)
	p.field("endorsement key", d.EK)
	for _, ak := range d.AKs {
		p.field("attestation key", ak)
	}
	p.field("policy", d.Policy+"@"+strconv.FormatUint(d.PolicyVersion, 10))
	p.field("pcrs", d.PCRSet)
	p.field("firmware", d.Firmware)
	p.field("counters", fmt.Sprintf("%d resets, %d restarts, clock %s", d.Reset, d.Restart, (time.Duration(d.Clock)*time.Millisecond).String()))
	p.field("posture", d.Posture)
	p.field("enrolled", strings.TrimSuffix(a.when(d.Enrolled)+" by "+d.EnrolledBy, " by "))
	p.field("attested", fmt.Sprintf("%s, %d times", a.when(d.Attested), d.Count))
	if !d.Revoked.IsZero() {
		p.field("revoked", a.when(d.Revoked)+": "+d.Reason)
	}
}

func newDeviceRevoke(a *app) *cobra.Command {
	var reason string
	cmd := deviceCommand(a, &cobra.Command{
		Use:   "revoke DEVICE",
		Short: "revoke a device, and with it everything that is bound to it",
		Long: `Revoke a device: every verifier refuses what is bound to it within its bound, and it is
attested no more, until writ device forget. With --store, a discharger on its own attests
it no more; to reach what it has discharged already, revoke the device at the authority too.`,
		Example: deviceExample + `  writ device forget "$D" --reason 'sold'
  writ device revoke "$(printf %064d 7)" --reason 'stolen'`,
	}, func(ctx context.Context, b deviceBook, id capability.DeviceID) (*api.RevokeResponse, error) {
		return b.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeDevice, Device: id.String(), Reason: reason})
	}, func(p *printer, r *api.RevokeResponse) { p.line("revoked") })
	cmd.Flags().StringVar(&reason, "reason", "", "`why`, for the audit log; required")
	return cmd
}

func newDeviceForget(a *app) *cobra.Command {
	var reason string
	cmd := deviceCommand(a, &cobra.Command{
		Use:   "forget DEVICE",
		Short: "forget a device, so that it can enroll anew",
		Long: `Forget a device, so that it can enroll anew: after its TPM was cleared on purpose, or when
it was revoked and is good again. A revocation stays in force until nothing that was
bound to the device can still live, and until then it cannot enroll; the store of a
discharger on its own forgets that too.`,
		Example: deviceExample + `  writ device forget "$D" --reason 'sold'`,
	}, func(ctx context.Context, b deviceBook, id capability.DeviceID) (*api.ForgetDeviceResponse, error) {
		return b.ForgetDevice(ctx, id, api.ForgetDeviceRequest{Reason: reason})
	}, func(p *printer, r *api.ForgetDeviceResponse) {
		p.line("forgotten")
		if !r.RevokedUntil.IsZero() {
			p.field("revoked until", a.when(r.RevokedUntil))
		}
	})
	cmd.Flags().StringVar(&reason, "reason", "", "`why`, for the audit log; required")
	return cmd
}

func newDevicePCRs(a *app) *cobra.Command {
	var tpm tpmFlags
	var pcrs []int
	var name, policy string
	var roots []string
	cmd := &cobra.Command{
		Use:   "pcrs",
		Short: "capture the PCRs of this machine as a golden set",
		Long: `Capture the PCRs of this machine as a golden set for a policy: run it on a machine that
is as it should be. With --policy and --roots it prints a whole policy, to be edited and
stored. PCRs 0 to 7 tell firmware, boot loader and secure boot, 11 a unified kernel.`,
		Example: `  writ device pcrs --pcr 0,7 --policy prod --roots dev > policy.json
  writ device policy set policy.json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := tpm.open(a)
			if err != nil {
				return err
			}
			set, err := h.CapturePCRs(name, pcrs)
			if err != nil {
				return err
			}
			if policy == "" {
				return writeJSON(cmd.OutOrStdout(), set)
			}
			p := attest.Policy{
				Format: 1, Name: policy, EKRoots: roots, EKKinds: []attest.Kind{h.Kind()}, PCRs: pcrs, PCRSets: []attest.PCRSet{set},
				Lifetime: attest.Duration(5 * time.Minute),
			}
			if err := p.Check(); err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), p)
		},
	}
	tpm.add(cmd)
	f := cmd.Flags()
	f.IntSliceVar(&pcrs, "pcr", []int{0, 1, 2, 3, 4, 5, 6, 7}, "`indices`, ascending, apart by commas")
	f.StringVar(&name, "name", "golden", "`name` of the set")
	f.StringVar(&policy, "policy", "", "print a policy of this `name` around it")
	f.StringArrayVar(&roots, "roots", nil, "`bundle` of roots that the policy trusts; repeat it for more")
	return cmd
}

func newDeviceRoots(a *app) *cobra.Command {
	return group("roots", "manage the makers of TPMs that are trusted",
		newRootsSet(a), newRootsList(a), newRootsShow(a), newRootsRemove(a))
}

func newRootsSet(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "set NAME FILE",
		Short: "store a bundle of roots",
		Long: `Store a bundle of roots, certificates in PEM, under a name that policies refer to. It
replaces the bundle of that name.`,
		Example: `  writ device roots show dev > roots.pem
  writ device roots set factory roots.pem`,
		Args: exactArguments("NAME", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			pem, err := readDocument(cmd, args[1])
			if err != nil {
				return err
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.RootsInfo, error) {
				return c.SetRoots(ctx, args[0], api.RootsRequest{PEM: pem})
			}, func(p *printer, r *api.RootsInfo) { a.printRoots(p, []api.RootsInfo{*r}) })
		},
	}
	conn.add(cmd)
	return cmd
}

func (a *app) printRoots(p *printer, bundles []api.RootsInfo) {
	var rows [][]string
	for _, b := range bundles {
		for _, c := range b.Certificates {
			rows = append(rows, []string{b.Name, c.Subject, c.Fingerprint[:16], a.when(c.NotAfter)})
		}
	}
	p.table([]string{"BUNDLE", "SUBJECT", "SHA-256", "NOT AFTER"}, rows)
}

func newRootsList(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list the bundles of roots",
		Long:    "List the bundles of roots, and what is in them.",
		Example: "  writ device roots list",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.RootsList, error) {
				return c.RootsList(ctx)
			}, func(p *printer, l *api.RootsList) { a.printRoots(p, l.Bundles) })
		},
	}
	conn.add(cmd)
	return cmd
}

func newRootsShow(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "print a bundle of roots",
		Long:    "Print a bundle of roots, as PEM.",
		Example: "  writ device roots show dev",
		Args:    exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.RootsInfo, error) {
				return c.Roots(ctx, args[0])
			}, printPEM)
		},
	}
	conn.add(cmd)
	return cmd
}

func printPEM(p *printer, r *api.RootsInfo) {
	for line := range strings.Lines(r.PEM) {
		p.line("%s", strings.TrimSuffix(line, "\n"))
	}
}

func newRootsRemove(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a bundle of roots",
		Long:  "Remove a bundle of roots: no TPM that it certifies is trusted any more.",
		Example: `  writ device roots show dev > roots.pem
  writ device roots set old roots.pem
  writ device roots remove old`,
		Args: exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removed(cmd, &conn, args[0], (*client.Client).RemoveRoots)
		},
	}
	conn.add(cmd)
	return cmd
}

// removed removes what has a name.
func (a *app) removed(cmd *cobra.Command, conn *connection, name string, remove func(*client.Client, context.Context, string) error) error {
	return ask(a, cmd, conn, func(ctx context.Context, c *client.Client) (map[string]string, error) {
		return map[string]string{"removed": name}, remove(c, ctx, name)
	}, func(p *printer, _ map[string]string) { p.line("removed %s", name) })
}

func newDevicePolicy(a *app) *cobra.Command {
	return group("policy", "manage what a machine has to prove",
		newPolicySet(a), newPolicyList(a), newPolicyShow(a), newPolicyRemove(a))
}

func newPolicySet(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "set FILE",
		Short: "store the next version of a policy",
		Long: `Store the next version of a policy, JSON that names itself; writ device pcrs prints one.
What is begun under the version before cannot be finished, and begins again.`,
		Example: `  writ device pcrs --policy prod --roots dev > policy.json
  writ device policy set policy.json`,
		Args: exactArguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			document, err := readDocument(cmd, args[0])
			if err != nil {
				return err
			}
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.PolicyInfo, error) {
				return c.SetPolicy(ctx, api.PolicyRequest{Document: document})
			}, func(p *printer, r *api.PolicyInfo) { p.line("%s@%s", r.Name, strconv.FormatUint(r.Version, 10)) })
		},
	}
	conn.add(cmd)
	return cmd
}

func newPolicyList(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list policies",
		Long:    "List the newest version of each policy.",
		Example: "  writ device policy list",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.PolicyList, error) {
				return c.Policies(ctx)
			}, func(p *printer, l *api.PolicyList) {
				var rows [][]string
				for _, r := range l.Policies {
					rows = append(rows, []string{r.Name, strconv.FormatUint(r.Version, 10), r.By, a.when(r.At)})
				}
				p.table([]string{"POLICY", "VERSION", "BY", "AT"}, rows)
			})
		},
	}
	conn.add(cmd)
	return cmd
}

func newPolicyShow(a *app) *cobra.Command {
	var conn connection
	var number uint64
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "print a policy",
		Long:    "Print a policy's document: the newest version, or the one that is asked for.",
		Example: "  writ device policy show dev > policy.json",
		Args:    exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(a, cmd, &conn, func(ctx context.Context, c *client.Client) (*api.PolicyInfo, error) {
				return c.Policy(ctx, args[0], number)
			}, func(p *printer, r *api.PolicyInfo) {
				var document json.RawMessage = []byte(r.Document)
				p.err = writeJSON(p.w, document)
			})
		},
	}
	conn.add(cmd)
	cmd.Flags().Uint64Var(&number, "version", 0, "this `version` (default the newest)")
	return cmd
}

func newPolicyRemove(a *app) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a policy",
		Long:  "Remove a policy: nothing is attested by it any more. Discharges at hand live out their minutes.",
		Example: `  writ device pcrs --policy old --roots dev > policy.json
  writ device policy set policy.json
  writ device policy remove old`,
		Args: exactArguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removed(cmd, &conn, args[0], (*client.Client).RemovePolicy)
		},
	}
	conn.add(cmd)
	return cmd
}
