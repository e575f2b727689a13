#!/usr/bin/python3
"""odd_ike.py ADDRESS cases|mutations|valid: IKE_SA_INIT requests made with scapy, to UDP 500 of a gateway (RFC 7296).

cases      requests that are each wrong in one way: a JSON object a line, {"case": name, "reply": what came back}
mutations  a good request with every octet changed in several ways, cut at every length, every length field wrong, and every
           payload missing, doubled and out of its place: counts them, and the replies by kind
valid      a good request, with the cookie where one is wanted: what came back

A reply is a list of words: payloads by name, notifies by number with their data, such as ["SA", "KE", "Nonce", "N16388"];
null where none came.
"""
import collections
import json
import logging
import os
import random
import select
import socket
import struct
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.contrib import ikev2  # noqa: E402

RANDOM = random.Random(7296)
X25519, P256 = 31, 19
GCM256, PRF384 = (1, 20, 256), (2, 6, None)
NAMES = {33: "SA", 34: "KE", 38: "CERTREQ", 40: "Nonce", 41: "N", 43: "VendorID"}
COOKIE = 16390


def transform(kind, number, bits, last):
    head = struct.pack("!BBHBBH", 0 if last else 3, 0, 12 if bits else 8, kind, 0, number)
    return head + (struct.pack("!HH", 0x800E, bits) if bits else b"")


def proposal(transforms):
    parts = [transform(*each, last=at == len(transforms) - 1) for at, each in enumerate(transforms)]
    body = b"".join(parts)
    return struct.pack("!BBHBBBB", 0, 0, 8 + len(body), 1, 1, 0, len(parts)) + body


def security(group=X25519, cipher=GCM256):
    return 33, proposal([cipher, PRF384, (4, group, None)])


def key(group=X25519, octets=32):
    return 34, struct.pack("!HH", group, 0) + RANDOM.randbytes(octets)


def nonce(octets=32):
    return 40, RANDOM.randbytes(octets)


def notify(number, data=b""):
    return 41, struct.pack("!BBH", 0, 0, number) + data


def message(payloads, spi=None, version=0x20, exchange=34, flags=0x08, number=0, responder=bytes(8), critical=()):
    body = b""
    for at, (_, content) in enumerate(payloads):
        following = payloads[at + 1][0] if at + 1 < len(payloads) else 0
        body += struct.pack("!BBH", following, 0x80 if at in critical else 0, 4 + len(content)) + content
    # The header by scapy: another mind's reading of the format.
    head = ikev2.IKEv2(init_SPI=spi or RANDOM.randbytes(8), resp_SPI=responder, next_payload=payloads[0][0] if payloads else 0,
                       version=version, exch_type=exchange, flags=flags, id=number, length=28 + len(body))
    return bytes(head)[:28] + body


def good():
    return [security(), key(), nonce()]


def words(reply):
    """Payloads of a reply; read by hand, since scapy takes what is unknown to it for noise."""
    found, kind, rest = [], reply[16], reply[28:]
    while kind and len(rest) >= 4:
        following, _, length = struct.unpack("!BBH", rest[:4])
        content = rest[4:length]
        if kind == 41:
            number = struct.unpack("!H", content[2:4])[0]
            data = content[4 + content[1]:]
            found.append(f"N{number}" + (f":{data.hex()}" if number < 16384 and data else ""))
        else:
            found.append(NAMES.get(kind, str(kind)))
        kind, rest = following, rest[max(length, 4):]
    return found


class Peer:
    def __init__(self, address):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((address, 500))

    def ask(self, request, seconds=1.5):
        self.socket.send(request)
        while select.select([self.socket], [], [], seconds)[0]:
            reply = self.socket.recv(65535)
            if reply[:8] == request[:8]:
                scapy = ikev2.IKEv2(reply)
                assert scapy.init_SPI == request[:8] and scapy.length == len(reply), scapy.summary()
                return reply
        return None

    def drain(self, seconds):
        while select.select([self.socket], [], [], seconds)[0]:
            yield self.socket.recv(65535)


