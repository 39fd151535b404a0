#!/bin/sh
# Builds a Debian machine: build.sh DIR MIRROR ARCH SUITE makes DIR/{disk.img,vmlinuz,initrd}, and DIR/{kubectl,busybox} when ARCH
# (amd64, arm64) is not this machine's.
set -eu
dir=$1 mirror=$2 arch=$3 suite=$4
root=$dir/root
foreign=
[ "$arch" = "$(dpkg --print-architecture)" ] || foreign=--foreign
trap 'mountpoint -q "$root/proc" && umount "$root/proc"; rm -rf "$root"' EXIT
packages="systemd systemd-sysv udev iproute2 iptables curl ca-certificates procps kmod dbus conntrack"
if [ -z "$foreign" ]; then
    timeout 900 debootstrap --variant=minbase --include="$(echo "$packages" | tr ' ' ,)" "$suite" "$root" "$mirror"
else
    # The second stage runs emulated and reads all of the archive's index once per package: as few as can be.
    timeout 900 debootstrap --foreign --arch="$arch" --variant=minbase "$suite" "$root" "$mirror"
    timeout 1800 chroot "$root" /debootstrap/debootstrap --second-stage
fi
mount -t proc proc "$root/proc"
if [ -n "$foreign" ]; then
    # debootstrap's second stage leaves no sources behind.
    echo "deb $mirror $suite main" >"$root/etc/apt/sources.list"
    timeout 600 chroot "$root" apt-get update -qq
else
    packages=
fi
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive timeout 1800 chroot "$root" apt-get install -y -qq --no-install-recommends \
    "linux-image-cloud-$arch" initramfs-tools $packages
if [ -n "$foreign" ]; then
    # What the tests bring along, for that architecture.
    timeout 300 chroot "$root" sh -c 'cd /tmp && apt-get download -qq kubectl busybox-static && for deb in ./*.deb; do dpkg-deb -x "$deb" /tmp/tools; done'
    cp "$root/tmp/tools/usr/bin/kubectl" "$dir/kubectl"
    cp "$(find "$root/tmp/tools" -type f -path '*/bin/busybox')" "$dir/busybox"
    rm -rf "$root/tmp/tools" "$root"/tmp/*.deb
fi
chroot "$root" apt-get clean
umount "$root/proc"

echo machine >"$root/etc/hostname"
printf '127.0.0.1 localhost machine\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
: >"$root/etc/machine-id"
# The emulator's network leads nowhere, but a machine has an address and a default route.
cat >"$root/etc/systemd/network/10-machine.network" <<UNIT
[Match]
Name=en* eth*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
LinkLocalAddressing=no
UNIT
# Runs the scripts that come through a virtio port, one line each: id and script in base64; answers id, code, output.
cat >"$root/usr/sbin/test-agent" <<'AGENT'
#!/bin/sh
exec 3<>/dev/virtio-ports/test-agent
echo ready 0 >&3
while read -r id script <&3; do
    output=$(HOME=/root sh -c "$(printf %s "$script" | base64 -d)" 2>&1 </dev/null 3>&-)
    code=$?
    echo "$id $code $(printf %s "$output" | base64 -w0)" >&3
done
AGENT
chmod 0755 "$root/usr/sbin/test-agent"
cat >"$root/etc/systemd/system/test-agent.service" <<UNIT
[Unit]
After=dev-virtio\x2dports-test\x2dagent.device multi-user.target
Wants=dev-virtio\x2dports-test\x2dagent.device
[Service]
ExecStart=/usr/sbin/test-agent
[Install]
WantedBy=multi-user.target
UNIT
# systemd may not find a device unit for the port without this tag.
printf 'SUBSYSTEM=="virtio-ports", TAG+="systemd"\n' >"$root/etc/udev/rules.d/99-test-agent.rules"
chroot "$root" systemctl enable test-agent systemd-networkd
chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer systemd-timesyncd e2scrub_all.timer fstrim.timer

cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
cp "$root"/boot/initrd.img-* "$dir/initrd"
truncate -s 3G "$dir/disk.img.new"
mkfs.ext4 -q -d "$root" "$dir/disk.img.new"
mv "$dir/disk.img.new" "$dir/disk.img"
