"""An admission webhook for tests, over TLS: `hook.py PORT CERTIFICATE KEY`. What it answers, the path of a request says."""

import base64
import http.server
import json
import ssl
import sys
import time


def patch(*operations):
    return {"allowed": True, "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(operations).encode()).decode()}


def deny(message):
    return {"allowed": False, "status": {"message": message}}


def answer(path, request):
    shown = request.get("object") or request.get("oldObject") or {}
    data = shown.get("data") or {}
    if path == "/deny":
        return deny("this webhook denies all requests")
    if path == "/pods":
        names = [c["name"] for c in shown["spec"]["containers"]]
        if shown["metadata"].get("name") == "hangs":
            time.sleep(60)
        return deny("the pod contains unwanted container name") if "unwanted" in names else {"allowed": True}
    if path == "/configmaps":
        if data.get("test") == "disallow":
            return deny("the configmap contains unwanted key and value")
        return {"allowed": True, "warnings": ["seen by a webhook"]}
    if path == "/attach":
        return deny("attaching to pods is not allowed")
    if path == "/slow":
        time.sleep(5)
        return {"allowed": True}
    if path == "/stage-1" and "start" in data:
        return patch({"op": "add", "path": "/data/stage-1", "value": "yes"})
    if path == "/stage-2" and "stage-1" in data:
        return patch({"op": "add", "path": "/data/stage-2", "value": "yes"})
    if path == "/init":
        return patch({"op": "add", "path": "/spec/initContainers",
                      "value": [{"name": "webhook-added", "image": "none"}]})
    if path == "/label":
        return patch({"op": "add", "path": "/metadata/labels", "value": {"touched": "by-webhook"}})
    return {"allowed": True}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = answer(self.path.split("?")[0], review["request"])
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"],
                           "response": {"uid": review["request"]["uid"], **response}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            # The API server has stopped waiting.
            self.close_connection = True

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    port, certificate, key = sys.argv[1:]
    server = http.server.ThreadingHTTPServer(("0.0.0.0", int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
