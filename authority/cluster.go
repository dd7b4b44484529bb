package authority

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

const (
	// DefaultClusterTokenTTL is how long a node's join token can be used.
	DefaultClusterTokenTTL = time.Hour
	maxClusterTokenTTL     = state.MaxJoinTTL * time.Millisecond

	// reconcileEvery is how often the leader looks whether Raft's configuration
	// is what the members' records say.
	reconcileEvery = time.Second
)

// PrepareJoin makes the identity of a node that is to join a cluster, or reads
// the one that it made before, and the request to send with the join token.
// Errors: ErrConfig, ErrKeyFile, raftstore.ErrNotEmpty.
func PrepareJoin(cfg Config, token string) (*api.ClusterJoinRequest, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Peers == nil || cfg.Peers.Listener == nil {
		return nil, fmt.Errorf("%w: a node that joins needs Peers", ErrConfig)
	}
	formed, err := exists(filepath.Join(cfg.Dir, "raft", "raft.db"))
	if err != nil {
		return nil, err
	}
	if formed {
		return nil, fmt.Errorf("%w: %s", raftstore.ErrNotEmpty, cfg.Dir)
	}
	identity, err := openIdentity(cfg, true)
	if err != nil {
		return nil, err
	}
	defer identity.Destroy()
	key, err := identity.PeerKey()
	if err != nil {
		return nil, err
	}
	r := &api.ClusterJoinRequest{
		Token: token, Node: cfg.NodeID, PublicKey: key.Public().(ed25519.PublicKey), Recipient: identity.Recipient().Bytes(),
		Raft: cfg.Peers.address(), API: cfg.Peers.API,
	}
	r.Proof = ed25519.Sign(key, r.JoinStatement())
	return r, nil
}

// nodeFile returns what this node knows of its cluster before it has a state,
// and writes it down if it is new. Nil: nothing, and no peers are wanted.
func (a *Authority) nodeFile(formed bool) (*nodeFile, error) {
	cfg := a.cfg
	if cfg.Peers == nil {
		return nil, nil
	}
	file, err := readNodeFile(cfg.Dir)
	switch {
	case err != nil:
		return nil, err
	case file == nil && formed:
		return nil, fmt.Errorf("%w: %s was formed without peers and has no %s", ErrConfig, cfg.Dir, nodeFileName)
	case file != nil && file.Node != cfg.NodeID:
		return nil, fmt.Errorf("%w: %s is of node %q", ErrConfig, cfg.Dir, file.Node)
	case file != nil:
		return file, nil
	case cfg.Joined != nil:
		j := cfg.Joined
		file = &nodeFile{Cluster: j.Cluster, Node: cfg.NodeID, Certificate: j.Certificate, CA: j.CA, Peers: j.Peers}
	default:
		file = &nodeFile{Node: cfg.NodeID}
		if file.Cluster, err = a.newClusterID(); err != nil {
			return nil, err
		}
	}
	for _, p := range file.Peers {
		if len(p.Key) != len(state.Digest{}) {
			return nil, fmt.Errorf("%w: the key of peer %q", ErrConfig, p.Node)
		}
	}
	return file, file.write(cfg.Dir)
}

// awaitState waits until the state says what cluster this is and holds its key
// for this node, or until this node may form it.
func (a *Authority) awaitState(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	learn := time.NewTicker(500 * time.Millisecond)
	defer learn.Stop()
	wait := newStateWait(a.cfg)
	for {
		changed := a.machine.Changed()
		if r, ok := a.machine.Member(a.cfg.NodeID); ok && r.State == state.MemberRemoved {
			return fmt.Errorf("%w: node %q", raftstore.ErrRemoved, a.cfg.NodeID)
		}
		// The wrap that the state has may still be for the key that the node had.
		if w := a.machine.SealedKey(state.PurposeWrap+a.cfg.NodeID, 0); a.machine.Cluster().ID != "" && w != nil && bytes.Equal(w.Public, a.peers.recipient) {
			return nil
		}
		if a.cfg.Bootstrap && a.store.IsLeader() && a.machine.Cluster().ID == "" {
			return nil
		}
		if err := a.store.Status().Err; err != nil {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-learn.C:
			// The peers may be elsewhere by now, or be looking for this node where
			// it was.
			a.peers.learn(ctx)
			a.announce(ctx)
			if err := wait.on(a.store.Leader()); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("waiting for the cluster's state: %w", ctx.Err())
		}
	}
}

