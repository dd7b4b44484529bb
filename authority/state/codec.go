package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// ErrUnknownCommand is what a node stops with when it meets a command that it
// cannot read in full: another version wrote it, and to skip it would be to
// diverge.
var ErrUnknownCommand = errors.New("state: unknown command")

// The encoding of a log entry is permanent: a version byte, then commands, each
// as its length and
//
//	kind (2 bytes, big-endian) ‖ length of the header ‖ header ‖ body
//
// with lengths as minimal uvarints. Header and body, and every record of the
// state, are the types of this package in CBOR, deterministically encoded (RFC
// 8949 section 4.2.1): a third as large as JSON, and read and written in a
// fraction of the time, which every node takes for every command. A struct is a
// map from its fields' numbers, which are permanent: append, never reorder. A
// struct that embeds another numbers its own from 32.
const entryVersion = 2

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

// must is for options that are written down here.
func must[T any](v T, err error) T {
	if err != nil {
		panic("state: " + err.Error())
	}
	return v
}

// MaxCommands bounds the commands of one entry.
const MaxCommands = 512

// newBody returns an empty body for the kind, or nil.
func newBody(k Kind) any {
	switch k {
	case KindInit:
		return new(Init)
	case KindIssue:
		return new(Issue)
	case KindRevoke:
		return new(Revoke)
	case KindLease:
		return new(Lease)
	case KindReturn:
		return new(Return)
	case KindExpire:
		return new(Expire)
	case KindAddEpoch:
		return new(AddEpoch)
	case KindRekey:
		return new(Rekey)
	case KindAddService:
		return new(AddService)
	case KindJoinService:
		return new(JoinService)
	case KindRemoveService:
		return new(RemoveService)
	case KindSetKey:
		return new(SetKey)
	case KindCheckHash:
		return new(CheckHash)
	case KindReincarnate:
		return new(Reincarnate)
	}
	if body := newAttestBody(k); body != nil {
		return body
	}
	if body := newReviveBody(k); body != nil {
		return body
	}
	return newMemberBody(k)
}

// EncodeCommand encodes one command; body is a pointer to the struct of h.Kind.
// What it returns, DecodeCommand reads. Errors: ErrUnknownCommand.
func EncodeCommand(h Header, body any) ([]byte, error) {
	if want := newBody(h.Kind); want == nil || reflect.TypeOf(want) != reflect.TypeOf(body) {
		return nil, fmt.Errorf("%w: kind %d with a body of %T", ErrUnknownCommand, h.Kind, body)
	}
	head, err := marshal(&h)
	if err != nil {
		return nil, err
	}
	tail, err := marshal(body)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, 2+binary.MaxVarintLen32+len(head)+len(tail))
	b = binary.BigEndian.AppendUint16(b, uint16(h.Kind))
	b = binary.AppendUvarint(b, uint64(len(head)))
	b = append(append(b, head...), tail...)
	// What a node could not read would stop every node, again at each start:
	// text that is no UTF-8, for one, does not come back as it was.
	if _, _, err := DecodeCommand(b); err != nil {
		return nil, err
	}
	return b, nil
}

// EncodeEntry makes a log entry of commands that EncodeCommand encoded: at
// least one, at most MaxCommands.
func EncodeEntry(commands ...[]byte) ([]byte, error) {
	if len(commands) == 0 || len(commands) > MaxCommands {
		return nil, fmt.Errorf("%w: an entry of %d commands", ErrUnknownCommand, len(commands))
	}
	n := 1
	for _, c := range commands {
		n += binary.MaxVarintLen32 + len(c)
	}
	b := append(make([]byte, 0, n), entryVersion)
	for _, c := range commands {
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	return b, nil
}

// DecodeEntry splits a log entry, strictly. Errors: ErrUnknownCommand.
func DecodeEntry(entry []byte) ([][]byte, error) {
	if len(entry) < 2 || entry[0] != entryVersion {
		return nil, fmt.Errorf("%w: entry of another version", ErrUnknownCommand)
	}
	rest := entry[1:]
	var commands [][]byte
	for len(rest) > 0 {
		var c []byte
		var err error
		if c, rest, err = cutField(rest); err != nil {
			return nil, err
		}
		if commands = append(commands, c); len(commands) > MaxCommands {
			return nil, fmt.Errorf("%w: too many commands in an entry", ErrUnknownCommand)
		}
	}
	return commands, nil
}

// DecodeCommand decodes one command, strictly: what it accepts, EncodeCommand
// writes exactly so. Errors: ErrUnknownCommand.
func DecodeCommand(command []byte) (Header, any, error) {
	var h Header
	if len(command) < 2 {
		return h, nil, fmt.Errorf("%w: short", ErrUnknownCommand)
	}
	kind := Kind(binary.BigEndian.Uint16(command))
	body := newBody(kind)
	if body == nil {
		return h, nil, fmt.Errorf("%w: kind %d", ErrUnknownCommand, kind)
	}
	head, tail, err := cutField(command[2:])
	if err != nil {
		return h, nil, err
	}
	if err := errors.Join(decodeStrict(head, &h), decodeStrict(tail, body)); err != nil {
		return Header{}, nil, fmt.Errorf("%w: kind %d: %w", ErrUnknownCommand, kind, err)
	}
	if h.Kind != kind {
		return Header{}, nil, fmt.Errorf("%w: kind %d says it is %d", ErrUnknownCommand, kind, h.Kind)
	}
	return h, body, nil
}

func cutField(b []byte) (field, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || size > 1 && b[size-1] == 0 || n > uint64(len(b)-size) {
		return nil, nil, fmt.Errorf("%w: length", ErrUnknownCommand)
	}
	return b[size : size+int(n)], b[size+int(n):], nil
}

// marshal encodes v, a pointer.
func marshal(v any) ([]byte, error) {
	if h, ok := v.(byHand); ok {
		return h.appendTo(make([]byte, 0, 512)), nil
	}
	return encoding.Marshal(v)
}

// decode reads into v, a pointer.
func decode(b []byte, v any) error {
	h, ok := v.(byHand)
	if !ok {
		return decoding.Unmarshal(b, v)
	}
	r := reader{b: b}
	if h.readFrom(&r); r.err == nil && len(r.b) != 0 {
		r.fail()
	}
	return r.err
}

// decodeStrict reads what the encoder writes for v, and nothing else. So
// unknown and duplicate fields, other spellings and trailing bytes are refused.
func decodeStrict(b []byte, v any) error {
	if err := decode(b, v); err != nil {
		return err
	}
	if _, strict := v.(byHand); strict {
		return nil
	}
	again, err := encoding.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return errNotOurs
	}
	return nil
}

// encoded is what the state keeps of v: of types of this package, which always encode.
func encoded(v any) []byte { return must(marshal(v)) }

// mustDecode decodes what the state kept; failing is corruption.
func mustDecode(b []byte, v any) {
	if err := decode(b, v); err != nil {
		panic("state: corrupt: " + err.Error())
	}
}
