#!/bin/sh
# Installs mussel on a whole machine (Debian: its own kernel, systemd, cgroup v2) under software emulation, cuts its
# power, takes mussel off again. Takes some minutes; needs root, and the network only while the machine is built.
#
#   tests/machine/run.sh [BINARY]     without BINARY, builds one with packaging/build.sh or packaging/cross.sh
#
# MUSSEL_TEST_ARCH   amd64 (Debian 12) or arm64 (Debian 13, as a Raspberry Pi has it); this machine's
# MUSSEL_TEST_CACHE  where the machines are kept between runs (/var/cache/mussel-tests); made anew when missing
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${MUSSEL_TEST_CACHE:-/var/cache/mussel-tests}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

[ "$(id -u)" = 0 ] || { echo "must be root" >&2; exit 1; }
native=$(dpkg --print-architecture)
arch=${MUSSEL_TEST_ARCH:-$native}
missing=
case "$arch" in
    amd64) suite=bookworm name=debian12-1; command -v qemu-system-x86_64 >/dev/null || missing="qemu-system-x86" ;;
    arm64) suite=trixie name=debian13-arm64-1; command -v qemu-system-aarch64 >/dev/null || missing="qemu-system-arm" ;;
    *) echo "MUSSEL_TEST_ARCH may be amd64 or arm64" >&2; exit 1 ;;
esac
if [ "$arch" != "$native" ]; then
    [ "$arch" = arm64 ] || { echo "only arm64 machines are built on other ones" >&2; exit 1; }
    command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-user-static"
fi
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

# The other architecture's programs run here too: while its machine is built, and busybox to be asked what it can do.
if [ "$arch" != "$native" ] && [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    sed -n 's/#.*//; /^:/p' /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
fi

# The version in the name: a changed recipe makes a new machine.
machine=$cache/$name
if [ ! -e "$machine/disk.img" ]; then
    echo "building the machine in $machine"
    rm -rf "$machine" "$machine.new"
    mkdir -p "$machine.new"
    "$here/build.sh" "$machine.new" "$mirror" "$arch" "$suite" >"$machine.new/log" 2>&1 || { tail "$machine.new/log" >&2; exit 1; }
    mv "$machine.new" "$machine"
fi

if [ $# -ge 1 ]; then binary=$1
elif [ "$arch" != "$native" ]; then binary=$("$root/packaging/cross.sh" | tail -n 1)
else
    "$root/packaging/build.sh"
    binary=$("$root/packaging/build.sh" --print)
fi
exec python3 "$here/machine.py" "$machine" "$binary" "$arch"
