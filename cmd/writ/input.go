package main

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/capability"
)

// maxInput bounds what is read where a token is expected, in bytes: a token
// set and its discharges, apart.
const maxInput int64 = 2*int64(capability.MaxTextSize) + 4096

// tokenFlags say where the token that a command works on comes from. It never
// comes as an argument.
type tokenFlags struct{ file string }

func (t *tokenFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.file, "token-file", "", "read the token from this `file` instead of standard input")
}

// read returns the token set: one token, and any discharges after it, apart
// from it by white space.
func (t *tokenFlags) read(cmd *cobra.Command) (*capability.Token, error) {
	words, err := t.words(cmd)
	if err != nil {
		return nil, err
	}
	return parseSet(words)
}

// parseSet parses a token and the discharges after it.
func parseSet(words []string) (*capability.Token, error) {
	if len(words) == 0 {
		return nil, capability.CodeMalformed
	}
	token, err := capability.Parse(words[0])
	if err != nil {
		return nil, err
	}
	for _, word := range words[1:] {
		discharge, err := capability.Parse(word)
		if err != nil {
			return nil, err
		}
		if token, err = token.WithDischarges(discharge); err != nil {
			return nil, err
		}
	}
	return token, nil
}

// words reads the texts without judging them.
func (t *tokenFlags) words(cmd *cobra.Command) ([]string, error) {
	text, err := readInput(cmd, t.file)
	if err != nil {
		return nil, err
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, &failure{Code: "no_token", Message: "no token given", Hint: "pass it on standard input (< t) or with --token-file"}
	}
	return words, nil
}

// readInput reads a small text from a file, or from standard input for "" and "-".
func readInput(cmd *cobra.Command, file string) (string, error) {
	in := cmd.InOrStdin()
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	} else if isTerminal(in) {
		return "", &failure{Code: "no_token", Message: "nothing on standard input", Hint: "pass it with < file, a pipe, or --token-file"}
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return "", err
	}
	if int64(len(b)) > maxInput {
		return "", explainCapability(capability.CodeTooLarge)
	}
	return string(b), nil
}

// isTerminal reports whether a person would have to type what is read.
func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && isatty(f)
}
