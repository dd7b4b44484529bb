package main

import (
	"github.com/spf13/cobra"
)

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
