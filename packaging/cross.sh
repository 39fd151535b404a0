#!/bin/sh
# Builds the static ARM64 binary on an x86_64 Debian machine, in a Debian 13 chroot with its cross toolchain.
#
#   cross.sh [ROOT]     ROOT: the chroot, kept between runs (/var/cache/mussel-cross; 2 GB)
#
# The result is target/arm64/aarch64-unknown-linux-gnu/$PROFILE/mussel. libc is linked in, so that it does not matter
# which libc the board has. Needs root (chroot, mounts) and debootstrap.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
chroot=${1:-/var/cache/mussel-cross}
profile=${PROFILE:-dist}
# Cargo's folder for the profile dev has another name.
folder=$profile
if [ "$profile" = dev ]; then folder=debug; fi
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
target=aarch64-unknown-linux-gnu
[ "$(id -u)" = 0 ] || { echo "must be root" >&2; exit 1; }

if [ ! -e "$chroot/complete" ]; then
    command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }
    debootstrap --variant=minbase trixie "$chroot" "$mirror"
    # Debian 13's own compiler is older than the code; that of backports is not.
    printf 'deb %s trixie main\ndeb %s trixie-backports main\n' "$mirror" "$mirror" >"$chroot/etc/apt/sources.list"
    chroot "$chroot" dpkg --add-architecture arm64
    chroot "$chroot" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive chroot "$chroot" apt-get install -y -qq --no-install-recommends -t trixie-backports \
        rustc cargo libstd-rust-dev:arm64 gcc-aarch64-linux-gnu libc6-dev:arm64 gcc libc6-dev ca-certificates
    chroot "$chroot" apt-get clean
    : >"$chroot/complete"
fi

# Crates come from the host's registry folder: the chroot has neither its network settings nor its certificates.
home=${CARGO_HOME:-$HOME/.cargo}
cargo fetch --locked --manifest-path "$root/Cargo.toml"
mkdir -p "$chroot/src" "$chroot/cargo-home/registry" "$root/target/arm64"
undo() {
    for point in proc cargo-home/registry src; do
        if mountpoint -q "$chroot/$point"; then umount "$chroot/$point"; fi
    done
}
trap undo EXIT
mount --bind "$root" "$chroot/src"
mount --bind "$home/registry" "$chroot/cargo-home/registry"
mount -t proc proc "$chroot/proc"
# As in build.sh.
tables=
if [ "$profile" != dev ]; then tables='-C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,/src/packaging/no-unwind.ld'; fi
chroot "$chroot" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CARGO_HOME=/cargo-home CARGO_TARGET_DIR=/src/target/arm64 \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar \
    RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static $tables" \
    cargo build --manifest-path /src/Cargo.toml --offline --locked --profile "$profile" --target $target --bin mussel
echo "$root/target/arm64/$target/$folder/mussel"
