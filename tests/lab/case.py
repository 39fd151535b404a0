"""Tests with a time limit, on a machine or on a cluster of machines."""

import signal
import sys
import unittest

from lab.base import PATIENCE, Failed
from lab.cluster import Cluster
from lab.machine import Machine


class Late(AssertionError):
    """A test that ran into its own time limit."""


class Timed(unittest.TestCase):
    """A test with a time limit."""

    time_limit = 150
    maxDiff = None

    def setUp(self):
        def late(*_):
            raise Late(f"not done after {self.time_limit} s")
        signal.signal(signal.SIGALRM, late)
        signal.alarm(int(self.time_limit * PATIENCE))

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            signal.alarm(0)
            print(f"\n---- {self.id()} failed", file=sys.stderr)
            self.explain()

    def tearDown(self):
        signal.alarm(0)

    def explain(self):
        """Prints what helps to understand a failure."""


class ClusterCase(Timed):
    """A test on a cluster that all tests of its class share."""

    servers, agents, flags, agent_flags = 1, 2, (), ()
    time_limit = 300

    @classmethod
    def cluster(cls):
        return Cluster(cls.servers, cls.agents, cls.flags, cls.agent_flags)

    @classmethod
    def setUpClass(cls):
        cls.c = cls.cluster()
        cls.m = cls.c.first
        try:
            cls.c.start()
        except BaseException:
            print(cls.c.explain(), file=sys.stderr)
            cls.c.down()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.c.down()

    def explain(self):
        print(self.c.explain(), file=sys.stderr)


class Case(Timed):
    """A test on a machine that all tests of its class share unless `shared` is false."""

    shared = True
    machine_flags = ()

    @classmethod
    def machine(cls):
        return Machine(flags=cls.machine_flags)

    @classmethod
    def setUpClass(cls):
        if cls.shared:
            cls.m = cls.machine()
            try:
                cls.m.start()
            except BaseException:
                print(cls.m.log_tail(), file=sys.stderr)
                cls.m.down()
                raise

    @classmethod
    def tearDownClass(cls):
        if cls.shared:
            cls.m.down()

    def setUp(self):
        super().setUp()
        if not self.shared:
            self.m = None

    def run(self, result=None):
        super().run(result)
        if not self.shared and getattr(self, "m", None):
            self.m.down()

    def explain(self):
        machine = getattr(self, "m", None)
        if not machine:
            return
        print("---- the server's log ends with", file=sys.stderr)
        print(machine.log_tail(), file=sys.stderr)
        if machine.running():
            for what in [("get", "pods,services,endpointslices", "-A", "-o", "wide"),
                         ("get", "events", "-A", "--sort-by=.lastTimestamp")]:
                try:
                    print(machine.kubectl(*what, check=False, timeout=10).out[-4000:], file=sys.stderr)
                except Failed as error:
                    print(error, file=sys.stderr)
        print("----", file=sys.stderr)
