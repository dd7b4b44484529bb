package attest

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/caveats"
)

// decode reads one JSON document of at most max bytes into v. A member that v
// does not have, one that appears twice or that differs from another only in
// case, and anything behind the document are refused: no two readers take it
// for different things.
func decode(document []byte, max int, v any) error {
	if len(document) > max {
		return refuse(ReasonTooLarge, "%d bytes of JSON, at most %d", len(document), max)
	}
	_, canonical, err := caveats.ParseArguments(document, caveats.Limits{MaxSize: max, MaxDepth: 8, MaxMembers: 4096})
	if err != nil {
		return refuse(ReasonMalformed, "%v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(canonical))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return refuse(ReasonMalformed, "%v", err)
	}
	return nil
}

func decodeChecked[T any, P interface {
	*T
	Check() error
}](document []byte) (*T, error) {
	v := P(new(T))
	if err := decode(document, MaxMessage, v); err != nil {
		return nil, err
	}
	if err := v.Check(); err != nil {
		return nil, err
	}
	return (*T)(v), nil
}

// sized refuses b outside min to max bytes.
func sized(what string, b []byte, min, max int) error {
	switch {
	case len(b) > max:
		return refuse(ReasonTooLarge, "%s of %d bytes, at most %d", what, len(b), max)
	case len(b) < min:
		return refuse(ReasonMalformed, "%s of %d bytes, at least %d", what, len(b), min)
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkSelection accepts ascending PCR indices, at least one.
func checkSelection(pcrs []int) error {
	if len(pcrs) == 0 {
		return refuse(ReasonMalformed, "no PCRs are selected")
	}
	for i, p := range pcrs {
		if p < 0 || p > MaxPCR || i > 0 && p <= pcrs[i-1] {
			return refuse(ReasonMalformed, "PCR indices are 0 to %d, ascending, each once", MaxPCR)
		}
	}
	return nil
}

// ValidName accepts the names of policies, root bundles and PCR sets: 1 to 64
// of a-z, 0-9, ".", "_" and "-", the first a letter or digit.
func ValidName(s string) bool {
	if s == "" || len(s) > 64 || strings.ContainsRune("._-", rune(s[0])) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// compareVersions compares dotted decimal numbers, of up to eight parts of nine
// digits, as numbers; missing parts are zero. ok is false where either is not
// such a version: then nothing can be said.
func compareVersions(a, b string) (order int, ok bool) {
	va, okA := parseVersion(a)
	vb, okB := parseVersion(b)
	if !okA || !okB {
		return 0, false
	}
	for i := range va {
		if va[i] != vb[i] {
			if va[i] < vb[i] {
				return -1, true
			}
			return 1, true
		}
	}
	return 0, true
}

func parseVersion(s string) (v [8]uint64, ok bool) {
	parts := strings.SplitN(s, ".", len(v)+1)
	if len(parts) > len(v) {
		return v, false
	}
	for i, p := range parts {
		if p == "" || len(p) > 9 || strings.Trim(p, "0123456789") != "" {
			return v, false
		}
		v[i], _ = strconv.ParseUint(p, 10, 64)
	}
	return v, true
}
