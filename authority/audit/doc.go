// Package audit keeps Writ's audit trail: a Merkle log of every change that the authority made, which an operator cannot rewrite
// without it showing.
//
// The tree is that of RFC 6962 (golang.org/x/mod/sumdb/tlog): a record's hash is SHA-256(0x00 ‖ record), a node's
// SHA-256(0x01 ‖ left ‖ right). Checkpoints are signed notes in the format of C2SP tlog-checkpoint: origin, size and root, under an
// Ed25519 key. Proofs of inclusion and consistency are RFC 6962's.
//
// The trail is in two places. The replicated state holds an [Edge]: the size and the roots of the perfect subtrees, from which the
// tree's root follows and which every appended record moves. Beside the state lies a [Log]: the records' bodies and all hashes, in
// append-only files. Start with [Open] (or [Start], for a new incarnation), call [Log.Reconcile] with the state's edge, then
// [Log.Append] for each Raft entry that is applied, and [Log.Sync] before a snapshot that covers it. Someone who checks the log
// begins with [VerifyDir] on the files, or with [VerifyCheckpoint], [VerifyInclusion] and [VerifyConsistency] on what a node answered.
//
// # Files
//
//	commit                        what was last made durable: origin, size, root, last Raft index; checksummed, replaced atomically
//	bodies-<first record>.seg     frames: length, batch position, Raft index, CRC-32C, record; a new segment at 64 MiB
//	hashes                        32 bytes for each node of the tree, at its stored hash index (tlog.StoredHashIndex)
//	index                         16 bytes a record: Raft index, offset in its segment, CRC-32C
//	checkpoints                   the signed checkpoints that were saved, oldest first
//
// Hashes are one file in stored order, not tiles, because that order is strictly append-only (a tile's partial form is rewritten
// over and over) and any tile is a short read away (tlog.ReadTileData over [Log.ReadHashes]).
//
// # What it does not promise
//
// The files' checksums find accidents; only signatures find forgery. Whoever holds the signing key and every copy of the log can
// write another history, so keep a checkpoint somewhere else and hand it to [VerifyDir]. Records after the newest signed
// checkpoint are no safer than the file system, which is why a report counts them. The Raft index of a frame is not part of the
// record's hash: a record that needs it signed contains it.
package audit