// stateWait is a node's wait for the cluster's state: how long it may take, and
// what the log says meanwhile. A state that is on its way takes as long as it takes.
type stateWait struct {
	cfg   Config
	heard time.Time // when a leader last reached the node
	say   time.Time // when the log is to say that the node waits
}

// The log says that a node waits after the first of these, and then each time
// after the second.
const (
	sayWaiting      = 5 * time.Second
	sayWaitingAgain = time.Minute
)

func newStateWait(cfg Config) *stateWait {
	now := time.Now()
	return &stateWait{cfg: cfg, heard: now, say: now.Add(sayWaiting)}
}

// on goes on waiting, with a leader or none, or says why it is in vain.
func (w *stateWait) on(leader, _ string) error {
	now := time.Now()
	if leader != "" {
		w.heard = now
	}
	limit := cmp.Or(w.cfg.Peers.JoinWait, DefaultJoinWait)
	if w.cfg.Joined != nil && now.Sub(w.heard) >= limit {
		return fmt.Errorf("%w: %v long, at %s", ErrUnreached, limit, w.cfg.Peers.address())
	}
	if !now.Before(w.say) {
		w.cfg.Logger.Warn("waiting for the cluster's state: a majority of the voters must be up and reach this node", "leader", leader, "address", w.cfg.Peers.address())
		w.say = now.Add(sayWaitingAgain)
	}
	return nil
}

// startPeers starts what a node of a cluster does besides.
func (a *Authority) startPeers(ctx context.Context) {
	a.peers.adopt(a.certs)
	handle(a.peers, methodHello, a.answerHello)
	a.peers.transport.Handle(methodRecords, a.answerRecords)
	handle(a.peers, methodRecall, a.answerRecall)
	handle(a.peers, methodMember, a.answerMember)
	handle(a.peers, methodPeers, a.answerPeers)
	handle(a.peers, methodRoot, a.answerRoot)
	handle(a.peers, methodRekey, a.answerRekey)
	a.work.Go(func() { a.watchClock(ctx) })
	a.work.Go(func() { a.watchMembers(ctx) })
	a.work.Go(func() { a.keepMembers(ctx) })
	a.work.Go(func() { a.askAround(ctx) })
}

// clusterPeers are the active members but one.
func (a *Authority) clusterPeers(but string) (list []api.ClusterPeer) {
	for _, r := range a.machine.Members() {
		if r.State == state.MemberActive && r.ID != but {
			list = append(list, api.ClusterPeer{Node: r.ID, Key: r.Key[:], Raft: r.Raft})
		}
	}
	return list
}

func (a *Authority) answerPeers(_ context.Context, from string, _ *struct{}) (*[]api.ClusterPeer, error) {
	list := a.clusterPeers(from)
	return &list, nil
}

// Compact has the state written to a snapshot now, and the log before it dropped
// but for Config.TrailingLogs entries.
func (a *Authority) Compact(ctx context.Context) error { return a.store.Snapshot(ctx) }

