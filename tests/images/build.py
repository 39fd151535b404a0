#!/usr/bin/env python3
"""Builds the images that the tests run, from Debian's static busybox, without a container engine.

    build.py OUT_DIR [--push HOST:PORT]

writes busybox.tar (docker-archive), web.tar.gz (OCI layout, gzip) and tools.tar.zst if zstd is there, and can push
busybox to a plain-HTTP registry as `busybox:pulled`. Only Python's standard library is used.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile

# Another machine's images: its architecture, and its busybox, which must be able to run here (binfmt_misc).
ARCH = os.environ.get("ARCH") or {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n"
# Answers every request with the pod's name, on PORT (80).
WEB = """#!/bin/sh
mkdir -p /tmp/www/cgi-bin
hostname > /tmp/www/index.html
printf '#!/bin/sh\\necho "Content-Type: text/plain"; echo; hostname' > /tmp/www/cgi-bin/host
chmod +x /tmp/www/cgi-bin/host
exec httpd -f -v -p "${PORT:-80}" -h /tmp/www
"""


def busybox():
    path = os.environ.get("BUSYBOX") or shutil.which("busybox") or "/bin/busybox"
    with open(path, "rb") as file:
        content = file.read()
    listed = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return content, [name for name in listed if name != "busybox"]


def layer(entries):
    """A tar of (path, kind, mode, content or target, uid) in order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, kind, mode, content, uid in entries:
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid, info.mtime = mode, uid, uid, 1700000000
            if kind == "dir":
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif kind in ("link", "symlink"):
                info.type = tarfile.LNKTYPE if kind == "link" else tarfile.SYMTYPE
                info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def base_layer():
    content, applets = busybox()
    entries = [(d, "dir", m, None, u) for d, m, u in [
        ("bin", 0o755, 0), ("etc", 0o755, 0), ("root", 0o700, 0), ("home", 0o755, 0), ("home/app", 0o755, 1000),
        ("tmp", 0o1777, 0), ("var", 0o755, 0), ("proc", 0o755, 0), ("sys", 0o755, 0), ("dev", 0o755, 0)]]
    entries += [("etc/passwd", "file", 0o644, PASSWD.encode(), 0), ("etc/group", "file", 0o644, GROUP.encode(), 0),
                ("bin/busybox", "file", 0o755, content, 0)]
    # A link entry carries its own mode, and the last one wins.
    entries += [("bin/" + name, "link", 0o755, "bin/busybox", 0) for name in applets if "/" not in name]
    return layer(entries)


def sha(data):
    return hashlib.sha256(data).hexdigest()


def config(layers, **settings):
    return json.dumps({
        "architecture": ARCH, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin"], **settings},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha(data) for data in layers]},
        "history": [{"created_by": "tests/images/build.py"} for _ in layers],
    }, sort_keys=True).encode()


def write_tar(path, files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    if path.endswith(".gz"):
        data = gzip.compress(data, 6, mtime=0)
    if path.endswith(".zst"):
        data = subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.rename(path + ".new", path)


def docker_archive(path, tags, layers, settings):
    body = config(layers, **settings)
    files = {sha(data) + "/layer.tar": data for data in layers}
    files[sha(body) + ".json"] = body
    # At the end, as some tools write it.
    files["manifest.json"] = json.dumps([{
        "Config": sha(body) + ".json", "RepoTags": tags, "Layers": [sha(data) + "/layer.tar" for data in layers],
    }]).encode()
    write_tar(path, files)


def manifest(body, blobs):
    return json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:" + sha(body), "size": len(body)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + sha(blob),
                    "size": len(blob)} for blob in blobs],
    }).encode()


def oci_layout(path, name, layers, settings):
    body, blobs = config(layers, **settings), [gzip.compress(data, 6, mtime=0) for data in layers]
    described = manifest(body, blobs)
    files = {"blobs/sha256/" + sha(data): data for data in [*blobs, body, described]}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + sha(described),
        "size": len(described), "annotations": {"org.opencontainers.image.ref.name": name},
        "platform": {"os": "linux", "architecture": ARCH},
    }]}).encode()
    write_tar(path, files)


def push(host, repository, tag, layers, settings):
    body, blobs = config(layers, **settings), [gzip.compress(data, 6, mtime=0) for data in layers]

    def call(method, url, data=None, kind="application/octet-stream"):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(method, url, data, {"Content-Type": kind})
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {url}: {answer.status}")
        return answer

    for blob in [*blobs, body]:
        place = call("POST", f"/v2/{repository}/blobs/uploads/").getheader("Location")
        place = place[place.index("/v2/"):]
        call("PUT", f"{place}{'&' if '?' in place else '?'}digest=sha256:{sha(blob)}", blob)
    described = manifest(body, blobs)
    call("PUT", f"/v2/{repository}/manifests/{tag}", described, "application/vnd.oci.image.manifest.v1+json")
    print("sha256:" + sha(described))


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    base = base_layer()
    web = layer([("web", "file", 0o755, WEB.encode(), 0)])
    shell, serve = {"Cmd": ["sh"]}, {"Entrypoint": ["/web"], "ExposedPorts": {"80/tcp": {}}}
    if "--push" in sys.argv:
        push(sys.argv[sys.argv.index("--push") + 1], "busybox", "pulled", [base], shell)
        return
    docker_archive(f"{out}/busybox.tar", ["mussel.test/busybox:1"], [base], shell)
    oci_layout(f"{out}/web.tar.gz", "mussel.test/web:1", [base, web], serve)
    new = layer([("web", "file", 0o755, WEB.replace("hostname >", "echo v2 >").encode(), 0)])
    if shutil.which("zstd"):
        docker_archive(f"{out}/web2.tar.zst", ["mussel.test/web:2"], [base, web, new], serve)
    else:
        docker_archive(f"{out}/web2.tar", ["mussel.test/web:2"], [base, web, new], serve)


if __name__ == "__main__":
    main()
