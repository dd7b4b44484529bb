package capability

import "time"

// EndsBy records that a caveat ends the token at a moment, in Unix
// milliseconds, that has not come yet. The earliest counts.
func (cl *Clearance) EndsBy(ms int64) {
	if cl.ends == 0 || ms < cl.ends {
		cl.ends = ms
	}
}

// Ends is when the token as presented ends, in Unix milliseconds: its
// not-after, or the earliest end that a caveat has named. It is complete only
// after StageClear.
func (cl *Clearance) Ends() int64 { return cl.endsWithin(cl.grant.id.NotAfter) }

func (cl *Clearance) endsWithin(notAfter int64) int64 {
	if cl.ends != 0 && cl.ends < notAfter {
		return cl.ends
	}
	return notAfter
}

// BindRequest records that a caveat names the request under way and no other.
func (cl *Clearance) BindRequest() { cl.bound = true }

// Ends is when the token as presented ends, to the millisecond below: its
// not-after or a caveat's earlier end. Zero after a refusal.
func (g *Grant) Ends() time.Time {
	if !g.valid {
		return time.Time{}
	}
	return time.UnixMilli(g.clearance.endsWithin(g.id.NotAfter)).UTC()
}

// RequestBound reports whether a caveat names the request that was granted and
// no other: what a route that requires a request caveat asks for.
func (g *Grant) RequestBound() bool { return g.valid && g.clearance.bound }