// watchMembers writes down who the members are, and cuts whoever is one no
// longer.
func (a *Authority) watchMembers(ctx context.Context) {
	var seen uint64
	for {
		changed := a.machine.Changed()
		if now := a.machine.MemberChanges(); now != seen {
			seen = now
			a.peers.forgetHeard()
			a.report("writing down the peers", a.peers.remember(a.clusterPeers(a.cfg.NodeID), a.memberIn()))
			a.peers.transport.Reauthorize()
			a.wakeReconcile()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// memberIn is the incarnation, if the state has this node as a member of it with the
// key that it has, or 0.
func (a *Authority) memberIn() uint64 {
	own := a.peers.record()
	if r, ok := a.machine.MemberByKey(own.Key); ok && r.ID == own.ID {
		return a.machine.Cluster().Incarnation
	}
	return 0
}

func (a *Authority) wakeReconcile() {
	select {
	case a.reconcileNow <- struct{}{}:
	default:
	}
}

// keepMembers makes Raft's configuration what the members' records say, while
// this node leads, and has this node's own record say where it is.
func (a *Authority) keepMembers(ctx context.Context) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-a.reconcileNow:
		case leads := <-a.store.LeaderChanges():
			if leads {
				// Before the first change waits for it.
				_ = a.mayPropose(a.cfg.Clock())
			}
		case <-ctx.Done():
			return
		}
		a.announce(ctx)
		if a.store.IsLeader() {
			a.reconcile(ctx)
		} else {
			a.aways.forget()
		}
	}
}

// askAround calls the other members for as long as this node follows none: if it
// was removed while it could not be told, they refuse it and say so (see
// raftstore.TransportConfig.Removed). What they answer otherwise does not matter.
// A voter that wants to be elected calls them anyway; a replica does not.
func (a *Authority) askAround(ctx context.Context) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if leader, _ := a.store.Leader(); leader == "" {
			asking, cancel := context.WithTimeout(ctx, sampleWait)
			a.askHellos(asking, func(string, hello, int64, int64) {})
			cancel()
		}
	}
}

// announce has this node's record say where it is, if it says otherwise. A
// follower tells whichever peer it reaches.
func (a *Authority) announce(ctx context.Context) {
	own := a.peers.record()
	old, known := a.machine.Member(own.ID)
	if known && old.Raft == own.Raft && old.API == own.API {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sampleWait)
	defer cancel()
	if a.store.IsLeader() {
		if known {
			own.Voter, own.State = old.Voter, old.State
		}
		_, err := a.setMember(ctx, system(), own)
		a.report("telling the cluster this node's address", err)
		return
	}
	for node, address := range a.peers.others() {
		if _, err := a.peers.callAt(ctx, node, address, methodMember, own); err == nil {
			return
		}
	}
}

// hearMember is answerMember before this node has a state, when all it can do is to
// find the caller: that may be what a quorum takes.
func (a *Authority) hearMember(_ context.Context, from string, r *state.MemberRecord) (*struct{}, error) {
	if r.ID == from {
		a.peers.hear(r)
	}
	return nil, raftstore.ErrNotLeader
}

// answerMember takes down where the caller is. Of what it says only the
// addresses count.
func (a *Authority) answerMember(ctx context.Context, from string, r *state.MemberRecord) (*struct{}, error) {
	if r.ID == from {
		a.peers.hear(r)
	}
	if !a.store.IsLeader() {
		if r.ID != from {
			return nil, raftstore.ErrNotLeader // one hop
		}
		return new(struct{}), a.callLeader(ctx, methodMember, r, nil)
	}
	old, ok := a.machine.Member(r.ID)
	if !ok {
		return nil, raftstore.ErrUnknownMember
	}
	if old.Raft == r.Raft && old.API == r.API {
		return new(struct{}), nil
	}
	// A peer that passes it on is believed: members trust one another.
	old.Raft, old.API = r.Raft, r.API
	_, err := a.setMember(ctx, system(), old)
	return new(struct{}), err
}

func (a *Authority) setMember(ctx context.Context, c Call, r state.MemberRecord) (*state.MemberRecord, error) {
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindSetMember, c),
		compose: func(int64) (any, error) { return &state.SetMember{Member: r}, nil },
	})
	if err != nil {
		return nil, err
	}
	return value.(*state.MemberRecord), nil
}

