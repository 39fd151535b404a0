"""Upstream's end-to-end tests on a lab cluster, built from the newest sources of them that a package registry has.

    python3 tests/conformance [--focus RE] [--skip RE] [--parallel N] [--out DIR]

That is Debian 12's source package kubernetes (1.20), with Debian's Go. Most conformance tests of that release still hold; those of
APIs that are gone since are left out (GONE). It is a tool for people, not a part of tests/run.sh: it needs Debian's mirrors, a
quarter of an hour to build the first time, and about as long to run. Needs root, and a binary: MUSSEL_BINARY, or `cargo build`.

The images are ours, with upstream's names: its own helper program, and Debian's or busybox's tools where upstream has Alpine's.
"""

import argparse
import glob
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request

sys.dont_write_bytecode = True
TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# As a program, Python has put this folder first; the packages are found from the one above.
sys.path[0] = TESTS
sys.path.append(TESTS + "/images")

import build  # noqa: E402
import lab  # noqa: E402
from lab import wait_for  # noqa: E402

CACHE = "/var/cache/mussel-tests/e2e-1.20"
SOURCE = "http://deb.debian.org/debian/pool/main/k/kubernetes/kubernetes_1.20.5%2breally1.20.2.orig.tar.gz"
GO = "/usr/lib/go-1.19/bin"
SKIP = r"\[Serial\]|\[Disruptive\]"
# Not served any more by anybody: tokens as Secrets by themselves.
GONE = r"mount an API token into|opting out of API token"
PATH = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def sh(script, **options):
    subprocess.run(["sh", "-ec", script], check=True, **options)


def compile_tests():
    """e2e.test, ginkgo, and the programs of the images."""
    if os.path.exists(CACHE + "/built"):
        return
    os.makedirs(CACHE + "/go/src/k8s.io", exist_ok=True)
    sh("apt-get install -y -q --no-install-recommends golang-1.19-go golang-1.19-src debootstrap")
    source = CACHE + "/go/src/k8s.io/kubernetes"
    if not os.path.isdir(source):
        urllib.request.urlretrieve(SOURCE, CACHE + "/source.tar.gz")
        sh(f"tar xzf {CACHE}/source.tar.gz -C {CACHE}/go/src/k8s.io && mv {CACHE}/go/src/k8s.io/kubernetes-* {source}")
    # Since 1.24 a service account has no Secret of its own that one could wait for.
    for path in ("test/e2e/framework/util.go", "pkg/client/conditions/conditions.go"):
        with open(f"{source}/{path}") as file:
            text = file.read()
        with open(f"{source}/{path}", "w") as file:
            file.write(re.sub(r"return len\(t\.Secrets\) > 0, nil", "return t != nil, nil", text))
    env = dict(os.environ, PATH=f"{GO}:{CACHE}/bin:" + os.environ["PATH"], GOPATH=CACHE + "/go", GO111MODULE="off",
               CGO_ENABLED="0", GOCACHE=CACHE + "/gocache")
    sh(f"""
        go build -o {CACHE}/bin/go-bindata ./vendor/github.com/go-bindata/go-bindata/go-bindata
        go-bindata -nometadata -o test/e2e/generated/bindata.go -pkg generated -ignore .jpg -ignore .png -ignore .md \
            -ignore 'BUILD(\\.bazel)?' test/conformance/testdata/... test/e2e/testing-manifests/... test/images/... test/fixtures/...
        mkdir -p staging/src/k8s.io/kubectl/pkg/generated
        go-bindata -nometadata -nocompress -o staging/src/k8s.io/kubectl/pkg/generated/bindata.go -pkg generated -ignore .md \
            translations/...
        go build -o {CACHE}/ginkgo ./vendor/github.com/onsi/ginkgo/ginkgo
        go test -c -o {CACHE}/e2e.test ./test/e2e
        cd test/images/agnhost && go build -ldflags='-s -w' -o {CACHE}/agnhost .
        cd ../nonewprivs && go build -o {CACHE}/nnp .
        touch {CACHE}/built""", cwd=source, env=env)


def compile_sample():
    """Upstream's sample of an extension API server, and the etcd that it keeps its objects in."""
    if os.path.exists(CACHE + "/sample-apiserver"):
        return
    sh("apt-get install -y -q --no-install-recommends etcd-server")
    env = dict(os.environ, PATH=f"{GO}:" + os.environ["PATH"], GOPATH=CACHE + "/go", GO111MODULE="off", CGO_ENABLED="0",
               GOCACHE=CACHE + "/gocache")
    sh(f"go build -ldflags='-s -w' -o {CACHE}/sample-apiserver ./vendor/k8s.io/sample-apiserver",
       cwd=CACHE + "/go/src/k8s.io/kubernetes", env=env)


def debian():
    """A layer with Debian's tools that the tests call: dig, curl, nc, ip."""
    root = CACHE + "/root"
    if not os.path.exists(root + "/bin/sh"):
        sh(f"debootstrap --variant=minbase --include=bind9-dnsutils,curl,netcat-openbsd,iproute2,net-tools,wget bookworm {root}")
    left_out = ("./proc/", "./sys/", "./dev/", "./var/cache/", "./var/lib/apt/lists/", "./usr/share/doc", "./usr/share/locale")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(root, arcname=".", filter=lambda info: None if info.name.startswith(left_out) else info)
    return out.getvalue()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def files(place, paths, mode=0o644):
    return [(place + os.path.basename(path), "file", mode, read(path), 0) for path in paths]


