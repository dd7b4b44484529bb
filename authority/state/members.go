package state

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// The kinds of command about the cluster itself: 20 to 39.
const (
	KindSetMember    Kind = 20
	KindRemoveMember Kind = 21
	KindAddJoinToken Kind = 22
	KindJoinMember   Kind = 23
	KindRaiseVersion Kind = 24
)

const (
	// MaxMembers bounds the nodes of a cluster, those that were removed included.
	MaxMembers = 256
	// MaxJoinTokens bounds the join tokens that are neither spent nor expired.
	MaxJoinTokens = 64
	// MaxAddress bounds the address of a node, in bytes.
	MaxAddress = 300
	// MaxJoinTTL is the longest that a join token can be used.
	MaxJoinTTL = 7 * 24 * 60 * 60 * 1000 // ms

	maxNodeID = 50 // bytes
)

// The states of a member.
const (
	MemberActive  = "active"
	MemberLeaving = "leaving" // to be taken out of Raft's configuration
	MemberRemoved = "removed" // its id and its key never come back
)

// MemberRecord is a node of the cluster: who it is, where, and how its peers
// recognize it.
type MemberRecord struct {
	ID        string `cbor:"1,keyasint"`          // for good
	Key       Digest `cbor:"2,keyasint"`          // SHA-256 of the SPKI that it proves to peers
	Recipient []byte `cbor:"3,keyasint"`          // that the cluster key is wrapped for
	Raft      string `cbor:"4,keyasint"`          // host:port for peers
	API       string `cbor:"5,keyasint"`          // host:port for clients; empty: not told
	Voter     bool   `cbor:"6,keyasint"`          // has, or is to have, a vote
	State     string `cbor:"7,keyasint"`          // see above
	Joined    int64  `cbor:"8,keyasint"`          // stamp
	Token     Digest `cbor:"9,keyasint,omitzero"` // hash of the join token that it spent
}

// SetMember stores a member, or what has changed of one: addresses, vote, and
// whether it is leaving. Result: *MemberRecord.
type SetMember struct {
	Member MemberRecord `cbor:"1,keyasint"`
}