// reconcile makes the changes to Raft's configuration that the members' records
// ask for, as far as they can be made now. What it does not finish, here or on
// the next leader, the next round does.
//
// While an operator's change is being decided it makes none: what is in the records
// then may be about to be refused, and taken back.
func (a *Authority) reconcile(ctx context.Context) {
	if !a.deciding.TryLock() {
		return
	}
	defer a.deciding.Unlock()
	servers := make(map[string]raftstore.Member)
	for _, m := range a.store.Members(ctx) {
		servers[m.ID] = m
		a.aways.note(m.ID, m.Err == nil)
	}
	for _, r := range a.machine.Members() {
		m, in := servers[r.ID]
		var err error
		switch {
		case r.State == state.MemberLeaving:
			err = a.takeOut(ctx, system(), r.ID, "left", false)
		case r.State == state.MemberRemoved && in:
			err = a.store.Remove(ctx, r.ID, false)
		case r.State == state.MemberRemoved:
		case !in:
			err = a.store.AddNonvoter(ctx, r.ID, r.Raft)
		case m.Address != r.Raft:
			err = a.store.SetAddress(ctx, r.ID, r.Raft)
		case r.Voter && !m.Voter && m.Err == nil:
			err = a.store.Promote(ctx, r.ID, false)
		case !r.Voter && m.Voter:
			err = a.store.Demote(ctx, r.ID, false)
		}
		switch {
		case err == nil:
		case errors.Is(err, raftstore.ErrLagging), errors.Is(err, raftstore.ErrNotLeader), errors.Is(err, raftstore.ErrIndeterminate):
			a.cfg.Logger.Debug("a member is not yet as it should be", "node", r.ID, "error", err)
		default:
			a.report("changing the cluster's membership", err)
		}
	}
	a.raiseVersion(ctx, servers)
}

// versionFresh is how lately each member must have said that it knows a version:
// one that is away may come back as an older program.
const versionFresh = 5 * sampleEvery

// raiseVersion raises the cluster's version when every member says that it knows
// the next.
func (a *Authority) raiseVersion(ctx context.Context, servers map[string]raftstore.Member) {
	if a.machine.Version() >= state.Version {
		return
	}
	for id := range servers {
		s, _, ok := a.clocks.of(id)
		if id != a.cfg.NodeID && (!ok || s.version < state.Version || a.clocks.boot()-s.at > int64(versionFresh)) {
			return
		}
	}
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindRaiseVersion, system()),
		compose: func(int64) (any, error) { return &state.RaiseVersion{Version: state.Version}, nil },
	})
	a.report("raising the cluster's version", err)
}

// clusterError gives what a change of membership can meet its code.
func clusterError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raftstore.ErrQuorum):
		return &Error{Code: api.CodeConflict, Detail: "the voters that would be left and answer are no majority", Hint: "bring a node back first, or use force", Err: err}
	case errors.Is(err, raftstore.ErrLagging):
		return &Error{Code: api.CodeConflict, Detail: "the node does not answer, or has yet to catch up; it becomes a voter when it has", Err: err}
	case errors.Is(err, raftstore.ErrUnknownMember):
		return &Error{Code: api.CodeNotFound, Detail: "no such node", Err: err}
	}
	return serviceError(err)
}

var errAlone = &Error{Code: api.CodeConflict, Detail: "this node is alone", Hint: "start it with an address for peers"}

// ClusterToken makes a single-use token with which one node can join.
func (a *Authority) ClusterToken(ctx context.Context, c Call, req *api.ClusterTokenRequest) (*api.ClusterTokenResponse, error) {
	if a.peers == nil {
		return nil, errAlone
	}
	ttl := time.Duration(req.TTLSeconds) * time.Second
	switch {
	case req.TTLSeconds == 0:
		ttl = DefaultClusterTokenTTL
	case req.TTLSeconds < 0 || req.TTLSeconds > int64(maxClusterTokenTTL/time.Second):
		return nil, invalid("ttl_seconds: at most 7 days")
	}
	token, err := a.joinSecret(c, "a node")
	if err != nil {
		return nil, err
	}
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindAddJoinToken, c),
		compose: func(stamp int64) (any, error) {
			return &state.AddJoinToken{Hash: sha256.Sum256([]byte(token)), Until: stamp + ttl.Milliseconds(), Voter: !req.Replica}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	fingerprint := a.CAFingerprint()
	return &api.ClusterTokenResponse{
		Token: token, CAFingerprint: fmt.Sprintf("%x", fingerprint), Expires: millis(value.(*state.JoinTokenRecord).Until),
	}, nil
}

