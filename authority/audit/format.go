package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// File names. All integers in the files are big-endian.
const (
	commitFile     = "commit"
	commitTemp     = "commit.tmp"
	hashesFile     = "hashes"
	indexFile      = "index"
	checkpointFile = "checkpoints"
	segmentPrefix  = "bodies-"
	segmentSuffix  = ".seg"
)

const (
	segmentMagic  = "writseg1"
	segmentHeader = len(segmentMagic) + 8 // and the number of the first record

	frameHeader = 4 + 4 + 8 + 4 // length, records that follow in the batch, Raft index, checksum
	indexEntry  = 8 + 4 + 4     // Raft index, offset in the segment, checksum

	checkpointHeader = 4 + 4 // length, checksum

	commitMagic = "writaud1"
	commitFixed = len(commitMagic) + 2 + 6*8 + tlog.HashSize + sha256.Size // all but the origin
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is CRC-32C over a record's number and then the parts, so that a frame in another place does not pass.
func checksum(n int64, parts ...[]byte) uint32 {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], uint64(n))
	sum := crc32.Update(0, castagnoli, number[:])
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

func segmentName(first int64) string {
	return fmt.Sprintf("%s%016x%s", segmentPrefix, first, segmentSuffix)
}

// parseSegmentName reports whether a file is a segment, and the number of its first record.
func parseSegmentName(name string) (first int64, ok bool) {
	hex, ok := strings.CutPrefix(name, segmentPrefix)
	if !ok {
		return 0, false
	}
	hex, ok = strings.CutSuffix(hex, segmentSuffix)
	if !ok {
		return 0, false
	}
	first, err := strconv.ParseInt(hex, 16, 64)
	return first, err == nil && first >= 0 && first <= MaxSize && segmentName(first) == name
}

func appendSegmentHeader(b []byte, first int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, segmentMagic...), uint64(first))
}

// frame is the header of a record in a segment.
type frame struct {
	length int    // bytes of the record
	more   uint32 // records that follow in the batch
	index  uint64 // Raft
	sum    uint32
}

func appendFrame(b []byte, n int64, more uint32, index uint64, record []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(record)))
	b = binary.BigEndian.AppendUint32(b, more)
	b = binary.BigEndian.AppendUint64(b, index)
	b = binary.BigEndian.AppendUint32(b, checksum(n, b[start:], record))
	return append(b, record...)
}

var errFrame = errors.New("not a record of this log")

// parseFrame reads a frame's header and bounds what it asks for; the checksum is checked by [readFrame].
func parseFrame(b []byte) (frame, error) {
	if len(b) < frameHeader {
		return frame{}, errFrame
	}
	f := frame{
		more:  binary.BigEndian.Uint32(b[4:]),
		index: binary.BigEndian.Uint64(b[8:]),
		sum:   binary.BigEndian.Uint32(b[16:]),
	}
	length := binary.BigEndian.Uint32(b)
	if length == 0 || length > MaxRecord || f.more >= MaxBatch {
		return frame{}, errFrame
	}
	f.length = int(length)
	return f, nil
}

// readFrame reads the record with number n. It returns io.EOF where the segment ends before the frame begins, and errFrame or
// io.ErrUnexpectedEOF for a frame that is damaged. The record is in buf if that is long enough.
func readFrame(r io.Reader, n int64, buf []byte) (frame, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, nil, err
	}
	f, err := parseFrame(header[:])
	if err != nil {
		return frame{}, nil, err
	}
	if cap(buf) < f.length {
		buf = make([]byte, f.length)
	}
	record := buf[:f.length]
	if _, err := io.ReadFull(r, record); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, nil, err
	}
	if checksum(n, header[:frameHeader-4], record) != f.sum {
		return frame{}, nil, errFrame
	}
	return f, record, nil
}

// position is where a record lies, as the index file has it.
type position struct {
	index  uint64 // Raft
	offset uint32 // bytes from the start of the segment
}

func appendPosition(b []byte, n int64, p position) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, p.index)
	b = binary.BigEndian.AppendUint32(b, p.offset)
	return binary.BigEndian.AppendUint32(b, checksum(n, b[start:]))
}

func parsePosition(b []byte, n int64) (position, error) {
	if len(b) != indexEntry || checksum(n, b[:12]) != binary.BigEndian.Uint32(b[12:]) {
		return position{}, errFrame
	}
	return position{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])}, nil
}

func appendCheckpoint(b, msg []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(msg)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(msg, castagnoli))
	return append(b, msg...)
}

// readCheckpoint reads one saved checkpoint, as readFrame does a record.
func readCheckpoint(r io.Reader) ([]byte, error) {
	var header [checkpointHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(header[:])
	if length == 0 || length > MaxCheckpoint {
		return nil, errFrame
	}
	msg := make([]byte, length)
	if _, err := io.ReadFull(r, msg); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if crc32.Checksum(msg, castagnoli) != binary.BigEndian.Uint32(header[4:]) {
		return nil, errFrame
	}
	return msg, nil
}

// commit is what the last Sync made durable.
type commit struct {
	origin      string
	size        int64  // records
	last        uint64 // Raft index of the last record
	first       int64  // first record whose body is here
	segment     int64  // first record of the segment in which the next record would lie
	offset      int64  // bytes of that segment
	checkpoints int64  // bytes of the checkpoints file
	root        Hash
}

func (c commit) encode() []byte {
	b := make([]byte, 0, commitFixed+len(c.origin))
	b = append(b, commitMagic...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.origin)))
	b = append(b, c.origin...)
	for _, v := range []uint64{uint64(c.size), c.last, uint64(c.first), uint64(c.segment), uint64(c.offset), uint64(c.checkpoints)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, c.root[:]...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// parseCommit reads exactly what encode wrote.
func parseCommit(b []byte) (commit, error) {
	if len(b) < commitFixed || len(b) > commitFixed+MaxOrigin || !bytes.HasPrefix(b, []byte(commitMagic)) {
		return commit{}, errors.New("not a commit marker of this version")
	}
	if sum := sha256.Sum256(b[:len(b)-sha256.Size]); !bytes.Equal(sum[:], b[len(b)-sha256.Size:]) {
		return commit{}, errors.New("checksum does not match")
	}
	rest := b[len(commitMagic):]
	length := int(binary.BigEndian.Uint16(rest))
	if len(b) != commitFixed+length {
		return commit{}, errors.New("origin does not fit")
	}
	c := commit{origin: string(rest[2 : 2+length])}
	rest = rest[2+length:]
	c.last = binary.BigEndian.Uint64(rest[8:])
	for i, v := range []*int64{&c.size, nil, &c.first, &c.segment, &c.offset, &c.checkpoints} {
		if v == nil {
			continue
		}
		if *v = int64(binary.BigEndian.Uint64(rest[8*i:])); *v < 0 {
			return commit{}, errors.New("number out of range")
		}
	}
	copy(c.root[:], rest[48:])
	if checkOrigin(c.origin) != nil || c.size > MaxSize || c.first > c.segment || c.segment > c.size || c.offset < int64(segmentHeader) {
		return commit{}, errors.New("numbers contradict each other")
	}
	return c, nil
}