def cases(peer):
    sa, ke, ni = good()
    vendors = [(43, os.urandom(16)), (43, b""), (43, b"\xff" * 200)]
    tests = {
        "good": message(good()),
        "vendor IDs": message(good() + vendors),
        "reserved flags and minor version": message(good(), version=0x27, flags=0xC8 & ~0x20 | 0x07),
        "unknown payload": message(good() + [(200, b"abcd")]),
        "unknown critical payload": message(good() + [(200, b"abcd")], critical=[3]),
        "known critical payload": message(good(), critical=[0, 1, 2]),
        "unknown notify": message(good() + [notify(40960, b"x"), notify(12345)]),
        "another group": message([security(P256), key(P256, 64), ni]),
        "key exchange of another group": message([(33, proposal([GCM256, PRF384, (4, X25519, None), (4, 14, None)])),
                                                  key(14, 256), ni]),
        "group too short": message([sa, key(octets=31), ni]),
        "zero public value": message([sa, (34, struct.pack("!HH", X25519, 0) + bytes(32)), ni]),
        "another cipher": message([security(cipher=(1, 3, None)), ke, ni]),
        "no SA": message([ke, ni]),
        "no KE": message([sa, ni]),
        "no nonce": message([sa, ke]),
        "nonce of 15 octets": message([sa, ke, nonce(15)]),
        "nonce of 257 octets": message([sa, ke, nonce(257)]),
        "nonce of 256 octets": message([sa, ke, nonce(256)]),
        "no payload": message([]),
        "version 3": message(good(), version=0x30),
        "version 1": message(good(), version=0x10, exchange=2, flags=0),
        "a reply that nobody asked for": message(good(), flags=0x20),
        "from a responder": message(good(), flags=0x00),
        "message ID 1": message(good(), number=1),
        "responder SPI set": message(good(), responder=b"responde"),
        "initiator SPI zero": message(good(), spi=bytes(8)),
        "IKE_AUTH out of nothing": message([(46, RANDOM.randbytes(64))], exchange=35, number=1, responder=b"responde"),
        "INFORMATIONAL out of nothing": message([(46, RANDOM.randbytes(64))], exchange=37, responder=b"responde"),
        "CREATE_CHILD_SA in the clear": message(good(), exchange=36),
        "unknown exchange": message(good(), exchange=240),
        "header only, cut": message(good())[:20],
        "length of another message": message(good())[:-4],
    }
    # Whoever is unknown yet must be looked for with ARP first.
    peer.ask(message(good()), 5)
    for name, request in tests.items():
        reply = peer.ask(request, 0.8)
        print(json.dumps({"case": name, "reply": reply and words(reply)}))


def broken():
    """A good request, broken in every way that one change can break it; each with an SPI of its own."""
    def base():
        return bytearray(message(good() + [notify(16388, RANDOM.randbytes(20)), (43, b"scapy")]))

    size = len(base())
    for at in range(8, size):
        for change in (0x00, 0x01, 0x7F, 0x80, 0xFF):
            octets = base()
            octets[at] ^= change or octets[at]
            yield octets
    for length in range(size):
        yield base()[:length]
    for length in range(0, 2 * size):
        octets = base()
        octets[24:28] = struct.pack("!I", length)
        yield octets
    for extra in (1, 3, 4, 100, 60000):
        yield base() + bytes(extra)
    payloads = good() + [notify(16388, bytes(20))]
    for at in range(len(payloads)):
        yield message(payloads[:at] + payloads[at + 1:])
        yield message(payloads + [payloads[at]])
        yield message([payloads[at]] * 40)
        yield message(payloads[at:] + payloads[:at])
    for kind in range(256):
        yield message(good() + [(kind, RANDOM.randbytes(8))])
        yield message([(kind, b"")] + good())
    for count in range(0, 256, 15):
        octets = bytearray(message(good()))
        octets[28 + 4 + 7] = count
        yield octets
    for _ in range(500):
        yield RANDOM.randbytes(RANDOM.randrange(1, 1200))


def mutations(peer):
    replies, sent = collections.Counter(), 0
    for octets in broken():
        try:
            peer.socket.send(bytes(octets))
        except ConnectionRefusedError:
            replies["refused by the kernel"] += 1
        sent += 1
        for reply in peer.drain(0.0005):
            replies["+".join(words(reply)) or "empty"] += 1
    for reply in peer.drain(1):
        replies["+".join(words(reply)) or "empty"] += 1
    print(json.dumps({"sent": sent, "replies": replies}))


def valid(peer):
    spi, payloads = RANDOM.randbytes(4) + os.urandom(4), good()
    reply = peer.ask(message(payloads, spi=spi))
    if reply and words(reply) == [f"N{COOKIE}"]:
        # The data of the one notify: the cookie.
        payloads = [notify(COOKIE, reply[28 + 8:])] + payloads
        reply = peer.ask(message(payloads, spi=spi))
    print(json.dumps({"reply": reply and words(reply), "cookie": len(payloads) > 3}))


{"cases": cases, "mutations": mutations, "valid": valid}[sys.argv[2]](Peer(sys.argv[1]))
