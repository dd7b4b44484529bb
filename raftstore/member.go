package raftstore

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Member is one node of the cluster.
type Member struct {
	ID, Address string
	Voter       bool
	Leader      bool // as far as this node knows

	// What the node itself answered just now; zero when it did not (Err).
	Err          error
	RoundTrip    time.Duration
	Term         uint64
	LastIndex    uint64 // of its log
	AppliedIndex uint64
	Lag          uint64 // how many entries it has yet to apply of what is committed here
	DiskFull     bool
}

// promotionLag is how many entries a node may be behind when it becomes a voter:
// a new voter that has much to fetch would hold up every commit that needs it.
const promotionLag = 1024

// memberStatus is what a node says of itself.
type memberStatus struct {
	Term     uint64 `json:"term"`
	Last     uint64 `json:"last"`
	Applied  uint64 `json:"applied"` // by Raft, its own entries included
	DiskFull bool   `json:"disk_full,omitempty"`
}

func (s *Store) ownStatus() memberStatus {
	return memberStatus{
		Term: s.Term(), Last: s.raft.LastIndex(), Applied: s.raft.AppliedIndex(), DiskFull: s.guard.full.Load(),
	}
}

func (s *Store) answerStatus(context.Context, string, []byte) ([]byte, error) {
	return json.Marshal(s.ownStatus())
}

// Members returns every node of the latest configuration, with what it says of
// itself, as far as it answers before the context ends or within a second.
func (s *Store) Members(ctx context.Context) []Member {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	leader, _ := s.Leader()
	commit := s.CommitIndex()
	servers := s.servers()
	members := make([]Member, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		members[i] = Member{
			ID: string(server.ID), Address: string(server.Address),
			Voter: server.Suffrage == raft.Voter, Leader: string(server.ID) == leader,
		}
		wg.Go(func() { s.askStatus(ctx, server, commit, &members[i]) })
	}
	wg.Wait()
	return members
}

// askStatus fills in what the node of m says of itself.
func (s *Store) askStatus(ctx context.Context, server raft.Server, commit uint64, m *Member) {
	st := s.ownStatus()
	if server.ID != raft.ServerID(s.cfg.NodeID) {
		began := time.Now()
		answer, err := s.call(ctx, server, methodStatus, nil)
		m.RoundTrip = time.Since(began)
		if err == nil {
			err = json.Unmarshal(answer, &st)
		}
		if err != nil {
			m.Err, m.RoundTrip = err, 0
			return
		}
	}
	m.Term, m.LastIndex, m.AppliedIndex, m.DiskFull = st.Term, st.Last, st.Applied, st.DiskFull
	m.Lag = commit - min(commit, st.Applied)
}

// AddNonvoter adds a node that gets the log and counts for no majority, or
// changes the address of one. Only the leader can: ErrNotLeader elsewhere, as of
// all changes. An id belongs to one node for good: one that was removed must
// not come back under it.
func (s *Store) AddNonvoter(ctx context.Context, id, address string) error {
	if id == "" || address == "" {
		return fmt.Errorf("%w: a member needs an id and an address", ErrConfig)
	}
	return s.change(ctx, func([]raft.Server) (raft.IndexFuture, error) {
		return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, 0), nil
	})
}

// AddVoter adds a node as a voter, at once. It is better to add a non-voter and
// to Promote it when it has caught up. Refused with ErrQuorum when the voters
// that answer, the new one included, would not be a majority, unless forced.
func (s *Store) AddVoter(ctx context.Context, id, address string, force bool) error {
	if id == "" || address == "" {
		return fmt.Errorf("%w: a member needs an id and an address", ErrConfig)
	}
	return s.change(ctx, func(servers []raft.Server) (raft.IndexFuture, error) {
		server := raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(address)}
		if err := s.checkQuorum(ctx, append(without(servers, id), server), force); err != nil {
			return nil, err
		}
		return s.raft.AddVoter(server.ID, server.Address, 0, 0), nil
	})
}

