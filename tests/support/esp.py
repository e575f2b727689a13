#!/usr/bin/python3
"""Independent eyes on ESP: makes packets with scapy, opens packets with scapy and again with a plain AES-GCM.

esp.py make  KEY SPI MODE ETHER-SRC ETHER-DST OUT.pcap INNER.json LARGEST   inner packets of every size from 20 octets to
                                                                            LARGEST
esp.py open  KEY SPI MODE IN.pcap                                   opens what IN.pcap holds of this SPI, prints JSON

KEY: hexadecimal AES key and 4 octets of salt. MODE: esp, esn, udp or udp-esn. Outer addresses 192.0.2.1 to 192.0.2.2 and
inner ones 10.1.0.2 to 10.2.0.2 where packets are made. RFC 4303, 4106, 3948.
"""
import json
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.all import IP, UDP, Ether, PcapWriter, Raw, rdpcap
from scapy.layers.ipsec import ESP, SecurityAssociation

# Any number that no kernel knows, so that nobody answers: RFC 3692 keeps it for experiments.
EXPERIMENT = 253


def association(key, spi, mode, first=1):
    header = {"nat_t_header": UDP(sport=4500, dport=4500)} if mode.startswith("udp") else {}
    return SecurityAssociation(
        ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=key, seq_num=first, esn_en=mode.endswith("esn"), esn=0,
        tunnel_header=IP(src="192.0.2.1", dst="192.0.2.2"), **header)


def make(key, spi, mode, source, destination, out, inner_out, largest):
    sa, inner = association(key, spi, mode), []
    writer = PcapWriter(out, linktype=1, sync=False)
    for number, size in enumerate(range(20, int(largest) + 1), 1):
        payload = bytes((size * 7 + at) & 255 for at in range(size - 20))
        packet = IP(bytes(IP(src="10.1.0.2", dst="10.2.0.2", proto=EXPERIMENT, id=size, ttl=64) / Raw(payload)))
        sealed = sa.encrypt(packet, iv=struct.pack("!Q", number))
        if mode.startswith("udp"):
            # scapy 2.5 leaves lengths from before encryption.
            del sealed[UDP].len, sealed[IP].len, sealed[IP].chksum
            sealed[UDP].chksum = 0
        frame = Ether(src=source, dst=destination) / sealed
        # A time of its own: scapy rounds that of the clock, once in a million times up to 1,000,000 microseconds of a second.
        frame.time = number
        writer.write(frame)
        inner.append(bytes(packet).hex())
    writer.close()
    json.dump(inner, open(inner_out, "w"))


def sealed_octets(packet):
    """The ESP packet inside an IP packet, plain or in UDP 4500."""
    if packet.proto == 50:
        return bytes(packet.payload)
    if packet.proto == 17 and packet[UDP].dport == 4500:
        octets = bytes(packet[UDP].payload)
        return octets if len(octets) > 8 and octets[:4] != bytes(4) else None
    return None


def open_plain(key, mode, octets):
    """RFC 4303 and 4106 by hand, on another library than scapy's ESP: inner packet and whether all around it is right."""
    spi, sequence = struct.unpack("!II", octets[:8])
    high = struct.unpack("!Q", octets[8:16])[0] >> 32
    header = struct.pack("!III", spi, high, sequence) if mode.endswith("esn") else octets[:8]
    clear = AESGCM(key[:-4]).decrypt(key[-4:] + octets[8:16], octets[16:], header)
    padding, next_header = clear[-2], clear[-1]
    assert next_header == 4, f"next header {next_header}"
    assert len(clear) % 4 == 0, f"{len(clear)} octets are not aligned"
    assert clear[-2 - padding:-2] == bytes(range(1, padding + 1)), "padding is not 1, 2, 3 ..."
    return sequence, clear[:-2 - padding]


def open_all(key, spi, mode, file):
    sa, opened = association(key, spi, mode), []
    for frame in rdpcap(file):
        octets = sealed_octets(frame[IP]) if IP in frame else None
        if octets is None or struct.unpack("!I", octets[:4])[0] != spi:
            continue
        outer = frame[IP]
        assert outer.len == len(bytes(outer)), "outer length"
        assert IP(bytes(outer)[:20] + bytes(0)).chksum == checksum(bytes(outer)[:20]), "outer checksum"
        assert outer.proto == (17 if mode.startswith("udp") else 50), "outer protocol"
        if outer.proto == 17:
            assert outer[UDP].chksum == 0 and outer[UDP].len == len(octets) + 8, "UDP header"
        sequence, inner = open_plain(key, mode, octets)
        by_scapy = sa.decrypt(IP(bytes(outer)), verify=True)
        assert bytes(by_scapy) == inner, "scapy sees another packet"
        opened.append({"sequence": sequence, "inner": inner.hex()})
    json.dump(opened, sys.stdout)


def checksum(header):
    words = struct.unpack("!10H", header[:10] + bytes(2) + header[12:])
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


command, key, spi, mode = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3], 0), sys.argv[4]
{"make": make, "open": open_all}[command](key, spi, mode, *sys.argv[5:])
