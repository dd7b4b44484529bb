#!/bin/sh
# Attest this machine to a Writ authority with Debian's tpm2-tools, openssl and
# python3, and nothing of Writ's: the protocol of docs/attestation.md, step by step.
#
#   attest-tpm2-tools.sh id                   the device id and the holder key (jkt:…)
#   attest-tpm2-tools.sh enroll POLICY        enroll, with the credential in WRIT_TOKEN_FILE
#   attest-tpm2-tools.sh discharge < TOKEN    print the discharge that the token needs
#
# Environment: WRIT_ADDR (HOST:PORT), WRIT_CA_FINGERPRINT, TPM2TOOLS_TCTI (see
# tpm2-tools), and WRIT_TPM2_DIR, a directory of mode 0700 for what is kept.
set -eu

AK=0x81010a01       # where the two keys are kept in the TPM
HOLDER=0x81010a02

dir=${WRIT_TPM2_DIR:?set it to a directory}
mkdir -p "$dir"
chmod 700 "$dir"
cd "$dir"

quiet() { "$@" > /dev/null; }
flush() { quiet tpm2_flushcontext -t; } # there may be no resource manager

# --- the three keys ------------------------------------------------------------

keys() {
	flush
	if [ -e ready ]; then return; fi
	# The endorsement key, RSA-2048 by the TCG's template L-1, and its certificate.
	quiet tpm2_nvread 0x01c00002 -o ek.der
	quiet tpm2_createek -c ek.ctx -G rsa -u ek.pub
	flush
	# The attestation key: restricted, a child of the endorsement key.
	quiet tpm2_createak -C ek.ctx -c ak.ctx -G ecc256 -g sha256 -s ecdsa -u ak.pub -n ak.name
	flush
	quiet tpm2_evictcontrol -C o -c ak.ctx $AK
	flush
	# The holder key: not restricted, under a storage key.
	quiet tpm2_createprimary -C o -G ecc256 -c storage.ctx
	flush
	quiet tpm2_create -C storage.ctx -G ecc256:ecdsa-sha256 -u holder.pub -r holder.priv \
		-a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign'
	flush
	quiet tpm2_load -C storage.ctx -u holder.pub -r holder.priv -c holder.ctx
	flush
	quiet tpm2_evictcontrol -C o -c holder.ctx $HOLDER
	flush
	: > ready
}

# --- what needs no TPM: JSON, HTTPS, hashes ------------------------------------

cat > writ.py <<'PYTHON'
import base64, hashlib, hmac, json, os, ssl, struct, subprocess, sys, urllib.error, urllib.request

read = lambda name: open(name, "rb").read()
b64 = lambda b: base64.b64encode(b).decode()
url64 = lambda b: base64.urlsafe_b64encode(b).rstrip(b"=").decode()
sha256 = lambda b: hashlib.sha256(b).digest()
unsized = lambda b: b[2:]                      # TPM2B_PUBLIC to TPMT_PUBLIC
name = lambda public: b"\x00\x0b" + sha256(public)
field = lambda b: struct.pack(">I", len(b)) + b

def write(path, b):
    with open(path, "wb") as f:
        f.write(b)

def certificate(der):
    """The first ASN.1 element: NV memory may be padded."""
    assert der[:2] == b"\x30\x82"
    return der[:4 + struct.unpack(">H", der[2:4])[0]]

def post(path, body, token=None):
    """Calls the authority, whose CA's fingerprint is what is trusted."""
    addr = os.environ["WRIT_ADDR"]
    shown = subprocess.run(["openssl", "s_client", "-connect", addr, "-showcerts"],
                           stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    for part in shown.split("-----BEGIN CERTIFICATE-----")[1:]:
        pem = "-----BEGIN CERTIFICATE-----" + part.split("-----END")[0] + "-----END CERTIFICATE-----\n"
        if hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == os.environ["WRIT_CA_FINGERPRINT"]:
            break
    else:
        sys.exit("the authority's CA is not the one that WRIT_CA_FINGERPRINT names")
    request = urllib.request.Request("https://" + addr + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", "Bearer " + token)
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cadata=pem)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        sys.exit("%s: %s" % (path, e.read().decode()))

def caveat(text):
    """The id of the first third-party caveat of a token (macaroon, version 2)."""
    text = text.strip()
    assert text.startswith("writ_")
    b = base64.urlsafe_b64decode(text[5:] + "=" * (-len(text[5:]) % 4))
    at = 1                                     # behind the version

    def varint():
        nonlocal at
        n = shift = 0
        while True:
            c = b[at]; at += 1
            n |= (c & 0x7f) << shift; shift += 7
            if c < 0x80:
                return n

    def section():
        nonlocal at
        fields = {}
        while True:
            kind = varint()
            if kind == 0:
                return fields
            n = varint()
            fields[kind] = b[at:at + n]; at += n

    section()                                  # location and identifier
    while True:
        c = section()                          # 1 location, 2 id, 4 verification id
        if not c:
            sys.exit("the token has no third-party caveat")
        if 4 in c:
            return c[2]

def ident():
    spki = subprocess.run(["openssl", "x509", "-inform", "DER", "-noout", "-pubkey"], input=certificate(read("ek.der")),
                          capture_output=True, check=True).stdout
    spki = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=spki, capture_output=True, check=True).stdout
    public = unsized(read("holder.pub"))
    x, y = public[-66:-34], public[-32:]       # two TPM2B of 32 bytes end it
    jwk = '{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}' % (url64(x), url64(y))
    print("device", hashlib.sha256(spki).hexdigest())
    print("holder", "jkt:" + url64(sha256(jwk.encode())))