// RemoveMember ends a member that is no longer in Raft's configuration; the
// cluster key is not wrapped for it any more. Result: *MemberRecord.
type RemoveMember struct {
	ID     string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

// AddJoinToken records the hash of a join token. Result: *JoinTokenRecord.
type AddJoinToken struct {
	Hash  Digest `cbor:"1,keyasint"` // SHA-256 of the token
	Until int64  `cbor:"2,keyasint"` // Unix ms
	Voter bool   `cbor:"3,keyasint"` // what it is good for: a voter, or a read replica
}

// JoinTokenRecord is a join token that is not spent.
type JoinTokenRecord struct {
	AddJoinToken
	By string `cbor:"32,keyasint"`
}

// JoinMember spends a join token on a new member, for whom the cluster key is
// wrapped. The same node with the same token again gets the same answer.
// Result: *MemberRecord.
type JoinMember struct {
	Hash   Digest       `cbor:"1,keyasint"` // of the token
	Member MemberRecord `cbor:"2,keyasint"`
	Wrap   SealedKey    `cbor:"3,keyasint"`
}

// RaiseVersion raises the cluster's version, once every member knows it. A node
// that does not stops.
type RaiseVersion struct {
	Version uint64 `cbor:"1,keyasint"`
}

// newMemberBody is newBody for the kinds of this file.
func newMemberBody(k Kind) any {
	switch k {
	case KindSetMember:
		return new(SetMember)
	case KindRemoveMember:
		return new(RemoveMember)
	case KindAddJoinToken:
		return new(AddJoinToken)
	case KindJoinMember:
		return new(JoinMember)
	case KindRaiseVersion:
		return new(RaiseVersion)
	}
	return newExpelBody(k)
}

// newMemberResult is newResult for the kinds of this file. Those that are not
// here come to the same when they are made again.
func newMemberResult(k Kind) any {
	if k == KindAddJoinToken {
		return new(JoinTokenRecord)
	}
	return nil
}

// bucketMembers holds, by a letter in front of the key, 'm' the members by id,
// 'j' the join tokens by hash, and 'v' the cluster's version.
var bucketMembers = []byte("members")

var versionKey = []byte{'v'}

func memberKey(id string) []byte      { return append([]byte{'m'}, id...) }
func joinTokenKey(hash Digest) []byte { return append([]byte{'j'}, hash[:]...) }

// cluster is the index over bucketMembers.
type cluster struct {
	members map[string]*MemberRecord // replaced, never changed
	joins   map[Digest]*JoinTokenRecord
	version uint64
	changes uint64 // counts changes to members, on this node
}

func newCluster() cluster {
	return cluster{members: make(map[string]*MemberRecord), joins: make(map[Digest]*JoinTokenRecord)}
}

// load takes in one record of bucketMembers.
func (c *cluster) load(k, v []byte) error {
	switch {
	case len(k) > 1 && k[0] == 'm':
		r := new(MemberRecord)
		if err := decodeStrict(v, r); err != nil {
			return err
		}
		c.members[r.ID] = r
		c.changes++
	case len(k) > 1 && k[0] == 'j':
		r := new(JoinTokenRecord)
		if err := decodeStrict(v, r); err != nil {
			return err
		}
		c.joins[r.Hash] = r
	case string(k) == string(versionKey) && len(v) == 8:
		if c.version = binary.BigEndian.Uint64(v); c.version > Version {
			return fmt.Errorf("%w: the cluster is at version %d, this node knows %d", ErrVersion, c.version, Version)
		}
	default:
		return errors.New("an unknown record about members")
	}
	return nil
}

func (a *applier) dispatchMembers(h *Header, body any) (value any, ok bool, err error) {
	switch b := body.(type) {
	case *SetMember:
		value, err = result(a.setMember(h, b))
	case *RemoveMember:
		value, err = result(a.removeMember(h, b))
	case *AddJoinToken:
		value, err = result(a.addJoinToken(h, b))
	case *JoinMember:
		value, err = result(a.joinMember(h, b))
	case *RaiseVersion:
		err = a.raiseVersion(h, b)
	case *Expel:
		err = a.expel(h, b)
	case *RekeyMember:
		value, err = result(a.rekeyMember(h, b))
	default:
		return nil, false, nil
	}
	return value, true, err
}

func (a *applier) putMember(r *MemberRecord) {
	a.w.put(bucketMembers, memberKey(r.ID), encoded(r))
	a.cluster.members[r.ID] = r
	a.cluster.changes++
}

// checkMember checks a record on its own, and that its key is nobody else's.
func (a *applier) checkMember(r *MemberRecord) error {
	switch {
	case !capability.ValidName(r.ID, maxNodeID):
		return refuse(api.CodeInvalid, "node: 1 to 50 bytes of visible ASCII")
	case r.Key == Digest{} || len(r.Recipient) != 32:
		return refuse(api.CodeInvalid, "the node's keys are missing")
	case !capability.ValidName(r.Raft, MaxAddress) || r.API != "" && !capability.ValidName(r.API, MaxAddress):
		return refuse(api.CodeInvalid, "the node's addresses are missing, or no host:port")
	case r.State != MemberActive && r.State != MemberLeaving:
		return refuse(api.CodeInvalid, "a member is active or leaving")
	}
	for _, id := range sortedKeys(a.cluster.members) {
		other := a.cluster.members[id]
		if id != r.ID && other.Key == r.Key {
			return refuse(api.CodeConflict, "the key is another node's")
		}
	}
	if a.cluster.members[r.ID] == nil && len(a.cluster.members) >= MaxMembers {
		return refuse(api.CodeOverloaded, "the cluster has had too many nodes")
	}
	return nil
}

func (a *applier) setMember(h *Header, b *SetMember) (*MemberRecord, error) {
	r := b.Member
	if err := a.checkMember(&r); err != nil {
		return nil, err
	}
	action := "set-member"
	switch old := a.cluster.members[r.ID]; {
	case old == nil:
		// Only a node by itself, when it first has peers: others join.
		if h.Actor.Name != SystemActor {
			return nil, refuse(api.CodeNotFound, "no such node")
		}
		action, r.Joined = "add-member", h.Stamp
	case old.State == MemberRemoved:
		return nil, refuse(api.CodeConflict, "the node was removed: it joins anew under another name")
	case old.Key != r.Key || string(old.Recipient) != string(r.Recipient):
		return nil, refuse(api.CodeConflict, "a node's keys are for good")
	default:
		r.Joined, r.Token = old.Joined, old.Token
	}
	a.putMember(&r)
	a.audit(h, auditRecord{Action: action, Subject: r.ID, Detail: r.describe()})
	return &r, nil
}

// describe is a member in an audit record.
func (r *MemberRecord) describe() string {
	role := "replica"
	if r.Voter {
		role = "voter"
	}
	return fmt.Sprintf("%s %s raft=%s api=%s key=%x", r.State, role, r.Raft, r.API, r.Key[:8])
}

func (a *applier) removeMember(h *Header, b *RemoveMember) (*MemberRecord, error) {
	old := a.cluster.members[b.ID]
	switch {
	case old == nil:
		return nil, refuse(api.CodeNotFound, "no such node")
	case !validText(b.Reason):
		return nil, refuse(api.CodeInvalid, "reason: 1 to 500 bytes without control characters")
	case old.State == MemberRemoved:
		return old, nil
	case old.State != MemberLeaving:
		return nil, refuse(api.CodeConflict, "the node is not leaving")
	}
	r := *old
	r.State, r.Voter = MemberRemoved, false
	a.putMember(&r)
	a.deleteKey(PurposeWrap+r.ID, 0)
	a.audit(h, auditRecord{Action: "remove-member", Subject: r.ID, Reason: b.Reason})
	return &r, nil
}

func (a *applier) addJoinToken(h *Header, b *AddJoinToken) (*JoinTokenRecord, error) {
	if b.Hash == (Digest{}) || b.Until <= h.Stamp || b.Until > h.Stamp+MaxJoinTTL {
		return nil, refuse(api.CodeInvalid, "the join token is missing or lives too long")
	}
	a.expireJoinTokens(h.Stamp)
	if len(a.cluster.joins) >= MaxJoinTokens {
		return nil, refuse(api.CodeOverloaded, "too many join tokens wait to be used")
	}
	r := &JoinTokenRecord{AddJoinToken: *b, By: h.Actor.Name}
	a.w.put(bucketMembers, joinTokenKey(b.Hash), encoded(r))
	a.cluster.joins[b.Hash] = r
	a.audit(h, auditRecord{Action: "add-join-token", NotAfter: b.Until})
	return r, nil
}

func (a *applier) dropJoinToken(hash Digest) {
	a.w.delete(bucketMembers, joinTokenKey(hash))
	delete(a.cluster.joins, hash)
}

// expireJoinTokens forgets join tokens that ended before t.
func (a *applier) expireJoinTokens(t int64) {
	var ended []Digest
	prefixed(a.w.tx, bucketMembers, []byte{'j'}, func(k, _ []byte) {
		if hash := Digest(k[1:]); a.cluster.joins[hash].Until < t {
			ended = append(ended, hash)
		}
	})
	for _, hash := range ended {
		a.dropJoinToken(hash)
	}
}

func (a *applier) joinMember(h *Header, b *JoinMember) (*MemberRecord, error) {
	// One answer for all, so that tokens cannot be probed.
	spent := refuse(api.CodeUnauthorized, "the join token is wrong, spent or expired")
	if old := a.cluster.members[b.Member.ID]; old != nil && old.State == MemberActive && old.Key == b.Member.Key &&
		subtle.ConstantTimeCompare(old.Token[:], b.Hash[:]) == 1 {
		return old, nil // its answer was lost
	}
	token := a.cluster.joins[b.Hash]
	if token == nil || token.Until <= h.Stamp {
		return nil, spent
	}
	r := b.Member
	r.State, r.Voter, r.Joined, r.Token = MemberActive, token.Voter, h.Stamp, b.Hash
	if err := a.checkMember(&r); err != nil {
		return nil, err
	}
	switch old := a.cluster.members[r.ID]; {
	case old != nil:
		return nil, refuse(api.CodeConflict, "there is, or was, a node of this name: choose another")
	case b.Wrap.Purpose != PurposeWrap+r.ID || b.Wrap.Epoch != 0 || len(b.Wrap.Sealed) == 0 || len(b.Wrap.Sealed) > maxSealed:
		return nil, refuse(api.CodeInvalid, "the cluster key is not wrapped for the node")
	}
	if err := a.sealedNow(&b.Wrap); err != nil {
		return nil, err
	}
	a.dropJoinToken(b.Hash)
	a.putKey(b.Wrap)
	a.putMember(&r)
	a.audit(h, auditRecord{Action: "join-member", Subject: r.ID, Detail: r.describe()})
	return &r, nil
}

// raiseVersion ends a node that does not know the version: it could not share
// the behavior that comes with it.
func (a *applier) raiseVersion(h *Header, b *RaiseVersion) error {
	switch {
	case h.Actor.Name != SystemActor || b.Version <= a.cluster.version:
		return refuse(api.CodeInvalid, "the cluster's version only rises")
	case b.Version > Version:
		panic(fmt.Errorf("%w: the cluster is at version %d, this node knows %d", ErrVersion, b.Version, Version))
	}
	a.w.put(bucketMembers, versionKey, binary.BigEndian.AppendUint64(nil, b.Version))
	a.cluster.version = b.Version
	a.audit(h, auditRecord{Action: "raise-version", Detail: fmt.Sprint(b.Version)})
	return nil
}

// Version returns the cluster's committed version.
func (m *Machine) Version() (v uint64) {
	m.read(func(mem *memory) { v = mem.cluster.version })
	return v
}

// Member returns a member by its id, removed ones included.
func (m *Machine) Member(id string) (r MemberRecord, ok bool) {
	m.read(func(mem *memory) {
		if p := mem.cluster.members[id]; p != nil {
			r, ok = *p, true
		}
	})
	return r, ok
}

// MemberByKey returns who proves the key with this hash, unless it was removed.
func (m *Machine) MemberByKey(key Digest) (r MemberRecord, ok bool) {
	m.read(func(mem *memory) {
		for _, id := range sortedKeys(mem.cluster.members) {
			if p := mem.cluster.members[id]; p.Key == key && p.State != MemberRemoved {
				r, ok = *p, true
			}
		}
	})
	return r, ok
}

// RemovedKey reports whether the key with this hash is of a member that was
// removed.
func (m *Machine) RemovedKey(key Digest) (removed bool) {
	m.read(func(mem *memory) {
		for _, id := range sortedKeys(mem.cluster.members) {
			r := mem.cluster.members[id]
			removed = removed || r.Key == key && r.State == MemberRemoved
		}
	})
	return removed
}

// Members returns the members by id, those that were removed included.
func (m *Machine) Members() (all []MemberRecord) {
	m.read(func(mem *memory) {
		for _, id := range sortedKeys(mem.cluster.members) {
			all = append(all, *mem.cluster.members[id])
		}
	})
	return all
}

// MemberChanges counts the changes of members that this node has seen: when it
// is another, look again.
func (m *Machine) MemberChanges() (n uint64) {
	m.read(func(mem *memory) { n = mem.cluster.changes })
	return n
}