// Promote makes a non-voter a voter. Refused with ErrLagging while it does not
// answer or is far behind, and like AddVoter, unless forced.
func (s *Store) Promote(ctx context.Context, id string, force bool) error {
	return s.change(ctx, func(servers []raft.Server) (raft.IndexFuture, error) {
		server, ok := s.server(id)
		if !ok {
			return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
		}
		if !force {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			var m Member
			if s.askStatus(ctx, server, s.CommitIndex(), &m); m.Err != nil {
				return nil, fmt.Errorf("%w: %w", ErrLagging, m.Err)
			}
			if m.Lag > promotionLag {
				return nil, fmt.Errorf("%w: %q has %d entries to apply", ErrLagging, id, m.Lag)
			}
		}
		server.Suffrage = raft.Voter
		if err := s.checkQuorum(ctx, append(without(servers, id), server), force); err != nil {
			return nil, err
		}
		return s.raft.AddVoter(server.ID, server.Address, 0, 0), nil
	})
}

// Demote makes a voter a non-voter. Refused with ErrQuorum when it is the last,
// always, or when the voters that would be left and answer are no majority,
// unless forced. A leader hands over first and answers ErrNotLeader: ask the
// next.
func (s *Store) Demote(ctx context.Context, id string, force bool) error {
	return s.drop(ctx, id, force, func() raft.IndexFuture {
		return s.raft.DemoteVoter(raft.ServerID(id), 0, 0)
	})
}

// Remove removes a node, on the same conditions as Demote. The node is told, if
// it can be reached, and ends with ErrRemoved.
func (s *Store) Remove(ctx context.Context, id string, force bool) error {
	server, _ := s.server(id)
	var removal raft.IndexFuture
	err := s.drop(ctx, id, force, func() raft.IndexFuture {
		removal = s.raft.RemoveServer(raft.ServerID(id), 0, 0)
		return removal
	})
	if err == nil {
		go s.tellRemoved(server, removal.Index())
	}
	return err
}

// SetAddress changes where a node is.
func (s *Store) SetAddress(ctx context.Context, id, address string) error {
	if address == "" {
		return fmt.Errorf("%w: no address", ErrConfig)
	}
	return s.change(ctx, func([]raft.Server) (raft.IndexFuture, error) {
		server, ok := s.server(id)
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
		case server.Suffrage == raft.Voter:
			return s.raft.AddVoter(server.ID, raft.ServerAddress(address), 0, 0), nil
		default:
			return s.raft.AddNonvoter(server.ID, raft.ServerAddress(address), 0, 0), nil
		}
	})
}

// drop takes a node's vote away, or the node.
func (s *Store) drop(ctx context.Context, id string, force bool, do func() raft.IndexFuture) error {
	return s.change(ctx, func(servers []raft.Server) (raft.IndexFuture, error) {
		server, ok := s.server(id)
		if !ok {
			return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
		}
		if server.Suffrage != raft.Voter {
			return do(), nil
		}
		left := without(servers, id)
		if voters(left) == 0 {
			return nil, fmt.Errorf("%w: %q is the last voter", ErrQuorum, id)
		}
		if err := s.checkQuorum(ctx, left, force); err != nil {
			return nil, err
		}
		if id == s.cfg.NodeID {
			if err := s.TransferLeadership(ctx, ""); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w any more: the next has to do it", ErrNotLeader)
		}
		return do(), nil
	})
}

// change decides, and makes, one change of the configuration. They are made one
// after the other, so that each is decided on what the one before has left (Raft
// could check that, but does not tell the index of a configuration to check).
func (s *Store) change(ctx context.Context, decide func([]raft.Server) (raft.IndexFuture, error)) error {
	select {
	case s.changing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return s.closedError()
	}
	done := make(chan error, 1)
	if err := s.refuse(); err != nil {
		<-s.changing
		return err
	}
	future, err := decide(s.servers())
	if err != nil {
		<-s.changing
		return err
	}
	go func() {
		err := future.Error()
		<-s.changing
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return s.proposeError(err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrIndeterminate, ctx.Err())
	case <-s.fail.dead:
		return fmt.Errorf("%w: %w", ErrIndeterminate, s.fail.cause())
	}
}

