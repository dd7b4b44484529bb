package capability

// Bounds on everything a stranger can send. They are checked before anything
// is hashed, and they are part of the format: two verifiers never disagree.
const (
	// MaxTokenSize is the most bytes of a token set (the macaroon and its
	// discharges) in binary form.
	MaxTokenSize = 16 << 10
	// MaxCaveats is the most caveats over a whole token set.
	MaxCaveats = 64
	// MaxDischarges is the most discharges in a token set.
	MaxDischarges = 16
	// MaxAudience is the most bytes of an audience's name.
	MaxAudience = 100
	// MaxSubject is the most bytes of a subject's name.
	MaxSubject = 200
	// MaxBudgets is the most max-calls caveats in one chain.
	MaxBudgets = 4
	// MaxTextSize is the most characters of a token set in text form.
	MaxTextSize = len(TextPrefix) + (MaxTokenSize*8+5)/6
)

// TextPrefix opens the text form of every token set, so that secret scanners
// and people recognize one.
const TextPrefix = "writ_"
