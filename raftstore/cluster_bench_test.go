package raftstore

import (
	"fmt"
	"sync"
	"testing"
)

// BenchmarkCluster is three nodes over TLS on loopback, each with its own log
// and sync: what anything built on it is to be compared with.
func BenchmarkCluster(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("propose/callers=%d", callers), func(b *testing.B) {
			benchCluster(b, callers, func(m *mesh) error {
				_, err := m.nodes["n1"].store.Propose(b.Context(), make([]byte, benchCommand))
				return err
			})
		})
	}
	for _, at := range []string{"n1", "n2"} {
		for _, callers := range []int{1, 64} {
			name := map[string]string{"n1": "leader", "n2": "follower"}[at]
			b.Run(fmt.Sprintf("read/at=%s/callers=%d", name, callers), func(b *testing.B) {
				benchCluster(b, callers, func(m *mesh) error {
					_, err := m.nodes[at].store.ReadIndex(b.Context())
					return err
				})
			})
		}
	}
	b.Run("call", func(b *testing.B) {
		benchCluster(b, 1, func(m *mesh) error {
			_, err := m.nodes["n2"].store.CallLeader(b.Context(), testMethod, make([]byte, benchCommand))
			return err
		})
	})
}

func benchCluster(b *testing.B, callers int, do func(*mesh) error) {
	m := newMesh(b, 3, nil)
	m.nodes["n1"].trans.Handle(testMethod, echo)
	propose(b, m.nodes["n1"].store, "warm")
	work := make(chan struct{}, callers)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range work {
				if err := do(m); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.StopTimer()
	for _, n := range m.nodes {
		n.store.Close()
	}
}