def begin(policy):
    request = {"ek_certificate": b64(read("ek.der")), "ak": b64(unsized(read("ak.pub"))), "holder": b64(unsized(read("holder.pub")))}
    token = id = b""
    if policy:
        request["policy"], token = policy, read(os.environ["WRIT_TOKEN_FILE"]).decode().strip()
    else:
        id = caveat(sys.stdin.read())
        request["caveat"] = b64(id)
    challenge = post("/v1/attest/begin", request, token)
    challenge["caveat_hash"] = sha256(id).hex()
    write("challenge.json", json.dumps(challenge).encode())
    for old in ("credential.blob", "secret"):
        if os.path.exists(old):
            os.remove(old)
    if "credential" in challenge:
        credential, secret = base64.b64decode(challenge["credential"]), base64.b64decode(challenge["secret"])
        write("credential.blob", struct.pack(">IIH", 0xBADCC0DE, 1, len(credential)) + credential
              + struct.pack(">H", len(secret)) + secret)
    # What the holder says of itself, and the transcript that everything is for.
    posture = json.dumps({"agent": "tpm2-tools", "version": "5"}).encode()
    write("posture", posture)
    raw = lambda key: base64.b64decode(challenge[key])
    transcript = b"writ/v1/attest"
    for part in (challenge["audience"].encode(), raw("challenge"), raw("nonce"), sha256(id), name(unsized(read("ek.pub"))),
                 name(unsized(read("ak.pub"))), name(unsized(read("holder.pub"))), challenge["policy"].encode()):
        transcript += field(part)
    t = sha256(transcript + struct.pack(">Q", challenge["policy_version"]) + field(sha256(posture)))
    write("transcript", t)
    # tpm2_certify cannot set qualifying data, so TPM2_Certify is sent as it is.
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0) * 2
    body = struct.pack(">III", int(sys.argv[3], 16), int(sys.argv[4], 16), len(auth)) + auth
    body += struct.pack(">H", 32) + sha256(b"certify" + t) + struct.pack(">H", 0x0010)
    write("certify.command", struct.pack(">HII", 0x8002, 10 + len(body), 0x148) + body)
    write("quote.data", sha256(b"quote" + t).hex().encode())
    write("pcrs", ("sha256:" + ",".join(map(str, challenge["pcrs"]))).encode())

def finish():
    challenge, t = json.loads(read("challenge.json")), read("transcript")
    answer = read("certify.answer")
    code, size, attested = struct.unpack(">IIH", answer[6:16])
    if code:
        sys.exit("TPM2_Certify failed: 0x%x" % code)
    values = read("pcr.values")
    request = {
        "challenge": challenge["challenge"], "state": challenge["state"],
        "quote": b64(read("quote.msg")), "quote_signature": b64(read("quote.sig")),
        "pcrs": [b64(values[i:i + 32]) for i in range(0, len(values), 32)],
        "certify": b64(answer[16:16 + attested]), "certify_signature": b64(answer[16 + attested:14 + size]),
        "signature": b64(read("transcript.sig")), "posture": b64(read("posture")),
    }
    if os.path.exists("secret"):
        request["activation"] = b64(hmac.new(read("secret"), t, hashlib.sha256).digest())
    answer = post("/v1/attest/finish", request)
    print(answer.get("discharge") or "enrolled " + answer["device"])

{"id": ident, "begin": lambda: begin(sys.argv[2]), "finish": finish}[sys.argv[1]]()
PYTHON

# --- one attestation -----------------------------------------------------------

attest() {
	keys
	python3 writ.py begin "$1" $HOLDER $AK
	if [ -e credential.blob ]; then
		# The secret comes out only in the TPM of this endorsement key, and for this AK.
		quiet tpm2_createek -c ek.ctx -G rsa -u ek.pub
		flush
		quiet tpm2_startauthsession --policy-session -S session.ctx
		quiet tpm2_policysecret -S session.ctx -c e
		quiet tpm2_activatecredential -c $AK -C ek.ctx -i credential.blob -o secret -P session:session.ctx
		quiet tpm2_flushcontext session.ctx
		flush
	fi
	quiet tpm2_quote -c $AK -l "$(cat pcrs)" -g sha256 -q "$(cat quote.data)" -m quote.msg -s quote.sig
	quiet tpm2_pcrread "$(cat pcrs)" -o pcr.values
	tpm2_send < certify.command > certify.answer
	quiet tpm2_sign -c $HOLDER -g sha256 -s ecdsa -d -o transcript.sig transcript
	flush
	python3 writ.py finish
	rm -f secret
}

case ${1:-} in
id) keys; python3 writ.py id ;;
enroll) attest "${2:?a policy}" ;;
discharge) attest '' ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
