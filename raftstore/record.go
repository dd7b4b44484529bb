package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// A log record, under its index as 8 bytes, big-endian:
//
//	0   version (1)
//	1   type, as hashicorp/raft numbers them
//	2   term, 8 bytes, big-endian
//	10  when the leader appended it, nanoseconds since 1970, 8 bytes; 0 is none
//	18  length of the extensions, 4 bytes
//	22  extensions, then data
//	-4  CRC-32C of the key and all of the above
//
// Versions are permanent: a new layout gets a new number, and the old one
// stays readable.
const (
	recordVersion = 1
	recordHeader  = 22
	recordTrailer = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errChecksum = errors.New("checksum does not match")
	errFormat   = errors.New("unknown record version")
	errShort    = errors.New("record too short")
)

func indexKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 0, 8), index)
}

func recordSize(l *raft.Log) int {
	return recordHeader + len(l.Extensions) + len(l.Data) + recordTrailer
}

// appendRecord appends l as a record. A time outside the years 1678 to 2262
// becomes none; nothing depends on it.
func appendRecord(b []byte, l *raft.Log) []byte {
	start := len(b)
	var at int64
	if y := l.AppendedAt.Year(); y > 1678 && y < 2262 {
		at = l.AppendedAt.UnixNano()
	}
	b = append(b, recordVersion, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, l.Extensions...)
	b = append(b, l.Data...)
	return binary.BigEndian.AppendUint32(b, recordSum(indexKey(l.Index), b[start:]))
}

// decodeRecord checks rec against index and fills l, which shares no memory
// with it.
func decodeRecord(index uint64, rec []byte, l *raft.Log) error {
	if err := checkRecord(index, rec); err != nil {
		return err
	}
	body := rec[recordHeader : len(rec)-recordTrailer]
	ext := int(binary.BigEndian.Uint32(rec[18:]))
	*l = raft.Log{
		Index: index,
		Term:  binary.BigEndian.Uint64(rec[2:]),
		Type:  raft.LogType(rec[1]),
		Data:  append(make([]byte, 0, len(body)-ext), body[ext:]...),
	}
	if ext > 0 {
		l.Extensions = append([]byte(nil), body[:ext]...)
	}
	if at := int64(binary.BigEndian.Uint64(rec[10:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	return nil
}

// checkRecord verifies version, checksum and lengths.
func checkRecord(index uint64, rec []byte) error {
	if len(rec) < recordHeader+recordTrailer {
		return errShort
	}
	end := len(rec) - recordTrailer
	if recordSum(indexKey(index), rec[:end]) != binary.BigEndian.Uint32(rec[end:]) {
		return errChecksum
	}
	if rec[0] != recordVersion {
		return fmt.Errorf("%w %d", errFormat, rec[0])
	}
	if uint64(binary.BigEndian.Uint32(rec[18:])) > uint64(end-recordHeader) {
		return errShort
	}
	return nil
}

func recordSum(key, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
}

// sealValue appends to a small value the CRC-32C of its key and itself.
func sealValue(key, val []byte) []byte {
	b := append(make([]byte, 0, len(val)+recordTrailer), val...)
	return binary.BigEndian.AppendUint32(b, recordSum(key, val))
}

// openValue undoes sealValue. What it returns shares memory with sealed.
func openValue(key, sealed []byte) ([]byte, error) {
	end := len(sealed) - recordTrailer
	if end < 0 {
		return nil, errShort
	}
	if recordSum(key, sealed[:end]) != binary.BigEndian.Uint32(sealed[end:]) {
		return nil, errChecksum
	}
	return sealed[:end], nil
}
