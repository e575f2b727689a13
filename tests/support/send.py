#!/usr/bin/python3
"""send.py FILE DEVICE RATE: sends the frames of a capture file out of DEVICE, at most RATE a second."""
import socket
import struct
import sys
import time

file, device, rate = open(sys.argv[1], "rb").read(), sys.argv[2], float(sys.argv[3])
order = "<" if file[:4] == b"\xd4\xc3\xb2\xa1" else ">"
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((device, 0))
at, number, start = 24, 0, time.monotonic()
while at < len(file):
    length = struct.unpack(order + "I", file[at + 8:at + 12])[0]
    time.sleep(max(0.0, start + number / rate - time.monotonic()))
    out.send(file[at + 16:at + 16 + length])
    at, number = at + 16 + length, number + 1
print(number)
