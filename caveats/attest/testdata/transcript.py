"""Computes the golden transcript of TestTranscriptGolden from its description alone."""

import hashlib, hmac, struct


def sha(b):
    return hashlib.sha256(b).digest()


def field(b):
    return struct.pack(">I", len(b)) + b


name = lambda b: b"\x00\x0b" + bytes([b]) * 32
t = sha(
    b"writ/v1/attest"
    + field(b"corp")
    + field(b"\x01" * 16)
    + field(b"\x02" * 32)
    + field(sha(b"a caveat id"))
    + field(name(3))
    + field(name(4))
    + field(name(5))
    + field(b"prod")
    + struct.pack(">Q", 7)
    + field(sha(b'{"agent":"agent"}'))
)
print("T", t.hex())
print("quote", sha(b"quote" + t).hex())
print("certify", sha(b"certify" + t).hex())
print("activation", hmac.new(b"\x06" * 32, t, hashlib.sha256).hexdigest())
