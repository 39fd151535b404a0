#!/bin/sh
# Builds the static release binary for this machine's architecture, or for $TARGET.
#   build.sh           builds            build.sh --print    prints where the binary is
# PROFILE: release (default) or dist (smallest; what is published).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
profile=${PROFILE:-release}
target=${TARGET:-$(uname -m)-unknown-linux-gnu}
dir=${CARGO_TARGET_DIR:-$root/target}
# Cargo's folder for the profile dev has another name.
folder=$profile
if [ "$profile" = dev ]; then folder=debug; fi
if [ "${1:-}" = --print ]; then echo "$dir/$target/$folder/mussel"; exit 0; fi
# Static and not position independent: the idle shims then share nearly all of their memory.
# --target keeps these flags away from build scripts and procedural macros, which cannot be static.
# Tests' profile unwinds.
tables=
if [ "$profile" != dev ]; then tables="-C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,$root/packaging/no-unwind.ld"; fi
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static $tables ${RUSTFLAGS:-}" \
    cargo build --manifest-path "$root/Cargo.toml" --locked --profile "$profile" --target "$target" --bin mussel
