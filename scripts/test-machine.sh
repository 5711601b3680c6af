#!/usr/bin/env bash
# Runs Bulkhead on a machine that is its own: Debian 12 in QEMU, with systemd, cgroup v2, kernel 6.1 and the service as
# `make install` leaves it. The machine is rebooted, and its power is cut, and what should be back has to be back.
#   scripts/test-machine.sh
# KEEP=DIR keeps disks and logs there. ONLY=bonds tries networks on bonds and teams alone, ONLY=encryption
# what encrypts by the kernel. What happens inside is scripts/test-machine-guest.sh.
# The machine has no network but a cable that leads nowhere. Its system is made of the files of packages that are
# installed here; nothing but the kernel is ever downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/vm.sh

silence=300 # seconds without a line after which the machine is given up
packages=(systemd systemd-sysv kmod iproute2 nftables runc crun conmon conntrack curl procps jq util-linux mount bash dash
	coreutils diffutils grep sed mawk findutils gzip tar hostname login libc-bin base-files base-passwd libteam-utils iputils-ping)
[[ ${ONLY-} != encryption ]] || packages+=(etcd-server)

./scripts/deps.sh build runtime test floor machine
if [[ -n ${KEEP-} ]]; then
	mkdir -p "$KEEP"
	work=$(realpath "$KEEP")
	rm -rf "${work:?}"/*
else
	work=$(mktemp -d)
fi
qemu=
finish() {
	[[ -z $qemu ]] || kill -9 "$qemu" 2>/dev/null || true
	[[ -n ${KEEP-} ]] || rm -rf "$work"
}
trap finish EXIT

version=$(vm_kernel "$work/kernel")
echo "test-machine: making a machine with kernel $version, systemd and cgroup v2"

# The system's disk, and one for state.
root=$work/root
mkdir "$root"
vm_tree "$root" "${packages[@]}"
ln -sf mawk "$root/usr/bin/awk"
mkdir -p "$root"/{dev,proc,sys,run,tmp,machine,var/lib/bulkhead,etc/systemd/system/multi-user.target.wants}
rm -rf "$root"/etc/{machine-id,systemd/system/*.wants} "$root"/var/log/journal
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
printf '%s\n' 'bulkhead:x:998:' 'systemd-journal:x:997:' >>"$root/etc/group"
printf '%s\n' 'root::1::::::' >"$root/etc/shadow"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id" # without one, systemd asks for a key to be pressed
echo floor >"$root/etc/hostname"
echo '127.0.0.1 localhost floor' >"$root/etc/hosts"
truncate -s 0 "$root/etc/resolv.conf" "$root/etc/fstab"
for unit in modprobe@ systemd-timesyncd systemd-firstboot systemd-pstore getty@ serial-getty@ systemd-logind; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
cp -a "$work/kernel/lib/modules" "$root/usr/lib/"
depmod -b "$root" "$version"
make --no-print-directory install DESTDIR="$root" >/dev/null
./scripts/rootfs.sh "$root/machine/box.tar"
install scripts/test-machine-guest.sh "$root/machine/guest.sh"
[[ -z ${ONLY-} ]] || echo "$ONLY" >"$root/machine/only"
cat >"$root/etc/systemd/system/uplink.service" <<'UNIT'
[Unit]
Before=network.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'modprobe virtio_net; i=$(ls /sys/class/net | grep -v -e lo -e bh | head -1); \
	ip addr add 192.0.2.2/24 dev $i; ip addr add 2001:db8:1::2/64 dev $i nodad; ip link set $i up; \
	ip route add default via 192.0.2.1; ip route add default via 2001:db8:1::1'
UNIT
cat >"$root/etc/systemd/system/machine.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash /machine/guest.sh
StandardOutput=file:/dev/ttyS1
StandardError=inherit
KillMode=process
UNIT
for unit in uplink machine; do
	ln -s "../$unit.service" "$root/etc/systemd/system/multi-user.target.wants/"
done
mke2fs -q -t ext4 -L system -d "$root" "$work/system.img" 1200M >/dev/null
mke2fs -q -t ext4 -L state "$work/state.img" 512M >/dev/null
rm -rf "$root"

# Before systemd: the drivers of the disks.
early=$work/early
mkdir -p "$early"/{bin,proc,dev,system,modules}
cp "$(command -v busybox)" "$early/bin/busybox"
vm_modules "$work/kernel" "$version" virtio_pci virtio_blk | while read -r path; do
	cp "$path" "$early/modules/"
	basename "$path"
done >"$early/modules/order"
cat >"$early/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs d /dev
while read -r m; do insmod /modules/$m; done </modules/order
mount -t ext4 /dev/vda /system && mount -t ext4 /dev/vdb /system/var/lib/bulkhead || poweroff -f
mount --move /dev /system/dev
exec switch_root /system /sbin/init
INIT
chmod +x "$early/init"
(cd "$early" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

report=$work/report.log
: >"$report"
options="console=ttyS0 panic=1 mitigations=off tsc=reliable nowatchdog random.trust_cpu=on systemd.show_status=0"
power_on() {
	qemu-system-x86_64 -machine "q35,accel=$(vm_accel)" -cpu max -m 1536 -smp 1 -display none -nodefaults \
		-chardev file,id=console,path="$work/console.log",append=on -serial chardev:console \
		-chardev file,id=report,path="$report",append=on -serial chardev:report \
		-drive file="$work/system.img",format=raw,if=virtio -drive file="$work/state.img",format=raw,if=virtio \
		-netdev hubport,id=n0,hubid=0 -device virtio-net-pci,netdev=n0 \
		-kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd" -append "$options" </dev/null >"$work/qemu.log" 2>&1 &
	qemu=$!
}

# await TEXT waits until the machine reports a line, shows what it says, and fails when it fails, ends or is silent.
shown=0
show() {
	local lines=()
	mapfile -t lines < <(tr -d '\r' <"$report")
	((${#lines[@]} == shown)) || printf '%s\n' "${lines[@]:shown}"
	shown=${#lines[@]}
}
await() {
	local end=$((SECONDS + silence)) before
	until grep -q "^machine: $1" "$report"; do
		before=$shown
		show
		((shown == before)) || end=$((SECONDS + silence))
		if ((SECONDS > end)) || ! kill -0 "$qemu" 2>/dev/null || grep -q '^machine: FAILED' "$report"; then
			sleep 10
			show
			tail -20 "$work/console.log"
			echo "test-machine: FAILED: waited for \"$1\""
			exit 1
		fi
		sleep 1
	done
	show
}

power_on
if [[ -z ${ONLY-} ]]; then
	await 'storm: 4'
	sleep "$((RANDOM % 4)).$((RANDOM % 10))"
	echo "test-machine: cutting the power"
	kill -9 "$qemu"
	wait "$qemu" 2>/dev/null || true
	power_on
fi
await 'PASSED'
qemu_ends() { ! kill -0 "$qemu" 2>/dev/null; }
for ((i = 0; i < 60; i++)); do
	if qemu_ends; then break; fi
	sleep 0.5
done
qemu_ends || { echo "test-machine: FAILED: the machine does not power off"; exit 1; }
qemu=
echo "test-machine: PASSED in $SECONDS s"
