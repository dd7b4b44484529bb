package capability

// prefixEntry is a verified prefix.
type prefixEntry struct{ sigs [][32]byte }

type prefixCache struct{}

func newPrefixCache(int) *prefixCache { return &prefixCache{} }