// checkQuorum refuses a configuration whose voters that answer are not a
// majority of it.
func (s *Store) checkQuorum(ctx context.Context, servers []raft.Server, force bool) error {
	if force {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answers := make([]bool, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		if server.Suffrage == raft.Voter {
			wg.Go(func() {
				var m Member
				s.askStatus(ctx, server, 0, &m)
				answers[i] = m.Err == nil
			})
		}
	}
	wg.Wait()
	alive := 0
	for _, yes := range answers {
		if yes {
			alive++
		}
	}
	if all := voters(servers); alive < all/2+1 {
		return fmt.Errorf("%w: only %d of the %d voters that there would be answer", ErrQuorum, alive, all)
	}
	return nil
}

func without(servers []raft.Server, id string) []raft.Server {
	var rest []raft.Server
	for _, server := range servers {
		if server.ID != raft.ServerID(id) {
			rest = append(rest, server)
		}
	}
	return rest
}

func voters(servers []raft.Server) int {
	n := 0
	for _, server := range servers {
		if server.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// TransferLeadership hands leadership to the voter named to, or to the one that
// is furthest if to is empty, and returns once this node no longer leads.
func (s *Store) TransferLeadership(ctx context.Context, to string) error {
	if err := s.refuse(); err != nil {
		return err
	}
	transfer := s.raft.LeadershipTransfer
	if to != "" {
		server, ok := s.server(to)
		switch {
		case !ok:
			return fmt.Errorf("%w: %q", ErrUnknownMember, to)
		case server.Suffrage != raft.Voter:
			return fmt.Errorf("%w: %q has no vote", ErrQuorum, to)
		case to == s.cfg.NodeID:
			return nil
		}
		transfer = func() raft.Future { return s.raft.LeadershipTransferToServer(server.ID, server.Address) }
	}
	done := make(chan error, 1)
	go func() { done <- transfer().Error() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("raftstore: hand over leadership: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrIndeterminate, ctx.Err())
	case <-s.fail.dead:
		return s.closedError()
	}
}

// removedAttempts is how often a node is told that it was removed.
const removedAttempts = 5

// tellRemoved tells a node that it is no longer a member. Raft itself sends it
// the configuration but not that it is committed.
func (s *Store) tellRemoved(server raft.Server, configuration uint64) {
	index := binary.BigEndian.AppendUint64(nil, configuration)
	for range removedAttempts {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := s.call(ctx, server, methodRemoved, index)
		cancel()
		if err == nil || errors.Is(err, ErrRefused) {
			return
		}
		select {
		case <-time.After(time.Second):
		case <-s.closing:
			return
		case <-s.fail.dead:
			return
		}
	}
}

// answerRemoved takes a voter's word that this node was removed, of the
// configuration with an index, or 0 for one that it does not say: peers are
// authenticated, they say so only once it is committed, and an id never comes
// back. A node that has yet to hear of any configuration takes any peer's.
func (s *Store) answerRemoved(_ context.Context, from string, request []byte) ([]byte, error) {
	if _, err := numbers(request, 1); err != nil {
		return nil, err
	}
	if server, ok := s.server(from); len(s.servers()) > 0 && (!ok || server.Suffrage != raft.Voter) {
		return nil, fmt.Errorf("%w: %q is no voter that this node knows", ErrUnknownMember, from)
	}
	s.markRemoved()
	go s.fail.fatal(fmt.Errorf("%w: node %q says so", ErrRemoved, from))
	return nil, nil
}

// removedName is the file that keeps a node which was removed from starting
// again: its peers would refuse it, and it could not learn why.
const removedName = "REMOVED"

func (s *Store) markRemoved() {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, removedName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Close(), syncDir(s.cfg.Dir))
	}
	if err != nil {
		s.cfg.Logger.Error("could not leave a note that this node was removed", "error", err)
	}
}

// CheckRemoved returns ErrRemoved if the node in a directory knows that it was
// removed. It opens nothing.
func CheckRemoved(dir string) error {
	switch _, err := os.Lstat(filepath.Join(dir, removedName)); {
	case err == nil:
		return fmt.Errorf("%w: %s says so", ErrRemoved, filepath.Join(dir, removedName))
	case errors.Is(err, os.ErrNotExist):
		return nil
	default:
		return err
	}
}