// JoinCluster gives a new node its place: its record and its copy of the
// cluster key, wrapped, in the log, and a certificate and its peers in the
// answer. The token is the authorization.
func (a *Authority) JoinCluster(ctx context.Context, c Call, req *api.ClusterJoinRequest) (*api.ClusterJoinResponse, error) {
	if a.peers == nil {
		return nil, errAlone
	}
	if len(req.Token) > maxJoinSecret || len(req.PublicKey) != ed25519.PublicKeySize || !capability.ValidName(req.Node, 50) ||
		!ed25519.Verify(req.PublicKey, req.JoinStatement(), req.Proof) {
		return nil, invalid("the request is not signed by the key that it names")
	}
	to, err := seal.RecipientFromBytes(req.Recipient)
	if err != nil {
		return nil, invalid("recipient: 32 bytes")
	}
	cluster := a.machine.Cluster()
	key, under, err := a.keys.sealer()
	if err != nil {
		return nil, serviceError(err)
	}
	wrap := state.SealedKey{Purpose: state.PurposeWrap + req.Node, Incarnation: cluster.Incarnation, Public: req.Recipient, Under: under}
	if wrap.Sealed, err = seal.Wrap(to, label(cluster.ID, &wrap), key); err != nil {
		return nil, invalid("recipient: no key that anything can be wrapped for")
	}
	body := &state.JoinMember{Hash: sha256.Sum256([]byte(req.Token)), Wrap: wrap, Member: state.MemberRecord{
		ID: req.Node, Key: state.PeerKeyDigest(req.PublicKey), Recipient: req.Recipient, Raft: req.Raft, API: req.API, State: state.MemberActive,
	}}
	c.Caller, c.Request = system().Caller, capability.TokenID{} // the same token again is the same request
	if _, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindJoinMember, c),
		compose: func(int64) (any, error) { return body, nil },
	}); err != nil {
		return nil, err
	}
	ca, err := a.keys.issuer()
	if err != nil {
		return nil, serviceError(err)
	}
	chain, err := ca.sign(req.Node, nil, ed25519.PublicKey(req.PublicKey), a.cfg.Clock())
	if err != nil {
		return nil, serviceError(err)
	}
	answer := &api.ClusterJoinResponse{Cluster: a.peers.cluster, Certificate: chain[0], CA: chain[1]}
	answer.Peers = a.clusterPeers(req.Node)
	a.wakeReconcile()
	return answer, nil
}

// member returns a member that is not removed.
func (a *Authority) member(id string) (state.MemberRecord, error) {
	if a.peers == nil {
		return state.MemberRecord{}, errAlone
	}
	r, ok := a.machine.Member(id)
	if !ok || r.State == state.MemberRemoved {
		return r, &Error{Code: api.CodeNotFound, Detail: "no such node"}
	}
	return r, nil
}

// SetVoter gives a node a vote, or takes it away. A node that has yet to catch
// up gets it then; the answer says how it is.
func (a *Authority) SetVoter(ctx context.Context, c Call, id string, voter bool) (*api.NodeStatus, error) {
	a.deciding.Lock()
	defer a.deciding.Unlock()
	r, err := a.member(id)
	if err != nil {
		return nil, err
	}
	if !voter && a.lastVoter(id) {
		return nil, &Error{Code: api.CodeConflict, Detail: "it is the last voter"}
	}
	before := r
	if r.Voter != voter {
		r.Voter = voter
		if _, err := a.setMember(ctx, c, r); err != nil {
			return nil, err
		}
	}
	if voter {
		err = a.store.Promote(ctx, id, false)
	} else if err = a.store.Demote(ctx, id, false); errors.Is(err, raftstore.ErrQuorum) {
		// What was refused must not be made later, when there would be a majority.
		_, back := a.setMember(ctx, c, before)
		a.report("keeping the vote of a node that cannot lose it", back)
	}
	if err != nil && !errors.Is(err, raftstore.ErrNotLeader) { // the next leader goes on
		return nil, clusterError(err)
	}
	return a.nodeStatus(ctx, id)
}

