package main

import (
	"github.com/spf13/cobra"
)

// completeWords has a flag's value completed from these.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	// The only error is a flag that is not there, which a test would find.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completeCaveats has --caveat completed with the words of the vocabulary.
func completeCaveats(cmd *cobra.Command) {
	completeWords(cmd, "caveat", "time-before", "time-after", "action", "resource", "argument", "service", "client-ip",
		"max-calls", "max-rate", "context", "holder", "branch", "device", "log")
}

func newCompletion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "print a completion script for bash, zsh, fish or powershell",
		Long:      "Print a completion script for bash, zsh, fish or powershell.",
		Example:   "  # then, in bash: . ./writ.bash\n  writ completion bash > writ.bash",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      exactArguments("SHELL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, w := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			case "fish":
				return root.GenFishCompletion(w, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(w)
			}
			return usage(cmd, "unknown shell %q: it is bash, zsh, fish or powershell", args[0])
		},
	}
}
