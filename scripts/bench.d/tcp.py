#!/usr/bin/env python3
"""Files over one bare TCP connection with SHA-256 at both ends, for scripts/bench: what a copy costs at the least.

    tcp.py receive DIR              prints `ADDR:PORT`, then writes what comes below DIR
    tcp.py send DIR ADDR:PORT…      reads names from standard input, one a line, and sends each file or tree to all

A file is its header (length of the path in 2 bytes, size in 8, little-endian; the path), its bytes and their SHA-256. The
receiver renames it into place when the digest is right. `iroh_stream.rs` speaks the same over iroh. Nothing is encrypted,
resumed or acknowledged.
"""

import hashlib
import os
import socket
import struct
import sys

HEAD = struct.Struct("<HQ")
PIECE = 256 << 10  # bytes at once, and collected from small files before they go


def read_exactly(stream, count):
    data = stream.read(count)
    if len(data) < count:
        raise SystemExit("cut short")
    return data


def receive(top):
    listener = socket.create_server(("127.0.0.1", 0))
    print("%s:%d" % listener.getsockname(), flush=True)
    stream = listener.accept()[0].makefile("rb", PIECE)
    buffer = memoryview(bytearray(PIECE))
    part, known = os.path.join(top, ".part"), top
    while head := stream.read(HEAD.size):
        length, left = HEAD.unpack(head)
        path = os.path.join(top, read_exactly(stream, length).decode())
        parent = os.path.dirname(path)
        if parent != known:
            os.makedirs(parent, exist_ok=True)
            known = parent
        digest = hashlib.sha256()
        with open(part, "wb", buffering=0) as file:
            while left > 0:
                got = stream.readinto(buffer[: min(left, PIECE)])
                if not got:
                    raise SystemExit("cut short")
                digest.update(buffer[:got])
                file.write(buffer[:got])
                left -= got
        if read_exactly(stream, digest.digest_size) != digest.digest():
            raise SystemExit(f"wrong bytes: {path}")
        os.rename(part, path)


class Out:
    """The bytes on their way to every peer."""

    def __init__(self, peers):
        self.sockets, self.small = [], bytearray()
        for peer in peers:
            host, port = peer.rsplit(":", 1)
            stream = socket.create_connection((host, int(port)))
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(stream)

    def put(self, data):
        self.small += data
        if len(self.small) >= PIECE:
            self.flush()

    def flush(self):
        self.give(self.small)
        self.small = bytearray()

    def give(self, data):
        for stream in self.sockets:
            stream.sendall(data)


def send_file(top, path, out):
    with open(os.path.join(top, path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        name, digest, left = path.encode(), hashlib.sha256(), size
        out.put(HEAD.pack(len(name), size) + name)
        if size > PIECE:
            out.flush()
            buffer = memoryview(bytearray(PIECE))
        while left > 0:
            if size > PIECE:
                got = file.readinto(buffer[: min(left, PIECE)])
                out.give(buffer[:got])
                digest.update(buffer[:got])
            else:
                data = file.read(left)
                got = len(data)
                out.put(data)
                digest.update(data)
            if not got:
                raise SystemExit(f"became shorter: {path}")
            left -= got
        out.put(digest.digest())


def send(top, peers):
    out = Out(peers)
    print("connected", flush=True)
    for line in sys.stdin:
        name = line.rstrip("\n")
        if not os.path.isdir(os.path.join(top, name)):
            send_file(top, name, out)
        for where, _, files in os.walk(os.path.join(top, name)):
            for file in files:
                send_file(top, os.path.relpath(where, top) + "/" + file, out)
        out.flush()


if sys.argv[1] == "receive":
    receive(sys.argv[2])
else:
    send(sys.argv[2], sys.argv[3:])
