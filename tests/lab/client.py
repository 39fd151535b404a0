"""Clients that go on asking while things around them fail, and say at the end what they saw.

    client.py ask HOST PORT [DNS]          a GET every 10 ms, each on its own connection; HOST is asked of DNS first
    client.py write FOLDER PORT PREFIX     creates one ConfigMap after the other at 127.0.0.1:PORT, with FOLDER's certificate

They print `up`, and on SIGTERM one line of JSON. Times are seconds of the monotonic clock, which all machines of the lab
share.
"""

import asyncio
import errno
import http.client
import itertools
import json
import os
import signal
import socket
import ssl
import struct
import sys
import time

EVERY = 0.01
PATIENCE = float(os.environ.get("MUSSEL_TEST_PATIENCE", "1"))
ANSWER_TIME = 4 * PATIENCE
# As musl's and glibc's resolvers, which ask twice.
NAME_TIME = 2.5 * PATIENCE
# Outside of the range of node ports.
PORTS = 33000, 61000
# More than this waiting at once, and the client rather leaves out a beat than runs out of ports.
WAITING_MAX = 2000


class Ended:
    """Becomes true with SIGTERM. Not an Event: its lock may be held by what the signal interrupts."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True


class Asking:
    """Every question's outcome: who answered how often, and each failure with its time, port and reason."""

    def __init__(self, host, port, dns):
        self.host, self.port, self.dns = host, port, dns
        self.asked, self.answers, self.failures, self.slowest = 0, {}, [], 0
        self.waiting = set()
        # Each question from a port of its own: the kernel sends what comes from a port, to the same place, the way that it
        # sent what came from there before, for the two minutes that it remembers.
        self.ports = itertools.cycle(range(*PORTS))

    async def run(self):
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        print("up", flush=True)
        beat = loop.time()
        while not stop.is_set():
            if len(self.waiting) < WAITING_MAX:
                task = asyncio.ensure_future(self.ask())
                self.waiting.add(task)
                task.add_done_callback(self.waiting.discard)
            # A machine that had no time for us makes us leave out beats, not catch up with them.
            beat = max(beat + EVERY, loop.time() - EVERY)
            try:
                await asyncio.wait_for(stop.wait(), max(0, beat - loop.time()))
            except asyncio.TimeoutError:
                pass
        if self.waiting:
            await asyncio.wait(self.waiting)
        print(json.dumps({"asked": self.asked, "answers": self.answers, "failures": self.failures,
                          "slowest": round(self.slowest, 3)}), flush=True)

    async def ask(self):
        self.asked += 1
        began, step, local = time.monotonic(), "ask for the name", None
        try:
            address = await self.resolve() if self.dns else self.host
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
                stream.setblocking(False)

                async def talk():
                    nonlocal step, local
                    loop = asyncio.get_running_loop()
                    step = "connect"
                    local = self.bind(stream)
                    await loop.sock_connect(stream, (address, self.port))
                    step = "read the answer"
                    await loop.sock_sendall(stream, b"GET / HTTP/1.0\r\n\r\n")
                    answer = b""
                    while part := await loop.sock_recv(stream, 4096):
                        answer += part
                    return answer
                answer = await asyncio.wait_for(talk(), ANSWER_TIME)
            head, _, body = answer.partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0] or not body.strip():
                raise ValueError(f"answered {answer[:100]!r}")
            who = body.decode().strip()
            self.answers[who] = self.answers.get(who, 0) + 1
            self.slowest = max(self.slowest, time.monotonic() - began)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            self.failures.append({"at": began, "port": local, "error": f"{step}: {type(error).__name__} {error}"})

    def bind(self, stream):
        for port in self.ports:
            try:
                stream.bind(("", port))
                return port
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise

    async def resolve(self):
        """The first A record. As resolvers do, asks again when nothing is heard, and takes a refusal as the end."""
        loop = asyncio.get_running_loop()
        question = b"".join(bytes([len(part)]) + part.encode() for part in self.host.split(".")) + b"\0\0\1\0\1"
        query = struct.pack(">HHHHHH", self.asked & 0xFFFF, 0x0100, 1, 0, 0, 0) + question
        for last in (False, True):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.setblocking(False)
                asking.connect((self.dns, 53))
                await loop.sock_sendall(asking, query)
                try:
                    answer = await asyncio.wait_for(loop.sock_recv(asking, 512), NAME_TIME)
                    break
                except asyncio.TimeoutError:
                    if last:
                        raise
        records = struct.unpack(">H", answer[6:8])[0]
        if not records or answer[3] & 15:
            raise ValueError(f"{self.host} is not known: {answer[:4].hex()}")
        return socket.inet_ntoa(answer[-4:])


def write(folder, port, prefix):
    """One write after the other; one that fails is tried again with the same name until it is there."""
    stop = Ended()
    context = ssl.create_default_context(cafile=folder + "/ca.crt")
    context.load_cert_chain(folder + "/admin.crt", folder + "/admin.key")
    acknowledged, failures, longest, last, connection = [], {}, 0, time.monotonic(), None
    print("up", flush=True)
    number = 0
    while not stop.asked:
        name = f"{prefix}-{number}"
        try:
            if connection is None:
                connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
            body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
            connection.request("POST", "/api/v1/namespaces/default/configmaps", body,
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
            # One whose answer was lost may be there already.
            if answer.status not in (201, 409):
                raise ValueError(f"{answer.status} {json.loads(text).get('message') if text[:1] == '{' else text}")
            now = time.monotonic()
            acknowledged.append(name)
            longest, last = max(longest, now - last), now
            number += 1
            time.sleep(0.02)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if connection:
                connection.close()
            connection = None
            reason = f"{type(error).__name__} {error}"
            failures[reason] = failures.get(reason, 0) + 1
            time.sleep(0.05)
    longest = max(longest, time.monotonic() - last)
    print(json.dumps({"acknowledged": acknowledged, "failures": failures, "longest": round(longest, 3)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        dns = sys.argv[4] if len(sys.argv) > 4 else None
        asyncio.run(Asking(sys.argv[2], int(sys.argv[3]), dns).run())
    else:
        write(sys.argv[2], int(sys.argv[3]), sys.argv[4])
