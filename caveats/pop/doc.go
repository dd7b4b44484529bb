// Package pop has callers prove that they hold the key that a holder caveat
// names, so that a stolen token is worthless.
//
// A holder makes a key (GenerateKey) and says its HolderKey to whoever issues
// the token; the token then has the caveat "holder jkt:…". What it sends goes
// through a Transport, which signs every request:
//
//	key, err := pop.GenerateKey(pop.Ed25519)
//	client := &http.Client{Transport: &guard.Transport{Token: t, Base: &pop.Transport{Signer: key}}}
//
// A service makes a Verifier and gives it to its guard:
//
//	proofs, err := pop.New(pop.Config{Origins: []string{"https://files.corp.example"}})
//	g, err := guard.New(verifier, guard.Possession(proofs))
//
// The guards for gRPC and MCP take the Verifier in their Config, and their
// documentation says what stands for method and URI there.
//
// # DPoP
//
// A proof is that of RFC 9449: a JWT in the field DPoP beside "Authorization:
// DPoP TOKEN". It is accepted if everything in this list holds, and the order is
// that of the cost: one field of at most 8 KiB; typ dpop+jwt; alg EdDSA (or
// Ed25519, its name in RFC 9864) or ES256, as the jwk is an Ed25519 or a P-256
// key; a jwk without a private part, whose thumbprint (RFC 7638) the caveat
// names; htm, the method, exactly; htu, the URI; ath, the SHA-256 of the token
// exactly as it was presented, with the discharges in the same text and without
// those in fields of their own; iat, whole seconds, at most MaxAge ago and Skew
// ahead; exp and nbf if they are there; nonce, if the service demands one; the
// signature, in JOSE's form of 64 bytes; and a jti that was not seen with this
// key before. Unknown members are ignored, a member that comes twice is
// refused, crit is too, and no URL in a header is ever followed.
//
// htu is compared by the rules of section 4.3: query and fragment do not count;
// the case of scheme and host does not; a port that the scheme implies is none;
// the case of percent-encodings, and the encoding of unreserved characters, do
// not count; no path is "/". Dot segments and user information are refused.
// Scheme and authority are those of Config.Origins: what Host says is the
// caller's own word, and a service of the same audience, which is sent such
// proofs for itself, could otherwise use them elsewhere. Behind a proxy that ends
// TLS, an origin is what clients see.
//
// A body is not in a proof, and neither is a query. The request caveat (package
// caveats) binds those; both together are one call by one holder.
//
// # Replay
//
// A proof is remembered until it is too old, by the SHA-256 of key and jti. The
// memory is one process's: two instances behind one name would each accept a
// proof once, within MaxAge; a service for which that matters has each instance
// demand nonces of a key of its own (NewNonces with nil), so that a proof is for
// one instance. It is bounded, and refuses with unavailable (503) when it is
// full, rather than forget. One key can fill a sixteenth of it.
//
// # Nonces
//
// The holder's clock decides iat, and a key that was borrowed for a moment can
// make proofs for later. A nonce ends that: it is a stretch of time and a MAC
// over it, so no instance remembers any, and instances that share a key accept
// each other's. A refusal says use_dpop_nonce and gives one in DPoP-Nonce;
// Transport tries again with it, once, if the body can be sent twice.
//
// # Session keys
//
// A key in a TPM takes tens of milliseconds for a signature. A Session signs a
// key in memory with it, for at most five minutes, and that one signs the calls.
// The proof then has one more member in its header, "dev.writ/session": a JWS of
// typ writ-session+jwt whose jwk is the holder's key and whose claims are iat,
// exp, at most 300 s later, and cnf with the jkt of the session's key (RFC 7800),
// which is the jwk of the proof itself. It is a weaker binding: whoever reads the
// process's memory can prove until the session ends. So it is marked. The guard
// puts the fact "pop" into the context of the call, "direct" or "session", and a
// token that has "context pop is direct" beside its holder caveat refuses
// sessions at every service; Config.RefuseSessions does at one.
//
// # Mutual TLS
//
// A caveat "holder x5t:…" names the SHA-256 of a client certificate (RFC 8705
// section 3.1). The handshake proves its key; the server asks for it with
// tls.RequestClientCert or more, and who signed it does not matter here.
// ClientCertificate makes one. It is the certificate of the connection that the
// request came over: what a proxy writes into a field about some other
// connection is not believed, so mutual TLS ends where TLS does.
//
// # Keeping a key
//
// A key that the process makes when it starts is on no disk (GenerateKey). A key
// file has mode 0600 and is refused if others can get at it (WriteKeyFile,
// ReadKeyFile). HardenProcess keeps core dumps and debuggers of the same user
// off the memory, on Linux. Root reads everything but a TPM.
package pop
