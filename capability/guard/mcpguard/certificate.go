package mcpguard

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
)

// certificateHeader carries what TLS has proved of the client from Handler to
// the guard behind it: a MAC under the guard's own key, and the certificate.
const certificateHeader = "Writ-Client-Certificate"

// Handler wraps the SDK's HTTP handler for holder caveats that name a client's
// certificate (x5t:…), since the SDK hands a request's headers on and nothing of
// its connection. Of a client it says what the TLS connection of that very
// request has proved; what the client itself says of certificates counts for
// nothing, with Handler or without.
func (g *Guard) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own := *r // a handler must not change the request
		own.Header = r.Header.Clone()
		own.Header.Del(certificateHeader)
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			der := r.TLS.PeerCertificates[0].Raw
			own.Header.Set(certificateHeader, base64.StdEncoding.EncodeToString(append(g.certificateMAC(der), der...)))
		}
		next.ServeHTTP(w, &own)
	})
}

func (g *Guard) certificateMAC(der []byte) []byte {
	h := hmac.New(sha256.New, g.key[:])
	h.Write(der)
	return h.Sum(nil)
}

// certificate is the certificate that Handler found, in DER, or nil.
func (g *Guard) certificate(header http.Header) []byte {
	b, err := base64.StdEncoding.DecodeString(header.Get(certificateHeader))
	if err != nil || len(b) <= sha256.Size {
		return nil
	}
	if mac, der := b[:sha256.Size], b[sha256.Size:]; hmac.Equal(mac, g.certificateMAC(der)) {
		return der
	}
	return nil
}
