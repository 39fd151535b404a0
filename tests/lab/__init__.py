"""Machines for whole-system tests, made of namespaces; links between them that can be cut; and clusters of them.

`python3 tests/lab up --servers 3 --agents 2` makes a cluster for people, too.
"""

from lab.base import (BINARY, BUSYBOX, CGROUPS, KUBECTL, PATIENCE, ROOT, TESTS, WEB, WEB2, Failed, Result,
                      image_archives, images, run, wait_for)
from lab.case import Case, ClusterCase, Late
from lab.cluster import Cluster
from lab.machine import Machine
from lab.network import Network

__all__ = ["BINARY", "BUSYBOX", "CGROUPS", "KUBECTL", "PATIENCE", "ROOT", "TESTS", "WEB", "WEB2", "Case", "Cluster",
           "ClusterCase", "Failed", "Late", "Machine", "Network", "Result", "image_archives", "images", "run", "wait_for"]
