"""A slow wire: copies frames between two interfaces and holds each back for a while.

    relay.py plain IFACE            no offloads, so that every frame leaves as it would on a wire
    relay.py relay ONE OTHER MS     runs until it is killed
"""

import ctypes
import fcntl
import heapq
import itertools
import select
import socket
import struct
import sys
import time

SIOCETHTOOL = 0x8946
# linux/ethtool.h: scatter-gather, checksums, TSO, UFO, GSO and GRO.
OFFLOADS = [0x1F, 0x21, 0x24, 0x2C, 0x17, 0x19]
SOL_PACKET, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 23, 3
# More than this on the wire at once is lost, as in any queue.
FRAMES_MAX = 20_000


def plain(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", name.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(any_socket, SIOCETHTOOL, request)
            except OSError:
                pass  # This kernel has no such offload.


def packet_socket(name):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    opened.bind((name, 0))
    opened.setblocking(False)
    return opened


def relay(one, other, delay):
    ends = [packet_socket(one), packet_socket(other)]
    waiting, order = [], itertools.count()
    print("up", flush=True)
    while True:
        wait = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], wait)[0]:
            to = ends[1] if end is ends[0] else ends[0]
            try:
                while len(waiting) < FRAMES_MAX:
                    heapq.heappush(waiting, (time.monotonic() + delay, next(order), to, end.recv(65536)))
            except BlockingIOError:
                pass
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(waiting)
            try:
                to.send(frame)
            except OSError:
                pass  # A wire that is down, or a frame that is too long for it: lost.


if __name__ == "__main__":
    if sys.argv[1] == "plain":
        plain(sys.argv[2])
    else:
        relay(sys.argv[2], sys.argv[3], float(sys.argv[4]) / 1000)
