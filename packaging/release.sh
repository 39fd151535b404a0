#!/bin/sh
# Packs a release: release.sh [OUT_DIR] makes OUT_DIR/mussel-<version>-<arch>.tar.gz and its .sha256 (OUT_DIR: target/release-files).
# The binary is built by build.sh with PROFILE=dist, or is $BINARY, for the architecture $ARCH (this machine's).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/target/release-files}
arch=${ARCH:-$(uname -m)}
if [ -z "${BINARY:-}" ]; then
    PROFILE=dist TARGET=$arch-unknown-linux-gnu "$root/packaging/build.sh"
    BINARY=$(PROFILE=dist TARGET=$arch-unknown-linux-gnu "$root/packaging/build.sh" --print)
fi
[ -f "$BINARY" ] || { echo "$BINARY does not exist" >&2; exit 1; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
name=mussel-$version-$arch
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name/systemd"
install -m 0755 "$BINARY" "$work/$name/mussel"
install -m 0755 "$root/install.sh" "$work/$name/"
install -m 0644 "$root/systemd/mussel.service" "$work/$name/systemd/"
for file in README.md LICENSE docs; do
    if [ -e "$root/$file" ]; then cp -r "$root/$file" "$work/$name/"; fi
done
# The same input gives the same bytes: fixed order, owner and time, no name or time in the gzip header.
time=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$time" -cf - "$name" | gzip -9n >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
echo "$out/$name.tar.gz"
