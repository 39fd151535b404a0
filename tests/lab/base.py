"""What all of the lab is built on: constants, running commands, waiting, the test images."""

import atexit
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(TESTS)
BINARY = os.environ.get("MUSSEL_BINARY", os.path.join(ROOT, "target/debug/mussel"))
KUBECTL = os.environ.get("MUSSEL_KUBECTL", "/usr/bin/kubectl")
# Slow machines may stretch all deadlines.
PATIENCE = float(os.environ.get("MUSSEL_TEST_PATIENCE", "1"))
CGROUPS = "/sys/fs/cgroup"
BUSYBOX, WEB, WEB2 = "mussel.test/busybox:1", "mussel.test/web:1", "mussel.test/web:2"

class Failed(AssertionError):
    """A command or a wait that did not come out as it must."""


class Result:
    def __init__(self, command, code, out, err):
        self.command, self.code, self.out, self.err = command, code, out, err

    def __repr__(self):
        return f"{shlex.join(map(str, self.command))}: exit code {self.code}\n{self.out}{self.err}"


def run(command, timeout=30, check=True, input=None, env=None, cwd=None):
    """Runs to the end or to the time-out, and keeps what it printed."""
    try:
        done = subprocess.run(command, input=input, capture_output=True, text=True, errors="replace",
                              timeout=timeout * PATIENCE, env=env, cwd=cwd, start_new_session=True)
    except subprocess.TimeoutExpired as late:
        def text(part):
            return part.decode(errors="replace") if isinstance(part, bytes) else part or ""
        raise Failed(f"{shlex.join(map(str, command))}: still running after {timeout} s\n"
                     f"{text(late.stdout)}{text(late.stderr)}") from None
    result = Result(command, done.returncode, done.stdout, done.stderr)
    if check and result.code != 0:
        raise Failed(repr(result))
    return result


def wait_for(what, condition, deadline=30, every=0.1):
    """Calls `condition` until it returns something true, and returns that.

    A failed command counts as "not yet", and its text is shown when time is up.
    """
    end, last = time.monotonic() + deadline * PATIENCE, None
    while True:
        try:
            last = condition()
            if last:
                return last
        except Failed as error:
            last = error
        if time.monotonic() > end:
            raise Failed(f"waited {deadline} s for {what}; last seen: {last}")
        time.sleep(every)


_images = None


def images():
    """The folder with the test images, built once per run of the tests."""
    global _images
    if _images is None:
        _images = os.environ.get("MUSSEL_TEST_IMAGES")
        if not _images:
            _images = tempfile.mkdtemp(prefix="mussel-images-")
            atexit.register(shutil.rmtree, _images, ignore_errors=True)
        if not os.path.exists(os.path.join(_images, "busybox.tar")):
            run([sys.executable, os.path.join(TESTS, "images/build.py"), _images], timeout=120)
    return _images


def image_archives():
    return sorted(os.path.join(images(), name) for name in os.listdir(images()))
