package guard

import (
	"net/http"
	"strings"

	"github.com/writ-dev/writ/capability"
)

// credential reads the token and its discharges from the headers (RFC 6750
// section 2.1). No token at all is no error here. Nothing is decoded.
func (s *settings) credential(r *http.Request) (Credential, error) {
	var cred Credential
	values := r.Header["Authorization"]
	if len(values) > 1 {
		return cred, badRequest("two Authorization headers")
	}
	if len(values) == 1 {
		token, known := parseAuthorization(values[0], s.http.holder != nil)
		if known && !plausible(token) {
			return cred, &capability.Refusal{Code: capability.CodeMalformed, Detail: "not a token in text form"}
		}
		cred.Token = token
	}
	discharges, err := ParseDischarges(r.Header[DischargesHeader])
	if err != nil {
		return cred, err
	}
	if cred.Token != "" {
		cred.Discharges = discharges
	}
	return cred, nil
}

// parseAuthorization returns the token of a scheme that tokens come in.
func parseAuthorization(value string, dpop bool) (token string, known bool) {
	scheme, rest, ok := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") && !(dpop && strings.EqualFold(scheme, "DPoP")) {
		return "", false // another scheme is no token for us
	}
	if !ok {
		return "", true
	}
	return strings.Trim(rest, " "), true
}

// ParseBearer returns the token of an Authorization value with the scheme
// Bearer, or "" for another scheme. Errors: CodeMalformed.
func ParseBearer(value string) (string, error) {
	token, known := parseAuthorization(value, false)
	if known && !plausible(token) {
		return "", &capability.Refusal{Code: capability.CodeMalformed, Detail: "not a token in text form"}
	}
	return token, nil
}

// ParseToken is ParseBearer for a caller that reads proofs of possession: the
// scheme DPoP is accepted too, and dpop tells that it was that.
func ParseToken(value string) (token string, dpop bool, err error) {
	token, known := parseAuthorization(value, true)
	if known && !plausible(token) {
		return "", false, &capability.Refusal{Code: capability.CodeMalformed, Detail: "not a token in text form"}
	}
	scheme, _, _ := strings.Cut(value, " ")
	return token, known && strings.EqualFold(scheme, "DPoP"), nil
}

// ParseDischarges returns the texts in the values of Writ-Discharges headers.
// Errors: CodeMalformed, CodeTooLarge.
func ParseDischarges(values []string) ([]string, error) {
	var texts []string
	size := 0
	for _, line := range values {
		if size += len(line); size > 2*capability.MaxTextSize {
			return nil, &capability.Refusal{Code: capability.CodeTooLarge, Detail: "discharges"}
		}
		for text := range strings.SplitSeq(line, " ") {
			if !plausible(text) {
				return nil, &capability.Refusal{Code: capability.CodeMalformed, Detail: "not a discharge in text form"}
			}
			if len(texts) == capability.MaxDischarges {
				return nil, &capability.Refusal{Code: capability.CodeTooLarge, Detail: "discharges"}
			}
			texts = append(texts, text)
		}
	}
	return texts, nil
}

// plausible reports whether text could be a token set: whatever else there is
// to say about it, the verifier says.
func plausible(text string) bool { return strings.HasPrefix(text, capability.TextPrefix) }
