"""The runtime's socket, as tools such as crictl use it: by a gRPC client that is not ours (Debian's python3-grpcio).

The messages are built from the field numbers of the CRI's published definition, so that a slip in our own copy of it
would show.
"""

import json
import subprocess

import lab
from lab import BUSYBOX, wait_for

# Runs on the machine with Debian's Python: `call METHOD BYTES` as lines of JSON on standard input, one answer each.
CLIENT = r"""
import base64, json, sys
import grpc
channel = grpc.insecure_channel("unix://" + sys.argv[1])
for line in sys.stdin:
    method, body = json.loads(line)
    call = channel.unary_unary(method, request_serializer=lambda b: b, response_deserializer=lambda b: b)
    try:
        answer = {"body": base64.b64encode(call(base64.b64decode(body), timeout=30)).decode()}
    except grpc.RpcError as error:
        answer = {"code": error.code().name, "message": error.details()}
    print(json.dumps(answer), flush=True)
"""


def varint(number):
    out = b""
    while True:
        number, low = number >> 7, number & 127
        out += bytes([low | 128 if number else low])
        if not number:
            return out


def message(*fields):
    """A protobuf message of (number, value): numbers, texts, bytes (nested messages) and lists of them."""
    out = b""
    for number, value in fields:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                out += varint(number << 3) + varint(each)
            else:
                data = each.encode() if isinstance(each, str) else each
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def fields(data):
    """The other way: {number: [values]}; nested messages stay bytes."""
    found, at = {}, 0

    def read():
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
    while at < len(data):
        key = read()
        if key & 7 == 0:
            value = read()
        elif key & 7 == 2:
            size = read()
            value, at = data[at:at + size], at + size
        else:
            raise ValueError(f"wire type {key & 7}")
        found.setdefault(key >> 3, []).append(value)
    return found


class Refused(Exception):
    pass


class Socket(lab.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = cls.m.spawn("/usr/bin/python3", "-c", CLIENT, cls.m.run_dir + "/mussel.sock",
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, method, *request, service="RuntimeService"):
        import base64
        body = base64.b64encode(message(*request)).decode()
        self.client.stdin.write(json.dumps([f"/runtime.v1.{service}/{method}", body]) + "\n")
        self.client.stdin.flush()
        answer = json.loads(self.client.stdout.readline())
        if "body" not in answer:
            raise Refused(f"{answer['code']}: {answer['message']}")
        return fields(base64.b64decode(answer["body"]))

    def test_version_status_and_images(self):
        version = self.call("Version", (1, "v1"))
        self.assertEqual((version[1], version[2], version[4]), ([b"0.1.0"], [b"mussel"], [b"v1"]))
        conditions = fields(self.call("Status")[1][0])[1]
        self.assertEqual({fields(each)[1][0]: fields(each).get(2) for each in conditions},
                         {b"RuntimeReady": [1], b"NetworkReady": [1]})
        images = [fields(each) for each in self.call("ListImages", service="ImageService")[1]]
        self.assertIn(BUSYBOX.encode(), [tag for image in images for tag in image.get(2, [])])

    def test_pods_of_the_kubelet_are_listed(self):
        self.m.run_pod("seen", "sleep 100000")
        uid = self.m.pod("seen")["metadata"]["uid"].encode()
        sandboxes = [fields(each) for each in self.call("ListPodSandbox")[1]]
        mine = [s for s in sandboxes if fields(s[2][0])[2] == [uid]]
        self.assertEqual([(fields(s[2][0])[1], fields(s[2][0])[3], s.get(3, [0])) for s in mine], [([b"seen"], [b"default"], [0])])
        containers = [fields(each) for each in self.call("ListContainers")[1]]
        mine = [c for c in containers if c[2] == mine[0][1]]
        self.assertEqual([(fields(c[3][0])[1], c[6]) for c in mine], [([b"main"], [1])])

    def test_a_pod_by_hand(self):
        logs = self.m.dir + "/logs"
        self.m.sh(f"mkdir -p {logs}")
        metadata = message((1, "by-hand"), (2, "uid-by-hand"), (3, "elsewhere"))
        linux = message((1, f"{self.m.cgroup_root}/by-hand"), (2, b""))
        sandbox_config = message((1, metadata), (3, logs), (8, linux))
        sandbox = self.call("RunPodSandbox", (1, sandbox_config))[1][0]
        try:
            script = "echo hello from $WHO; exec sleep 100000"
            container_config = message((1, message((1, "main"))), (2, message((1, BUSYBOX))), (3, ["sh", "-c", script]),
                                       (6, message((1, "WHO"), (2, "crictl"))), (11, "main.log"))
            container = self.call("CreateContainer", (1, sandbox), (2, container_config), (3, sandbox_config))[1][0]
            self.call("StartContainer", (1, container))
            status = fields(self.call("ContainerStatus", (1, container))[1][0])
            self.assertEqual(status[3], [1], "CONTAINER_RUNNING")
            self.assertEqual(status[15], [f"{logs}/main.log".encode()])
            wait_for("its log", lambda: "stdout F hello from crictl" in self.m.sh(f"cat {logs}/main.log"))
            done = self.call("ExecSync", (1, container), (2, ["sh", "-c", "echo out; echo err >&2; exit 3"]), (3, 10))
            self.assertEqual((done[1], done[2], done[3]), ([b"out\n"], [b"err\n"], [3]))
            url = self.call("Exec", (1, container), (2, ["true"]), (5, 1))[1][0].decode()
            self.assertTrue(url.startswith("http://127.0.0.1:"), url)
            self.call("StopContainer", (1, container), (2, 0))
            status = fields(self.call("ContainerStatus", (1, container))[1][0])
            self.assertEqual((status[3], status[7]), ([2], [137]))
            self.call("RemoveContainer", (1, container))
        finally:
            self.call("StopPodSandbox", (1, sandbox))
            self.call("RemovePodSandbox", (1, sandbox))
        with self.assertRaisesRegex(Refused, "NOT_FOUND"):
            self.call("ContainerStatus", (1, container))
        # A repeat is no error, as the CRI demands.
        self.call("RemovePodSandbox", (1, sandbox))

    def test_wrong_requests(self):
        with self.assertRaisesRegex(Refused, "NOT_FOUND"):
            self.call("ExecSync", (1, "nothing"), (2, ["true"]))
        with self.assertRaisesRegex(Refused, "INVALID_ARGUMENT"):
            self.call("RunPodSandbox")
        with self.assertRaises(Refused):
            self.call("PullImage", (1, message((1, "mussel.test/UPPER:1"))), service="ImageService")
        self.assertNotIn(1, self.call("ImageStatus", (1, message((1, "mussel.test/none:1"))), service="ImageService"))
