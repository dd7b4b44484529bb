package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// Formats of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

func checkOutput(format string) error {
	if format != outputText && format != outputJSON {
		return &failure{Code: "usage", Message: fmt.Sprintf("unknown output format %q", format), Hint: "--output is text or json"}
	}
	return nil
}

// emit prints the command's answer: v as JSON, or what text prints.
func (a *app) emit(cmd *cobra.Command, v any, text func(p *printer)) error {
	if a.output == outputJSON {
		return writeJSON(cmd.OutOrStdout(), v)
	}
	p := &printer{w: cmd.OutOrStdout()}
	text(p)
	return p.err
}

// say talks to the person at the terminal. Programs that asked for JSON get no talk.
func (a *app) say(cmd *cobra.Command, format string, args ...any) {
	if a.output == outputJSON {
		return
	}
	for i := range args {
		switch arg := args[i].(type) {
		case string:
			args[i] = safe(arg)
		case error:
			args[i] = safe(arg.Error())
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
}

// writeJSON prints v in pure ASCII: whatever text a token carries, the
// terminal sees escapes.
func writeJSON(w io.Writer, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	return writeAll(w, asciiJSON(buf.Bytes()))
}

// asciiJSON escapes what is not printable ASCII in valid JSON, where it can
// only stand inside strings.
func asciiJSON(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\n' || r < utf8.RuneSelf && r >= ' ' && r != 0x7f:
			out = append(out, b[0])
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}

func writeAll(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// printer writes text for people and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

// line prints one line; strings among args are made safe for a terminal.
func (p *printer) line(format string, args ...any) {
	for i := range args {
		if s, ok := args[i].(string); ok {
			args[i] = safe(s)
		}
	}
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// field prints a name and a value, aligned over all fields; an empty value is left out.
func (p *printer) field(name, value string) {
	if value != "" {
		p.line("%-12s %s", name, value)
	}
}

// table prints aligned columns under a heading.
func (p *printer) table(heading []string, rows [][]string) {
	if p.err != nil {
		return
	}
	w := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{heading}, rows...) {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, safe(cell))
		}
		fmt.Fprintln(w)
	}
	p.err = w.Flush()
}

// safe makes a string of any origin harmless to a terminal: what is not
// printable (control characters, bidirectional overrides, invalid UTF-8) comes
// out as an escape.
func safe(s string) string {
	if strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unprintable(r):
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

// when renders a moment, and how far it is from now.
func (a *app) when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := t.Sub(a.now()).Round(time.Second)
	if d < 0 {
		return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), -d)
	}
	return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), d)
}

// writeSecret stores a credential in a new file that only its owner can read,
// or on standard output for the name "-" or none.
func writeSecret(cmd *cobra.Command, path, secret string) error {
	if path == "" || path == "-" {
		return writeAll(cmd.OutOrStdout(), []byte(secret+"\n"))
	}
	f, err := newSecretFile(path)
	if err != nil {
		return err
	}
	return f.write(secret)
}

// secretFile is a new file for a credential that is still to come.
type secretFile struct{ *os.File }

// newSecretFile makes one that only its owner can read, or none for the name "-"
// or none.
func newSecretFile(path string) (*secretFile, error) {
	if path == "" || path == "-" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &secretFile{f}, nil
}

// write stores the credential and closes the file, or takes the file away.
func (f *secretFile) write(secret string) error {
	_, err := f.WriteString(secret + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// discard takes the file away: there is no credential for it.
func (f *secretFile) discard() error {
	if f == nil {
		return nil
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
