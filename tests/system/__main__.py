"""Runs the whole-system tests: all, or those whose module, class or name contains one of the arguments.

Most of their time is waiting, so MUSSEL_TEST_LANES classes (2 where it is not set) run at the same time, each in a process and
on machines of its own. Ends with one line: `N passed, M failed`.
"""

import concurrent.futures
import os
import re
import subprocess
import sys
import time
import traceback
import unittest

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import lab  # noqa: E402


def clip(text, most=6000):
    return text if len(text) <= most else text[:most // 2] + "\n[...]\n" + text[-most // 2:]


class Report(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def _line(self, word, test):
        print(f"{word:6} {time.monotonic() - self.began:6.1f} s  {test.id()}", flush=True)

    def addSuccess(self, test):
        self.passed = getattr(self, "passed", 0) + 1
        self._line("ok", test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self._line("FAILED", test)
        print(clip(self.failures[-1][1]), flush=True)

    def addError(self, test, error):
        self.began = getattr(self, "began", time.monotonic())
        super().addError(test, error)
        self._line("FAILED", test)
        print(clip(self.errors[-1][1]), flush=True)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error:
            self._line("FAILED", subtest)
            print(clip("".join(traceback.format_exception(*error))), flush=True)


def cases(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        else:
            yield test


# These take longest: begun last, one of them would run alone at the end.
FIRST = ["test_failing.", "test_pod_network.Death", "test_ha.", "test_controllers."]
# A class that hangs in something that has no deadline of its own.
CLASS_SECONDS_MAX = 1800


def run_class(name, words):
    """Runs one class in a process of its own; what it printed, and how many passed and failed."""
    command = [sys.executable, os.path.dirname(os.path.abspath(__file__)), "--class", name, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        text, _ = process.communicate(timeout=CLASS_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.terminate()
        text, _ = process.communicate()
        text += f"FAILED  {name}: not done after {CLASS_SECONDS_MAX} s\n"
    *lines, last = text.splitlines() or [""]
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed", last)
    if not counts:
        return text + f"FAILED  {name}: ended with {process.returncode}\n", 0, 1
    passed, failed = map(int, counts.groups())
    return "\n".join(lines) + "\n", passed, failed or int(process.returncode != 0)


def run_here(tests):
    report = Report()
    unittest.TestSuite(tests).run(report)
    return getattr(report, "passed", 0), len(report.failures) + len(report.errors)


def run_lanes(lanes, classes, words):
    passed = failed = 0
    classes = sorted(classes, key=lambda name: next((n for n, word in enumerate(FIRST) if name.startswith(word)), len(FIRST)))
    with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run_class, name, words) for name in classes]):
            text, more_passed, more_failed = done.result()
            print(text, end="", flush=True)
            passed, failed = passed + more_passed, failed + more_failed
    return passed, failed


def main():
    if os.geteuid() != 0:
        sys.exit("system tests: must be root")
    if not os.access(lab.BINARY, os.X_OK):
        sys.exit(f"system tests: {lab.BINARY} is missing; build it with `cargo build`, or set MUSSEL_BINARY")
    words, only = sys.argv[1:], None
    if words[:1] == ["--class"]:
        only, words = words[1], words[2:]
    chosen = {}
    for test in cases(unittest.defaultTestLoader.discover(HERE, "test_*.py", HERE)):
        name = f"{type(test).__module__}.{type(test).__qualname__}"
        # A module that cannot be loaded is a failure, whatever was asked for.
        if not words or any(word in test.id() for word in words) or "_FailedTest" in name:
            chosen.setdefault(name, []).append(test)
    if not chosen:
        sys.exit(f"system tests: none is called {' or '.join(words)}")
    lanes = int(os.environ.get("MUSSEL_TEST_LANES", "2"))
    if only:
        passed, failed = run_here(chosen[only])
    elif lanes > 1 and len(chosen) > 1:
        passed, failed = run_lanes(lanes, chosen, words)
    else:
        passed, failed = run_here(test for tests in chosen.values() for test in tests)
    print(f"{passed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
