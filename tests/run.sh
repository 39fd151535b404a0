#!/bin/sh
# All checks and tests, on a clean clone, as root on Debian.
#
#   tests/run.sh                  everything
#   tests/run.sh lint             format and clippy
#   tests/run.sh cargo            unit and component tests
#   tests/run.sh system [WORD…]   whole-system tests; only those whose name has one of the words
#   tests/run.sh machine          a whole machine: systemd, a kernel of its own, cgroup v2, a power cut
#
# The last line is `N passed, M failed`; the exit code is 0 when nothing failed.
# MUSSEL_TEST_PATIENCE=2 doubles all deadlines of the system tests; MUSSEL_KUBECTL names the kubectl to use.
set -u
cd "$(dirname "$0")/.." || exit 1

passed=0
failed=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'exit 130' INT TERM

say() { printf '\n==== %s\n' "$*"; }
die() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

# What the tests call, and the Debian package that brings it.
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

prepare_machine() {
    [ "$(id -u)" = 0 ] || die 'must be root: containers, namespaces and cgroups are made'
    missing=
    need cc gcc
    need iptables iptables
    need conntrack conntrack
    need busybox busybox-static
    need docker-registry docker-registry
    need curl curl
    need ip iproute2
    need python3 python3
    need zstd zstd
    need openssl openssl
    need mkfs.ext4 e2fsprogs
    need ps procps
    need nsenter util-linux
    need script bsdutils
    [ -x /usr/lib/cni/host-local ] || missing="$missing containernetworking-plugins"
    /usr/bin/python3 -c 'import grpc' 2>/dev/null || missing="$missing python3-grpcio"
    # The images of the tests hold nothing but busybox, so it must be the static one.
    if command -v ldd >/dev/null 2>&1 && command -v busybox >/dev/null 2>&1 && ldd "$(command -v busybox)" >/dev/null 2>&1; then
        missing="$missing busybox-static"
    fi
    : "${MUSSEL_KUBECTL:=$(PATH=/usr/local/bin:/usr/bin:$PATH command -v kubectl || true)}"
    [ -n "$MUSSEL_KUBECTL" ] || missing="$missing kubernetes-client"
    if [ -n "$missing" ]; then
        say "apt: installing$missing"
        command -v apt-get >/dev/null 2>&1 || die "install these first:$missing"
        export DEBIAN_FRONTEND=noninteractive
        timeout 300 apt-get update -q && timeout 600 apt-get install -q -y --no-install-recommends $missing ||
            die "apt-get could not install$missing"
    fi
    # Debian's package is older than ours by many versions (1.20 in bookworm); most tests pass with it, some need 1.30.
    [ -n "$MUSSEL_KUBECTL" ] || MUSSEL_KUBECTL=$(command -v kubectl) || die 'kubectl is missing; set MUSSEL_KUBECTL'
    export MUSSEL_KUBECTL
    command -v cargo >/dev/null 2>&1 || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null 2>&1 || die 'cargo is missing; install Rust 1.95 or later from https://rustup.rs'
    for tool in rustfmt clippy; do
        cargo "${tool#rust}" --version >/dev/null 2>&1 || timeout 300 rustup component add "$tool" ||
            die "cargo ${tool#rust} is missing; add the rustup component $tool"
    done
}

# One check that passes or fails as a whole.
check() {
    what=$1
    shift
    say "$what"
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); printf 'FAILED: %s\n' "$what"; fi
}

# Counts `A passed; B failed` (cargo) or `A passed, B failed` (ours) in the file; a run that ended badly without
# naming a failed test counts as one.
count() {
    sums=$(grep -oE '[0-9]+ passed[;,] [0-9]+ failed' "$1" | sed -E 's/ passed[;,]//; s/ failed//' |
        awk '{p += $1; f += $2} END {print p + 0, f + 0}')
    # The runtime's tests of real pods have a harness of their own, which tells each with its time and no sum.
    new_passed=$((${sums% *} + $(grep -cE '^test .* \.\.\. ok \([0-9]+ ms\)$' "$1")))
    new_failed=$((${sums#* } + $(grep -cE '^test .* \.\.\. FAILED \([0-9]+ ms\)$' "$1")))
    [ "$2" = 0 ] || [ "$new_failed" != 0 ] || new_failed=1
    passed=$((passed + new_passed))
    failed=$((failed + new_failed))
}

counted() {
    what=$1
    shift
    say "$what"
    { "$@" 2>&1; echo $? >"$logs/code"; } | tee "$logs/out"
    count "$logs/out" "$(cat "$logs/code")"
}

lint() {
    check 'format' timeout 120 cargo fmt --all --check
    check 'clippy' timeout 2400 cargo clippy --locked --workspace --all-targets -- -D warnings
}

cargo_tests() {
    # Component tests make namespaces, mounts and iptables rules, each test of its own; two at a time is what a small
    # machine bears without running into deadlines.
    counted 'unit and component tests' timeout 2400 cargo test --locked --workspace --no-fail-fast -- --test-threads=2
}

binary() {
    if [ -z "${MUSSEL_BINARY:-}" ]; then
        check 'binary' timeout 2400 cargo build --locked -p mussel
        MUSSEL_BINARY=${CARGO_TARGET_DIR:-$PWD/target}/debug/mussel
        export MUSSEL_BINARY
    fi
}

system_tests() {
    binary
    counted 'whole-system tests' timeout -k 30 2400 python3 tests/system "$@"
}

# With the same binary: emulated, an optimised one would save less time than building it takes.
machine_tests() {
    binary
    counted 'a whole machine' timeout -k 30 2400 tests/machine/run.sh "$MUSSEL_BINARY"
}

part=${1:-all}
[ $# = 0 ] || shift
case $part in
all | lint | cargo | system | machine) ;;
*) die "unknown part '$part'; lint, cargo, system, machine or nothing" ;;
esac
prepare_machine
case $part in
all) lint; cargo_tests; system_tests; machine_tests ;;
lint) lint ;;
cargo) cargo_tests ;;
system) system_tests "$@" ;;
machine) machine_tests ;;
esac

printf '\n%s passed, %s failed\n' "$passed" "$failed"
# A run that tested nothing has not passed.
[ "$failed" = 0 ] && [ "$passed" != 0 ]
