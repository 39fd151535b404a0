"""Logs and exec for clients that speak WebSocket themselves, as a browser does."""

import base64
import json
import os
import struct
import sys
from urllib.parse import quote

import lab

CLIENT = os.path.join(os.path.dirname(lab.__file__), "websocket.py")
TEXT, BINARY, CLOSE = 1, 2, 8
NORMAL = struct.pack(">H", 1000)


class WebSocket(lab.Case):
    def read(self, path, protocol, *send):
        """The status, and the messages before the close."""
        # Leaves the certificates.
        self.m.curl("/version")
        path = "/api/v1/namespaces/default/pods/" + path
        answer = json.loads(self.m.exec(sys.executable, CLIENT, self.m.dir, path, protocol,
                                        *(base64.b64encode(frame.encode()).decode() for frame in send)).out)
        if answer["status"] != 101:
            return answer["status"], []
        self.assertEqual(answer["protocol"], protocol)
        messages = [(kind, base64.b64decode(data)) for kind, data in answer["messages"]]
        self.assertEqual(messages[-1], (CLOSE, NORMAL))
        return 101, messages[:-1]

    def test_logs(self):
        self.m.run_pod("speaker", "echo container is alive; sleep 1000000")
        lab.wait_for("the log", lambda: self.m.out("logs", "speaker"))
        status, messages = self.read("speaker/log?container=main", "binary.k8s.io")
        self.assertEqual((status, {kind for kind, _ in messages}), (101, {BINARY}))
        self.assertEqual(b"".join(data for _, data in messages), b"container is alive\n")
        status, messages = self.read("speaker/log?container=main", "base64.binary.k8s.io")
        self.assertEqual((status, {kind for kind, _ in messages}), (101, {TEXT}))
        self.assertEqual(b"".join(base64.b64decode(data) for _, data in messages), b"container is alive\n")
        self.assertEqual(self.read("speaker/log?container=none", "binary.k8s.io")[0], 400)
        self.m.run_pod("counter", "for i in 1 2 3; do echo $i; sleep 0.5; done", spec={"restartPolicy": "Never"}, wait=False)
        lab.wait_for("the first line", lambda: self.m.kubectl("logs", "counter", check=False).out)
        _, messages = self.read("counter/log?follow=true", "binary.k8s.io")
        self.assertEqual(b"".join(data for _, data in messages), b"1\n2\n3\n")

    def test_exec(self):
        self.m.run_pod("worker")

        def run(protocol, *command):
            query = "&".join("command=" + quote(word) for word in command)
            status, messages = self.read(f"worker/exec?stdout=1&stderr=1&container=main&{query}", protocol)
            self.assertEqual(status, 101)
            channels = {}
            for kind, data in messages:
                channel, data = data[:1], data[1:]
                if "base64" in protocol:
                    self.assertEqual(kind, TEXT)
                    channel, data = bytes([channel[0] - ord("0")]), base64.b64decode(data)
                channels[channel[0]] = channels.get(channel[0], b"") + data
            return channels

        # Clients may write to a binary subprotocol in text frames; in base64 the channel is a digit.
        for protocol, frame in [("v5.channel.k8s.io", "\x00hello\n"), ("base64.channel.k8s.io", "0" + base64.b64encode(b"hello\n").decode())]:
            query = "worker/exec?stdout=1&stdin=1&container=main&command=head&command=-n1"
            _, messages = self.read(query, protocol, frame)
            data = [data[1:] for _, data in messages if data[:1] in b"\x011"]
            self.assertEqual(b"".join(map(base64.b64decode, data) if "base64" in protocol else data), b"hello\n")

        failing = ("sh", "-c", "echo o; echo e >&2; exit 3")
        for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"]:
            with self.subTest(protocol):
                seen = run(protocol, "echo", "remote execution test")
                self.assertEqual(seen.pop(1), b"remote execution test\n")
                self.assertEqual(json.loads(seen.pop(3))["status"], "Success")
                self.assertFalse(seen)
                seen = run(protocol, *failing)
                self.assertEqual((seen[1], seen[2]), (b"o\n", b"e\n"))
                status = json.loads(seen[3])
                self.assertEqual((status["status"], status["reason"]), ("Failure", "NonZeroExitCode"))
                self.assertEqual(status["details"]["causes"], [{"reason": "ExitCode", "message": "3"}])
        for protocol in ["channel.k8s.io", "base64.channel.k8s.io"]:
            with self.subTest(protocol):
                # Before version 4, success is silence.
                self.assertEqual(run(protocol, "echo", "remote execution test"), {1: b"remote execution test\n"})
                self.assertIn(b"exit status 3", run(protocol, *failing)[3])