def save(name, layers, **settings):
    path = f"{CACHE}/images/{re.sub('[/:]', '_', name)}.tar"
    build.docker_archive(path, [name], layers, {"Env": PATH, **settings})


def sample_images():
    if os.path.exists(CACHE + "/images/sample"):
        return
    sample = build.layer(files("", [CACHE + "/sample-apiserver"], 0o755))
    save("gcr.io/kubernetes-e2e-test-images/sample-apiserver:1.17", [sample], Entrypoint=["/sample-apiserver"])
    etcd = build.layer([("usr", "dir", 0o755, None, 0), ("usr/local", "dir", 0o755, None, 0),
                        ("usr/local/bin", "dir", 0o755, None, 0), *files("usr/local/bin/", ["/usr/bin/etcd"], 0o755)])
    save("k8s.gcr.io/etcd:3.4.13-0", [debian(), etcd], Cmd=["/usr/local/bin/etcd"])
    with open(CACHE + "/images/sample", "w"):
        pass


def images():
    folder = CACHE + "/images"
    if os.path.exists(folder + "/done"):
        return folder
    os.makedirs(folder, exist_ok=True)
    upstream = CACHE + "/go/src/k8s.io/kubernetes/test/images"
    base, busybox = debian(), build.base_layer()
    agnhost = build.layer([*files("", [CACHE + "/agnhost"], 0o755), ("agnhost-2", "symlink", 0o777, "agnhost", 0),
                           ("uploads", "dir", 0o777, None, 0), *files("", glob.glob(upstream + "/agnhost/porter/localhost.*"))])
    e2e = "gcr.io/kubernetes-e2e-test-images/"
    save("k8s.gcr.io/e2e-test-images/agnhost:2.21", [base, agnhost], Entrypoint=["/agnhost"], Cmd=["pause"])
    save(e2e + "jessie-dnsutils:1.0", [base, agnhost], Cmd=["/agnhost", "pause"])
    save("docker.io/library/perl:5.26", [base], Cmd=["sh"])
    save("k8s.gcr.io/pause:3.2", [agnhost], Entrypoint=["/agnhost"], Cmd=["pause"])
    save("docker.io/library/busybox:1.29", [busybox], Cmd=["sh"])
    save(e2e + "nonroot:1.0", [busybox], User="1234", Cmd=["sh"])
    parts, path = [], ""
    for part in ("usr", "local", "apache2", "htdocs"):
        path += part
        parts.append((path, "dir", 0o755, None, 0))
        path += "/"
    page = (path + "index.html", "file", 0o644, b"<html><body><h1>It works!</h1></body></html>\n", 0)
    for name in ("httpd:2.4.38-alpine", "httpd:2.4.39-alpine", "nginx:1.14-alpine", "nginx:1.15-alpine"):
        web = build.layer([*parts, page, ("version", "file", 0o644, name.encode(), 0)])
        save("docker.io/library/" + name, [busybox, web], Cmd=["httpd", "-f", "-p", "80", "-h", "/" + path])
    for name in ("nautilus", "kitten"):
        pages = build.layer(files("", glob.glob(f"{upstream}/{name}/html/*")))
        save(f"{e2e}{name}:1.0", [busybox, agnhost, pages], Entrypoint=["/agnhost"], Cmd=["test-webserver"])
    privileged = build.layer([*parts[:2], ("usr/local/bin", "dir", 0o755, None, 0), *files("usr/local/bin/", [CACHE + "/nnp"], 0o6755)])
    save(e2e + "nonewprivs:1.0", [privileged], Cmd=["nnp"])
    with open(folder + "/done", "w"):
        pass
    return folder


def run(args, archives):
    """Its log is in the folder; one JSON object per test is among the lines."""
    os.makedirs(args.out, exist_ok=True)
    cluster = lab.Cluster(1, 1, archives=[])
    try:
        cluster.start()
        for machine in cluster.machines:
            for archive in archives:
                machine.exec(lab.BINARY, "ctr", *machine.local(), "images", "import", archive, timeout=120)
        first = cluster.first
        command = ["nsenter", "-t", str(first.pid), "-n", CACHE + "/ginkgo", f"-nodes={args.parallel}", "-noColor",
                   "-focus=" + args.focus, "-skip=" + args.skip, CACHE + "/e2e.test", "--", "--kubeconfig=" + first.kubeconfig,
                   "--provider=skeleton", "--kubectl-path=" + lab.KUBECTL, "--report-dir=" + args.out, "--minStartupPods=0"]
        with open(args.out + "/log", "w") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=CACHE, check=False)
        for machine in cluster.machines:
            with open(f"{args.out}/{machine.name}.log", "w") as file:
                file.write(machine.log())
    finally:
        cluster.down()
    with open(args.out + "/log", errors="replace") as log:
        ends = [json.loads(line)["msg"] for line in log if line.startswith('{"msg":"') and line.rstrip().endswith("}")]
    failed = [text.removeprefix("FAILED ") for text in ends if text.startswith("FAILED ")]
    for text in failed:
        print("FAILED", text)
    print(f"{sum(text.startswith('PASSED ') for text in ends)} passed, {len(failed)} failed; {args.out}/log says more")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(prog="tests/conformance", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--focus", default=r"\[Conformance\]", help="tests whose name has this")
    parser.add_argument("--skip", default=f"{SKIP}|{GONE}", help="but not this")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--out", default="/tmp/mussel-conformance")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("tests/conformance: must be root")
    compile_tests()
    compile_sample()
    folder = images()
    sample_images()
    sys.exit(run(args, sorted(glob.glob(folder + "/*.tar"))))


if __name__ == "__main__":
    main()
