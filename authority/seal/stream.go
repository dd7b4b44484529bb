package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// A sealed stream is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015) as age has it:
//
//	salt (32 bytes) ‖ chunks, each length (4 bytes, big-endian; the highest bit: it is the last) ‖ AES-256-GCM of at most 64 KiB
//
// under HKDF-SHA256(cluster key, salt, "writ/v1/stream" ‖ label ‖ SHA-256(context)). A nonce is the chunk's number (11 bytes) and 1
// for the last or 0, so that no chunk can be cut off, added, moved or repeated.
const (
	tagStream   = "writ/v1/stream"
	streamChunk = 64 << 10
	streamSalt  = 32
	streamLast  = 1 << 31
)

// streamCipher numbers the chunks of one stream.
type streamCipher struct {
	aead  cipher.AEAD
	nonce [nonceSize]byte
	chunk uint64
}

func (k *ClusterKey) stream(l Label, salt, context []byte) (*streamCipher, error) {
	info, err := l.append(nil, tagStream)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(context)
	info = append(info, sum[:]...)
	s := new(streamCipher)
	err = k.box.use(func(key []byte) error {
		derived, err := hkdf.Key(sha256.New, key, salt, string(info), KeySize)
		if err != nil {
			return err
		}
		defer clear(derived)
		s.aead, err = newGCM(derived)
		return err
	})
	return s, err
}

// next is the nonce of the next chunk.
func (s *streamCipher) next(last bool) []byte {
	binary.BigEndian.PutUint64(s.nonce[3:11], s.chunk)
	s.nonce[nonceSize-1] = 0
	if last {
		s.nonce[nonceSize-1] = 1
	}
	s.chunk++
	return s.nonce[:]
}

// SealStream returns a writer that seals what is written to it, of any length, to w; Close ends the stream and leaves w open. To
// open it takes the label and the context, of which none is stored.
func (k *ClusterKey) SealStream(rand io.Reader, w io.Writer, l Label, context []byte) (io.WriteCloser, error) {
	salt := make([]byte, streamSalt)
	if _, err := io.ReadFull(rand, salt); err != nil {
		return nil, fmt.Errorf("reading randomness: %w", err)
	}
	s, err := k.stream(l, salt, context)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(salt); err != nil {
		return nil, err
	}
	return &streamWriter{w: w, s: s, plain: make([]byte, 0, streamChunk)}, nil
}

type streamWriter struct {
	w      io.Writer
	s      *streamCipher
	plain  []byte // not sealed yet
	sealed []byte
	err    error
}

// Write seals b.
func (w *streamWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 && w.err == nil {
		if len(w.plain) == streamChunk {
			w.flush(false) // only now is it known not to be the last
		}
		k := copy(w.plain[len(w.plain):streamChunk], b)
		w.plain, b, n = w.plain[:len(w.plain)+k], b[k:], n+k
	}
	return n, w.err
}

func (w *streamWriter) flush(last bool) {
	head := uint32(len(w.plain) + tagSize)
	if last {
		head |= streamLast
	}
	w.sealed = binary.BigEndian.AppendUint32(w.sealed[:0], head)
	w.sealed = w.s.aead.Seal(w.sealed, w.s.next(last), w.plain, nil)
	w.plain = w.plain[:0]
	if _, err := w.w.Write(w.sealed); err != nil {
		w.err = err
	}
}

// Close ends the stream.
func (w *streamWriter) Close() error {
	if w.err == nil {
		w.flush(true)
		if w.err == nil {
			w.err = ErrDestroyed // nothing can follow
			return nil
		}
	}
	return w.err
}

// OpenStream reads the salt from r and returns a reader of what SealStream was given. Nothing is returned of a chunk before it is known
// to be genuine; that it was all is known only at [io.EOF], and r must end there too. Errors: [ErrMalformed], [ErrRefused],
// [ErrDestroyed], and those of r.
func (k *ClusterKey) OpenStream(r io.Reader, l Label, context []byte) (io.Reader, error) {
	salt := make([]byte, streamSalt)
	if _, err := io.ReadFull(r, salt); err != nil {
		return nil, fmt.Errorf("%w: sealed stream: %w", ErrMalformed, err)
	}
	s, err := k.stream(l, salt, context)
	if err != nil {
		return nil, err
	}
	return &streamReader{r: r, s: s}, nil
}

type streamReader struct {
	r     io.Reader
	s     *streamCipher
	plain []byte // opened and not read yet
	buf   []byte
	last  bool
	err   error
}

// Read returns what was sealed.
func (r *streamReader) Read(b []byte) (int, error) {
	for len(r.plain) == 0 && r.err == nil {
		r.err = r.open()
	}
	if len(r.plain) == 0 {
		return 0, r.err
	}
	n := copy(b, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

func (r *streamReader) open() error {
	var head [4]byte
	_, err := io.ReadFull(r.r, head[:])
	switch {
	case r.last && err == io.EOF:
		return io.EOF
	case r.last && err == nil:
		return fmt.Errorf("%w: sealed stream: more after its end", ErrMalformed)
	case err != nil:
		return fmt.Errorf("%w: sealed stream: cut off: %w", ErrMalformed, err)
	}
	n := binary.BigEndian.Uint32(head[:])
	r.last = n&streamLast != 0
	n &^= streamLast
	if n < tagSize || n > streamChunk+tagSize || !r.last && n != streamChunk+tagSize {
		return fmt.Errorf("%w: sealed stream: a chunk of %d bytes", ErrMalformed, n)
	}
	if r.buf == nil {
		r.buf = make([]byte, streamChunk+tagSize)
	}
	if _, err := io.ReadFull(r.r, r.buf[:n]); err != nil {
		return fmt.Errorf("%w: sealed stream: cut off: %w", ErrMalformed, err)
	}
	if r.plain, err = r.s.aead.Open(r.buf[:0], r.s.next(r.last), r.buf[:n], nil); err != nil {
		r.plain = nil
		return ErrRefused
	}
	return nil
}
