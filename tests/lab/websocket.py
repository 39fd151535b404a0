"""Reads a WebSocket of the API to its end, with the admin's certificate; prints the answer as JSON.

    python3 websocket.py FOLDER PATH SUBPROTOCOL [SEND]

FOLDER holds the certificates as `Machine.curl` leaves them. SEND (base64) is sent first, in a text frame. Printed are the status, the subprotocol agreed on and the
messages, each as its opcode and its bytes in base64. kubectl has no raw client, and the standard library none at all.
"""

import base64
import json
import os
import socket
import ssl
import struct
import sys

CLOSE = 8


def read(folder, path, protocol, send=None):
    context = ssl.create_default_context(cafile=folder + "/ca.crt")
    context.load_cert_chain(folder + "/admin.crt", folder + "/admin.key")
    plain = socket.create_connection(("127.0.0.1", 6443), timeout=20)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as stream:
        key = base64.b64encode(os.urandom(16)).decode()
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                       f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode())
        file = stream.makefile("rb")
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if send is not None:
            # What a client sends is masked; with zeros it reads as before.
            data = base64.b64decode(send)
            stream.sendall(bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)
        messages = []
        while status == 101 and (not messages or messages[-1][0] != CLOSE):
            kind, size = file.read(2)
            # What a server sends is not masked.
            if size == 126:
                size, = struct.unpack(">H", file.read(2))
            elif size == 127:
                size, = struct.unpack(">Q", file.read(8))
            messages.append((kind & 15, base64.b64encode(file.read(size)).decode()))
    return {"status": status, "protocol": headers.get("sec-websocket-protocol"), "messages": messages}


if __name__ == "__main__":
    print(json.dumps(read(*sys.argv[1:])))
