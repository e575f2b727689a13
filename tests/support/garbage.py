#!/usr/bin/python3
"""garbage.py MAC COUNT OUT.pcap SPI...: frames to MAC that nobody should send, the same at every run.

A sixth each: noise of any kind, noise as IPv4, IPv4 with a wrong checksum, ESP, ESP too short, and UDP 4500. Every third ESP
packet has one of the SPIs, the others guess.
"""
import random
import struct
import sys

SPIS = [int(spi, 0) for spi in sys.argv[4:]]


def checksum(header):
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(protocol, payload, wrong=False):
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0,
                         bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
    right = checksum(header)
    return header[:10] + struct.pack("!H", right ^ 0x5555 if wrong else right) + header[12:] + payload


def esp(random, short):
    spi = random.choice(SPIS) if random.random() < 1 / 3 else random.getrandbits(32)
    return struct.pack("!II", spi, random.getrandbits(32)) + random.randbytes(
        random.randrange(0, 24) if short else 4 * random.randrange(7, 340))


random = random.Random(20240229)
mac, count = bytes(int(octet, 16) for octet in sys.argv[1].split(":")), int(sys.argv[2])
with open(sys.argv[3], "wb") as out:
    out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    for number in range(count):
        ethernet = mac + bytes([2, 0, 0, 0, 0xEE, 1])
        kind = number % 6
        if kind == 0:
            frame = ethernet + random.randbytes(random.randrange(2, 1500))
        elif kind == 1:
            frame = ethernet + b"\x08\x00" + random.randbytes(random.randrange(0, 1480))
        elif kind == 2:
            frame = ethernet + b"\x08\x00" + ipv4(50, esp(random, False), wrong=True)
        elif kind in (3, 4):
            frame = ethernet + b"\x08\x00" + ipv4(50, esp(random, kind == 4))
        else:
            payload = esp(random, random.random() < 0.5)
            udp = struct.pack("!HHHH", 4500, 4500, 8 + len(payload), 0)
            frame = ethernet + b"\x08\x00" + ipv4(17, udp + payload)
        out.write(struct.pack("<IIII", number // 1000, number % 1000, len(frame), len(frame)) + frame)
print(count)
