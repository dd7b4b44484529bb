package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// A bbolt file begins with two meta pages, written in turn: a 16-byte page
// header, then what metaPage holds, in the byte order of the machine, with an
// FNV-1a of it at the end (bbolt v1.5.0, internal/common/meta.go).
const (
	metaMagic      = 0xED0CDAED
	metaVersion    = 2
	metaFlag       = 0x04
	metaBody       = 56 // bytes under the checksum
	pageHeaderSize = 16
	minPageSize    = 512
	maxPageSize    = 64 << 10
)

type metaPage struct {
	pageSize uint32
	pages    uint64 // high-water mark
	txid     uint64
}

// checkMeta refuses a bbolt file of which either meta page is invalid. bbolt
// itself opens such a file on the transaction before, without a word: a vote
// would be forgotten, and could be cast again. One commit writes one of the
// two, so they are exactly one transaction apart.
func checkMeta(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m0, err := readMeta(f, 0, 0)
	if err != nil {
		return metaError(path, 0, err)
	}
	m1, err := readMeta(f, int64(m0.pageSize), 1)
	if err != nil {
		return metaError(path, 1, err)
	}
	switch {
	case m0.pageSize != m1.pageSize:
		return &Corruption{path, "the meta pages disagree about the page size"}
	case m0.txid+1 != m1.txid && m1.txid+1 != m0.txid:
		return &Corruption{path, fmt.Sprintf("the meta pages are of transactions %d and %d, which are not neighbors", m0.txid, m1.txid)}
	case max(m0.pages, m1.pages) > uint64(info.Size())/uint64(m0.pageSize):
		return &Corruption{path, fmt.Sprintf("file of %d bytes is shorter than its %d pages", info.Size(), max(m0.pages, m1.pages))}
	}
	return nil
}

func metaError(path string, page int, err error) error {
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return err // the disk, and not what is on it
	}
	return &Corruption{path, fmt.Sprintf("meta page %d: %v", page, err)}
}

func readMeta(r io.ReaderAt, off int64, id uint64) (metaPage, error) {
	var b [pageHeaderSize + metaBody + 8]byte
	if _, err := r.ReadAt(b[:], off); err != nil {
		return metaPage{}, err
	}
	ne := binary.NativeEndian
	body := b[pageHeaderSize:]
	h := fnv.New64a()
	h.Write(body[:metaBody])
	m := metaPage{pageSize: ne.Uint32(body[8:]), pages: ne.Uint64(body[40:]), txid: ne.Uint64(body[48:])}
	switch {
	case ne.Uint32(body) != metaMagic:
		return m, errors.New("wrong magic number")
	case ne.Uint32(body[4:]) != metaVersion:
		return m, errors.New("wrong version")
	case ne.Uint64(body[metaBody:]) != h.Sum64():
		return m, errChecksum
	case m.pageSize < minPageSize || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0:
		return m, errors.New("impossible page size")
	case ne.Uint64(b[:]) != id || ne.Uint16(b[8:]) != metaFlag || m.txid%2 != id:
		return m, errors.New("not the meta page that belongs here")
	}
	return m, nil
}
