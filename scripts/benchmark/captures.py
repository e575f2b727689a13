"""Captures that net_pcap feeds to all gateways alike: plaintext written here, ESP sealed by penstock-testpmd.

The same captures go into every peer, so that Penstock and ipsec-secgw do the same work: 512 packets, one tunnel, AES-128-GCM.
"""

import os
import struct

from lab import Failed

PACKETS = 512
IMIX = [64, 570, 64, 64, 570, 64, 1420, 64, 570, 64, 64, 570]
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)

# As penstock-testpmd makes them for its first tunnel (`--help` tells MACs and addresses).
SPI = 0x1000
KEY = ":".join(f"{octet:02x}" for octet in list(range(16)) + [1, 2, 3, 4])
OUTER = "192.0.2.1"

SECGW = f"""\
sp ipv4 out esp protect {SPI} pri 1 dst 16.0.0.0/24 sport 0:65535 dport 0:65535
sp ipv4 in esp protect {SPI} pri 1 dst 16.0.0.0/24 sport 0:65535 dport 0:65535
sa out {SPI} aead_algo aes-128-gcm aead_key {KEY} mode ipv4-tunnel src {OUTER} dst {OUTER}
sa in {SPI} aead_algo aes-128-gcm aead_key {KEY} mode ipv4-tunnel src {OUTER} dst {OUTER}
rt ipv4 dst {OUTER}/32 port 0
rt ipv4 dst 16.0.0.0/24 port 1
"""
SECGW_BYPASS = f"""\
sp ipv4 out esp bypass pri 1 dst 16.0.0.0/24 sport 0:65535 dport 0:65535
sp ipv4 out esp protect {SPI} pri 1 dst 10.99.0.0/24 sport 0:65535 dport 0:65535
sp ipv4 in esp protect {SPI} pri 1 dst 10.98.0.0/24 sport 0:65535 dport 0:65535
sa out {SPI} aead_algo aes-128-gcm aead_key {KEY} mode ipv4-tunnel src {OUTER} dst {OUTER}
sa in {SPI} aead_algo aes-128-gcm aead_key {KEY} mode ipv4-tunnel src {OUTER} dst {OUTER}
rt ipv4 dst {OUTER}/32 port 0
rt ipv4 dst 16.0.0.0/24 port 0
"""


def checksum(header):
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(number, octets):
    """One Ethernet frame with an IPv4 packet of so many octets."""
    ethernet = bytes.fromhex("020000000001 020000000009 0800")
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, octets, number, 0x4000, 64, 17, 0, bytes([10, 0, 0, 2]), bytes([16, 0, 0, 1]))
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    udp = struct.pack("!HHHH", 1024 + number, 5000, octets - 20, 0)
    return ethernet + header + udp + b"\x5a" * (octets - 28)


def write(path, sizes):
    with open(path, "wb") as file:
        file.write(PCAP_HEADER)
        for number in range(PACKETS):
            frame = packet(number, sizes[number % len(sizes)])
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def count(path):
    """Packets in a capture."""
    with open(path, "rb") as file:
        data = file.read()
    at, packets = len(PCAP_HEADER), 0
    while at + 16 <= len(data):
        at += 16 + struct.unpack_from("<I", data, at + 8)[0]
        packets += 1
    return packets


class Captures:
    """plain-SIZE.pcap and esp-SIZE.pcap in a directory, made when first asked for."""

    def __init__(self, lab):
        self.lab = lab
        self.folder = os.path.join(lab.directory, "pcap")
        os.makedirs(self.folder, exist_ok=True)
        self.config = self.text("secgw.cfg", SECGW)
        self.bypass = self.text("bypass.cfg", SECGW_BYPASS)

    def text(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def plain(self, size):
        path = os.path.join(self.folder, f"plain-{size}.pcap")
        if not os.path.exists(path):
            write(path, IMIX if size == "imix" else [int(size)])
        return path

    def esp(self, size):
        path = os.path.join(self.folder, f"esp-{size}.pcap")
        if not os.path.exists(path):
            vdevs = [f"net_pcap0,rx_pcap={self.plain(size)}", f"net_pcap1,tx_pcap={path}"]
            self.lab.penstock(["--forward-mode", "encap", "--duration", "0.3"], vdevs=vdevs)
            if count(path) != PACKETS:
                raise Failed(f"{path} has {count(path)} packets instead of {PACKETS}")
        return path
