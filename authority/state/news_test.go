package state

import (
	"testing"

	"github.com/writ-dev/writ/authority/api"
)

// TestNews: who waits for news is woken by a revocation, by keys and by another
// incarnation, and not by tokens that are issued.
func TestNews(t *testing.T) {
	r := lived(t)
	told := func(what string, want bool, do func()) {
		t.Helper()
		news, changed := r.m.News(), r.m.Changed()
		do()
		select {
		case <-changed:
		default:
			t.Errorf("%s: no change", what)
		}
		select {
		case <-news:
			if !want {
				t.Errorf("%s is news", what)
			}
		default:
			if want {
				t.Errorf("%s is no news", what)
			}
		}
	}
	id := r.issue("a", "corp", "alice")
	told("a token", false, func() { r.issue("b", "corp", "alice") })
	told("an expiry of nothing", false, func() { r.must(KindExpire, &Expire{T: 1}) })
	told("a revocation", true, func() {
		r.must(KindRevoke, &Revoke{Kind: string(api.RevokeToken), Token: id, Reason: "test", Expires: r.stamp + 1000})
	})
	told("keys", true, func() {
		r.must(KindRekey, &Rekey{Audience: "other", Reason: "test", MintsFrom: r.stamp + 10_000, OldUntil: r.stamp + 2_000_000})
	})
	told("another incarnation", true, func() { r.must(KindRevive, revival(r, 1)) })
}
