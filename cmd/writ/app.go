package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
)

// app is what a process has: its streams, its environment, its clock and disk,
// and the flags that every command shares.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	rand           io.Reader
	diskFree       func(dir string) (uint64, error)
	clockKept      func() (bool, error)

	output string // --output: text or json

	atEnd []func() // what a command has opened that outlives its parts
}

func newApp(stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) *app {
	return &app{
		stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv,
		now: time.Now, rand: rand.Reader, diskFree: diskFree, clockKept: clockKept, output: outputText,
	}
}

// run runs one command line and returns the exit code (see the topic exit-codes).
func (a *app) run(ctx context.Context, args []string) int {
	defer func() {
		for _, end := range a.atEnd {
			end()
		}
	}()
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := refuseTokenArguments(args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	} else {
		// The command did not run, so its flags were not read either.
		a.output = outputOf(args)
	}
	if err == nil {
		return exitOK
	}
	return a.report(err)
}

// refuseTokenArguments refuses a credential on the command line, where the
// shell's history and every process list keep it.
func refuseTokenArguments(args []string) error {
	for _, arg := range args {
		if i := strings.Index(arg, capability.TextPrefix); i >= 0 && len(arg)-i > 40 {
			return &failure{
				Code: "token_argument", Message: "a token on the command line is refused",
				Hint: "it is in the shell's history now: revoke it, and pass tokens on standard input or with --token-file",
			}
		}
	}
	return nil
}

// outputOf finds --output in arguments that will not be parsed.
func outputOf(args []string) string {
	for i, arg := range args {
		if arg == "--output=json" || arg == "-ojson" || arg == "-o=json" ||
			(arg == "--output" || arg == "-o") && i+1 < len(args) && args[i+1] == outputJSON {
			return outputJSON
		}
	}
	return outputText
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "writ",
		Short: "capabilities for autonomous agents and the services that they call",
		Long: `writ runs a capability authority and works with its tokens.

An authority issues tokens; anyone who holds one can narrow it offline; services
verify it in their own process; and revoking it, or a branch of it, reaches every
service within a bound that the service enforces.

Begin with a throw-away authority:

  writ dev --detach > env && . ./env`,
		Example: `  writ dev --detach > env && . ./env
  writ mint --audience corp --subject agent-42 --owner owner@corp.example --purpose Q3 \
    -c 'action read' -c 'resource files/**' > t
  writ verify --action read --resource files/q3 < t
  writ dev --stop`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              noArguments,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error { return checkOutput(a.output) },
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVarP(&a.output, "output", "o", outputText, "`format` of what is printed: text or json")
	completeWords(root, "output", outputText, outputJSON)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%s", lower(err.Error())) })
	root.AddGroup(
		&cobra.Group{ID: "tokens", Title: "Tokens:"},
		&cobra.Group{ID: "authority", Title: "The authority:"},
		&cobra.Group{ID: "operate", Title: "Operating it:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("tokens", newMint(a), newAttenuate(a), newInspect(a), newVerify(a), newRevoke(a), newKey(a), newProof(a), newDischarge(a))
	add("authority", newTokens(a), newService(a), newKeys(a), newDevice(a), newAudit(a))
	add("operate", newDev(a), newServe(a), newDischarger(a), newCluster(a), newDemo(a), newBench(a), newDoctor(a))
	root.AddCommand(newVersion(a), newCompletion(a), newDemoService(a))
	root.AddCommand(helpTopics()...)
	root.SetHelpCommand(newHelp(root))
	root.SetUsageTemplate(usageTemplate)
	return root
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: sentence(short), Args: noArguments}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return usage(cmd, "%s needs one of: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	c.AddCommand(commands...)
	return c
}

// noArguments refuses arguments, naming a near miss where there is one.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usage(cmd, "%s takes no arguments, got %q", cmd.CommandPath(), args[0])
	}
	f := usage(cmd, "unknown command %q for %q", args[0], cmd.CommandPath())
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		f.Hint = fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), near[0])
	}
	return f
}

// exactArguments asks for these arguments by name.
func exactArguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usage(cmd, "%s needs %s", cmd.CommandPath(), strings.Join(names, " "))
		}
		return nil
	}
}

func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// lower makes a message of another package read like ours: lower case, no
// full stop.
func lower(s string) string {
	s = strings.TrimRight(strings.TrimSpace(s), ".")
	if len(s) > 1 && 'A' <= s[0] && s[0] <= 'Z' && 'a' <= s[1] && s[1] <= 'z' {
		s = strings.ToLower(s[:1]) + s[1:]
	}
	return s
}
