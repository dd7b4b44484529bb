// Package seal keeps the authority's key material: sealed in the log and in snapshots, and openable only by nodes of the cluster
// and by one offline recovery identity.
//
// Three layers:
//
//   - A [Secret] is 32 bytes of key material: an epoch's master, the audit log's seed, a discharger's key. It enters the replicated
//     log only as [ClusterKey.Seal] returns it: AES-256-GCM, with a [Label] as associated data, so that a sealed secret cannot be
//     passed off as another cluster's, incarnation's, purpose's or epoch's.
//   - The [ClusterKey] is wrapped for each node, and for the recovery recipient, by [Wrap]: HPKE (RFC 9180, base mode) with
//     DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
//   - An [Identity] is the private half that unwraps. It lies in a file outside the data directory ([WriteIdentityFile]), plain or
//     under a passphrase; a [Protector] is where a TPM plugs in. The recovery identity is written down on paper in its text form.
//
// Begin with [GenerateIdentity] and [NewClusterKey]. From masters come the keys that leave the authority: [AudienceKey].
//
// Secrets print as "[redacted]" with every fmt verb, in log/slog and in JSON, and do not compile with ==. Destroy overwrites one,
// as far as a garbage-collected program can: copies that crypto packages made are out of reach.
//
// HPKE base mode says nothing about who wrapped a key. A wrapped or sealed value is trusted because the replicated log, to which
// only members write, carries it.
package seal