func (a *Authority) lastVoter(id string) bool {
	voters := a.store.Status().Voters
	return len(voters) == 1 && voters[0] == id
}

// RemoveNode removes a node for good: its name and its key never come back.
// Without force it is refused when the rest would lose its majority. One that is
// removed already is not an error: the first answer may have been lost, with the node.
func (a *Authority) RemoveNode(ctx context.Context, c Call, id string, force bool) error {
	a.deciding.Lock()
	defer a.deciding.Unlock()
	r, err := a.member(id)
	switch {
	case r.State == state.MemberRemoved:
		return nil
	case err != nil:
		return err
	case a.lastVoter(id):
		return &Error{Code: api.CodeConflict, Detail: "it is the last voter"}
	}
	before := r
	if r.State == state.MemberActive {
		r.State = state.MemberLeaving
		if _, err := a.setMember(ctx, c, r); err != nil {
			return err
		}
	}
	err = a.takeOut(ctx, c, id, "removed by an operator", force)
	if errors.Is(err, raftstore.ErrQuorum) {
		_, back := a.setMember(ctx, c, before)
		a.report("keeping a node that cannot be removed", back)
	}
	if errors.Is(err, raftstore.ErrNotLeader) {
		return nil // it led: the next leader finishes
	}
	return clusterError(err)
}

// takeOut takes a member that is leaving out of Raft's configuration, and then
// ends it.
func (a *Authority) takeOut(ctx context.Context, c Call, id, reason string, force bool) error {
	if err := a.store.Remove(ctx, id, force); err != nil && !errors.Is(err, raftstore.ErrUnknownMember) {
		return err
	}
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindRemoveMember, c),
		compose: func(int64) (any, error) { return &state.RemoveMember{ID: id, Reason: reason}, nil },
	})
	return err
}

// Lead has a voter lead.
func (a *Authority) Lead(ctx context.Context, id string) (*api.NodeStatus, error) {
	if _, err := a.member(id); err != nil {
		return nil, err
	}
	if err := a.store.TransferLeadership(ctx, id); err != nil {
		return nil, clusterError(err)
	}
	return a.nodeStatus(ctx, id)
}

func (a *Authority) nodeStatus(ctx context.Context, id string) (*api.NodeStatus, error) {
	for _, n := range a.ClusterStatus(ctx).Nodes {
		if n.Node == id {
			return &n, nil
		}
	}
	return nil, &Error{Code: api.CodeNotFound, Detail: "no such node"}
}

// ClusterStatus is the cluster as this node sees it.
func (a *Authority) ClusterStatus(ctx context.Context) *api.ClusterStatus {
	cluster, raft := a.machine.Cluster(), a.store.Status()
	status := &api.ClusterStatus{
		Cluster: cluster.ID, Incarnation: cluster.Incarnation, Version: a.machine.Version(), Node: a.cfg.NodeID,
		Leader: raft.Leader, Term: raft.Term, Nodes: []api.NodeStatus{},
	}
	servers := make(map[string]raftstore.Member)
	for _, m := range a.store.Members(ctx) {
		servers[m.ID] = m
	}
	for _, r := range a.machine.Members() {
		m, in := servers[r.ID]
		n := api.NodeStatus{
			Node: r.ID, State: r.State, Voter: m.Voter, Wanted: r.Voter, Leader: m.Leader, Raft: r.Raft, API: r.API,
			Joined: millis(r.Joined), Answers: in && m.Err == nil, AwaySeconds: int64(a.aways.of(r.ID).Seconds()), Lag: m.Lag, RoundUs: m.RoundTrip.Microseconds(), DiskFull: m.DiskFull,
		}
		switch {
		case m.Err != nil:
			n.Error = m.Err.Error()
		case r.ID == a.cfg.NodeID:
			n.Version, n.SkewMs = state.Version, a.clocks.skew().Milliseconds()
		default:
			if s, skew, ok := a.clocks.of(r.ID); ok {
				n.Version, n.SkewMs = s.version, skew.Milliseconds()
			}
		}
		status.Nodes = append(status.Nodes, n)
	}
	return status
}
