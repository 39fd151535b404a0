#!/bin/sh
# Installs mussel on a whole machine (Debian 12: its own kernel, systemd, cgroup v2) under software emulation, cuts its
# power, takes mussel off again. Takes some minutes; needs root, and the network only while the machine is built.
#
#   tests/machine/run.sh [BINARY]     without BINARY, builds one with packaging/build.sh
#
# MUSSEL_TEST_CACHE  where the machine is kept between runs (/var/cache/mussel-tests); made anew when missing
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${MUSSEL_TEST_CACHE:-/var/cache/mussel-tests}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

[ "$(id -u)" = 0 ] || { echo "must be root" >&2; exit 1; }
missing=
command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
command -v debootstrap >/dev/null || missing="$missing debootstrap"
command -v mkfs.ext4 >/dev/null || missing="$missing e2fsprogs"
command -v busybox >/dev/null || missing="$missing busybox-static"
command -v objcopy >/dev/null || missing="$missing binutils"
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086
    { timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq \
        --no-install-recommends $missing; } >/dev/null || { echo "apt-get could not install$missing" >&2; exit 1; }
fi
command -v kubectl >/dev/null || { echo "kubectl is missing" >&2; exit 1; }

# The version in the name: a changed recipe makes a new machine.
machine=$cache/debian12-1
if [ ! -e "$machine/disk.img" ]; then
    echo "building the machine in $machine"
    rm -rf "$machine" "$machine.new"
    mkdir -p "$machine.new"
    "$here/build.sh" "$machine.new" "$mirror" >"$machine.new/log" 2>&1 || { tail "$machine.new/log" >&2; exit 1; }
    mv "$machine.new" "$machine"
fi

if [ $# -ge 1 ]; then binary=$1; else
    "$root/packaging/build.sh"
    binary=$("$root/packaging/build.sh" --print)
fi
exec python3 "$here/machine.py" "$machine" "$binary"
