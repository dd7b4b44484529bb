// Package chaos is a fault campaign against the authority. Three real nodes over
// TLS on loopback, real clients and guards with real verifiers do their work while
// nodes are killed, stopped, cut off, one way too, made to hand over, put off their
// clocks, and the guards' links made slow. Then what everyone was told is
// checked:
//
//   - issuing, revoking and linearizable reads form a linearizable history;
//   - of each call budget, nested ones too, accepted + unspent + forfeited is
//     the limit;
//   - no revoked token is accepted later than the bound after the acknowledgement,
//     by a clock that no fault touches, and no other is refused as revoked;
//   - everything acknowledged is on every node, and the nodes agree about the
//     state and the audit log.
//
// The package holds tests only. They take long on purpose, so they are built with
// the tag chaos: make chaos. A seed reproduces the schedule of the faults, not
// what the scheduler and the network make of it. TestPlanted has the campaign find
// bugs that it puts into a copy of the source.
package chaos
