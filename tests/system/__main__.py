"""Runs the whole-system tests: all, or those whose module, class or name contains one of the arguments.

Ends with one line: `N passed, M failed`.
"""

import os
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


def main():
    if os.geteuid() != 0:
        sys.exit("system tests: must be root")
    if not os.access(lab.BINARY, os.X_OK):
        sys.exit(f"system tests: {lab.BINARY} is missing; build it with `cargo build`, or set MUSSEL_BINARY")
    wanted = sys.argv[1:]
    chosen = unittest.TestSuite()
    for test in cases(unittest.defaultTestLoader.discover(HERE, "test_*.py", HERE)):
        # A module that cannot be loaded is a failure, whatever was asked for.
        if not wanted or any(word in test.id() for word in wanted) or "_FailedTest" in type(test).__name__:
            chosen.addTest(test)
    if chosen.countTestCases() == 0:
        sys.exit(f"system tests: none is called {' or '.join(wanted)}")
    report = Report()
    chosen.run(report)
    failed = len(report.failures) + len(report.errors)
    print(f"{getattr(report, 'passed', 0)} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
