// Package caveats is Writ's vocabulary of first-party caveats on package
// capability.
//
// A service builds one Checker with Standard and gives it to its
// capability.Verifier. Whoever mints or narrows a token writes conditions by
// hand and puts them through Validate, or takes them from the builders (Action,
// Resource, MaxCalls and so on). Describe says in plain English what a
// condition demands.
//
// Caveats are a conjunction, and each only narrows. A condition that a
// verifier does not know, or cannot read to its last byte, denies with
// unknown_caveat: there is no best effort. Whether a condition can be read
// never depends on the request. What a condition does not say of itself is
// never guessed: names, actions, services and resources are compared byte for
// byte, without folding case and without Unicode normalization, so a name in
// NFC and the same name in NFD are two names.
//
// # Grammar
//
// In the EBNF of the Go specification, over UTF-8. Words are separated by one
// space; there is none before the first and after the last. A condition has at
// most 4096 bytes.
//
//	condition = "time-before" sp time
//	          | "time-after" sp time
//	          | "action" { sp name }-
//	          | "resource" { sp pattern }-
//	          | "argument" sp name sp test
//	          | "context" sp name sp test
//	          | "service" { sp name }-
//	          | "client-ip" { sp ( address | cidr ) }-
//	          | "max-calls" sp count
//	          | "max-rate" sp count "/" count ( "s" | "m" | "h" )
//	          | "holder" { sp key }-
//	          | "request" sp digest
//	          | "branch" sp nonce [ sp label ]
//	          | "bound" sp branch
//	          | "declare" sp name sp text
//	          | "device" sp device
//	          | "log" sp level
//	          | "ext:" extension { sp word } .
//
//	test      = ( "is" sp value ) | ( "in" { sp value }- ) | ( "prefix" sp text )
//	          | ( ( "=" | "<" | "<=" | ">" | ">=" ) sp number ) .
//	value     = number | "true" | "false" | text .
//	text      = word .      (* as a value: bare only if it is no number, true, false or null *)
//	name      = word .      (* 1 to 128 bytes, without escapes *)
//	word      = bare | quoted .
//	bare      = character { character } .
//	quoted    = '"' { character | " " | '\"' | '\\' } '"' .
//	character = (* any Unicode character but space, '"', '\' and the control
//	               characters U+0000 to U+001F and U+007F to U+009F *) .
//	sp        = " " .
//
//	time      = (* date-time of RFC 3339 section 5.6, with upper-case T and Z,
//	               seconds 00 to 59 and at most 9 digits of fraction *) .
//	number    = (* number of RFC 8259 section 6, its exponent within ±100000 *) .
//	count     = (* decimal, 1 to 10^12, no leading zero; max-calls may be 0 *) .
//	pattern   = segment { "/" segment } [ "/**" ] | "**" .
//	segment   = "*" | (* as of a word, see below *) .
//	address   = (* IPv4 or IPv6 address, no zone, IPv4 not mapped into IPv6 *) .
//	cidr      = (* address "/" prefix length, no bit set beyond the prefix *) .
//	key       = ( "jkt:" | "x5t:" ) digest .
//	digest    = (* SHA-256 in unpadded base64url: 43 characters *) .
//	nonce     = (* 24 lower-case hexadecimal digits *) .
//	label     = (* 1 to 64 visible ASCII characters without '"' and '\' *) .
//	branch    = (* 32 lower-case hexadecimal digits *) .
//	device    = (* 64 lower-case hexadecimal digits *) .
//	level     = "minimal" | "metadata" | "full" .
//	extension = (* 1 to 64 of a-z, 0-9, ".", "_" and "-", the first a letter or digit *) .
//
// A pattern, like any word, may be quoted, for segments with spaces.
//
// # Resources
//
// A resource is a list of decoded segments, and a pattern matches it segment
// by segment. "files/q3" matches exactly these two segments; "*" stands for
// exactly one segment, whatever it is; a closing "**" stands for one or more,
// so files/reports/** matches everything below files/reports and not
// files/reports itself (name both patterns for both). A star that is only part
// of a segment is unreadable, and there are no regular expressions.
//
// Some segments match nothing, not even "*": the empty one, "." and "..",
// what is not valid UTF-8, what holds a slash, a backslash, a percent sign or
// a control character, and what a compatibility normalization (NFKC) would
// turn into one of these. So a resource that was decoded once too little
// (%2e%2e) or that someone downstream would decode once more is denied, and
// an empty path, a doubled or a trailing slash is too. SplitResource and
// SplitURLPath make segments from text under the same rules.
//
// # Arguments and context
//
// A bare number, and bare true and false, are of these types; every other
// word, and every quoted one, is a string. "is" and "in" compare value and
// type; "prefix" takes strings; the comparisons take numbers and compare the
// decimals exactly (1e2 is 100, and 0.1 is one tenth). A missing argument and
// one of another type deny. prefix compares text, not paths: what names a
// path belongs in a resource.
//
// A number is judged as it is written. ParseArguments therefore refuses, unless
// told otherwise, numbers that a handler could not read into a float64 without
// crossing a limit.
//
// # Time
//
// time-before T holds while now < T, time-after T while now ≥ T.
//
// # What is counted, and where
//
// max-calls is counted by the verifier's capability.Budgets: exactly across
// verifiers with an authority's leases, or in one process with LocalBudgets.
// max-rate is a token bucket at the verifier that sees the call: N calls at
// once, refilled evenly over D; k verifiers admit k times as much. A call that
// is refused for its budget, or by another bucket, takes no token. A max-calls
// cannot stand in a discharge.
package caveats
