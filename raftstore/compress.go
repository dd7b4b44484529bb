package raftstore

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

// The state in a snapshot is zstd, from where the state machine writes it to
// where the state machine reads it: in the file, on the way to a follower, in
// what Export writes. What lies between need not know. The snapshot's checksum
// is over the compressed bytes, so damage is found before they are decompressed,
// and zstd's own is left out.

// stateWindow is how far back a compressed state refers, and so what reading it
// takes in memory (times two or three), whatever it claims to hold. How much
// comes out is for the state machine to bound, record by record. Only this
// node's own files, its peers and a backup that its owner restores come this far.
const stateWindow = 1 << 20

// compress has write write to w, compressed. It runs on one core and at the
// fastest level: the node has other work.
func compress(w io.Writer, write func(io.Writer) error) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(stateWindow), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	if err := write(z); err != nil {
		return err
	}
	return z.Close()
}

// decompress has read read what compress wrote to r.
func decompress(r io.Reader, read func(io.Reader) error) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(stateWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	return read(z)
}
