"""An extension API server for tests, in a pod: `extension.py PORT CERTIFICATE KEY`.

Serves `flunders` of wardle.example.com/v1 from memory. Like any such server it learns from the cluster whom to believe, takes
requests from the front proxy alone, and asks the cluster what the user behind it may do.
"""

import copy
import http.server
import json
import ssl
import sys
import threading
import time
import urllib.request
import uuid

GROUP = "wardle.example.com/v1"
PREFIX = f"/apis/{GROUP}"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
LOCK = threading.Condition()
OBJECTS, EVENTS = {}, []


def cluster(path, body=None):
    """Asks the cluster's API server as this pod."""
    with open(ACCOUNT + "/token", encoding="ascii") as file:
        headers = {"Authorization": "Bearer " + file.read(), "Content-Type": "application/json"}
    request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers,
                                     data=body and json.dumps(body).encode())
    context = ssl.create_default_context(cafile=ACCOUNT + "/ca.crt")
    with urllib.request.urlopen(request, context=context, timeout=20) as answer:
        return json.load(answer)


def status(code, reason, message):
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path, _, query = self.path.partition("?")
        names = [value for field in self.connection.getpeercert()["subject"] for key, value in field if key == "commonName"]
        if not set(names) & set(self.server.proxies):
            return self.reply(*status(401, "Unauthorized", "no front proxy"))
        if path.startswith(("/apis/external.metrics.k8s.io", "/apis/custom.metrics.k8s.io")):
            return self.metric(path.strip("/").split("/"))
        parts = path[len(PREFIX):].strip("/").split("/") if path.startswith(PREFIX) else None
        if parts == [""]:
            verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            return self.reply(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [
                {"name": "flunders", "singularName": "flunder", "namespaced": True, "kind": "Flunder", "verbs": verbs,
                 "shortNames": ["fl"]}]})
        if not parts:
            return self.reply(*status(404, "NotFound", "the server could not find the requested resource"))
        namespace = parts[1] if parts[0] == "namespaces" else None
        rest = parts[2:] if namespace else parts
        if rest[0] != "flunders":
            return self.reply(*status(404, "NotFound", "the server could not find the requested resource"))
        name = rest[1] if len(rest) > 1 else None
        user = {"user": self.headers["X-Remote-User"], "groups": self.headers.get_all("X-Remote-Group") or []}
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(self.command, "get" if name else "list")
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {**user, "resourceAttributes": {
            "namespace": namespace or "", "group": "wardle.example.com", "resource": "flunders", "verb": verb, "name": name or ""}}}
        if not cluster("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"]:
            return self.reply(*status(403, "Forbidden", "the extension server refuses"))
        if "watch=1" in query or "watch=true" in query:
            return self.watch(namespace)
        with LOCK:
            code, value, event = self.change(namespace, name, body and json.loads(body), user)
            if event:
                EVENTS.append((event, copy.deepcopy(value)))
                LOCK.notify_all()
        return self.reply(code, value)

    def metric(self, parts):
        """An adapter's answers: each metric is what the file of its name says, of Services and of things outside."""
        group = "/".join(parts[1:3])
        if len(parts) == 3:
            kind = {"namespaced": True, "kind": "MetricValueList", "singularName": "", "verbs": ["get"]}
            return self.reply(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group,
                                    "resources": [{"name": "services/hits" if "custom" in group else "queue", **kind}]})
        with open("/extension/" + parts[-1], encoding="ascii") as file:
            value = {"metricName": parts[-1], "value": file.read().strip(), "timestamp": "2026-01-01T00:00:00Z"}
        if "custom" in group:
            value = {**value, "describedObject": {"kind": "Service", "name": parts[-2], "namespace": parts[4]}}
        return self.reply(200, {"kind": "MetricValueList", "apiVersion": group, "metadata": {}, "items": [value]})

    def change(self, namespace, name, given, user):
        key = (namespace, name)
        if self.command == "POST":
            key = (namespace, given["metadata"]["name"])
            if key in OBJECTS:
                return *status(409, "AlreadyExists", "exists"), None
            given["metadata"].update(namespace=namespace, uid=str(uuid.uuid4()), resourceVersion=str(len(EVENTS) + 1),
                                     creationTimestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            given["seen"] = user
            OBJECTS[key] = {"kind": "Flunder", "apiVersion": GROUP, **given}
            return 201, OBJECTS[key], "ADDED"
        if not name:
            items = [item for (where, _), item in sorted(OBJECTS.items()) if namespace in (None, where)]
            if self.command == "DELETE":
                for item in items:
                    EVENTS.append(("DELETED", OBJECTS.pop((item["metadata"]["namespace"], item["metadata"]["name"]))))
                LOCK.notify_all()
            return 200, {"kind": "FlunderList", "apiVersion": GROUP, "metadata": {"resourceVersion": str(len(EVENTS))},
                         "items": items}, None
        if key not in OBJECTS:
            return *status(404, "NotFound", f'flunders.wardle.example.com "{name}" not found'), None
        if self.command == "GET":
            return 200, OBJECTS[key], None
        if self.command == "DELETE":
            return 200, OBJECTS.pop(key), "DELETED"
        if self.command == "PATCH":
            given = merge(OBJECTS[key], given)
        given["metadata"]["resourceVersion"] = str(len(EVENTS) + 1)
        OBJECTS[key] = given
        return 200, given, "MODIFIED"

    def watch(self, namespace):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        at = 0
        while True:
            with LOCK:
                while at == len(EVENTS):
                    LOCK.wait()
                kind, item = EVENTS[at]
            at += 1
            if namespace in (None, item["metadata"]["namespace"]):
                line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *_):
        pass


def merge(old, new):
    if not isinstance(new, dict):
        return new
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Connections end when their clients like."""


if __name__ == "__main__":
    port, certificate, key = sys.argv[1:]
    known = cluster("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")["data"]
    server = Server(("0.0.0.0", int(port)), Handler)
    server.proxies = json.loads(known["requestheader-allowed-names"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=known["requestheader-client-ca-file"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
