#!/usr/bin/env bash
# Runs the tests of the switch and of encryption on the oldest kernel that Bulkhead supports, 6.1, in a virtual machine.
#   scripts/kernel-floor.sh [TESTS]     TESTS: a regular expression of names of the switch's tests
# ONLY=vswitch or ONLY=wireguard runs one of the two.
# The kernel is Debian 12's. Without KVM the machine is emulated, which takes about two minutes. 6.1 has no TCX, so
# this is also where the clsact way is the only one. It has WireGuard, which must then be what encrypts.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/vm.sh

tests=${1:-'TestTraceAgrees|TestReachability|TestDelivery$|TestSourceGuard$|TestFragment|TestUpdate'}
minutes=10
read -ra packages <<<"${ONLY:-vswitch wireguard}"

./scripts/deps.sh build test floor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

version=$(vm_kernel "$work/kernel")
echo "kernel-floor: $version"

root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,run,var/lib,root,etc,mnt,usr,srv,opt,home,tools,lib/modules}
for package in "${packages[@]}"; do
	CGO_ENABLED=0 go test -c -o "$root/$package.test" "./internal/dataplane/$package"
done

# What the tests' throwaway hosts are made with; the rest is busybox.
cp "$(command -v busybox)" "$root/bin/"
for tool in bash ip unshare nsenter mount umount; do
	path=$(command -v "$tool")
	cp -L "$path" "$root/tools/"
	while read -r lib; do
		install -D "$lib" "$root$lib"
	done < <(ldd "$path" | grep -o '/[^ ]*' || true)
done

modules=(veth sch_ingress cls_bpf overlay nfnetlink nf_tables nf_conntrack nf_conntrack_netlink xfrm_user bridge tun wireguard)
vm_modules "$work/kernel" "$version" "${modules[@]}" >"$work/modules"
while read -r path; do
	cp "$path" "$root/lib/modules/"
	basename "$path"
done <"$work/modules" >"$root/lib/modules/order"

cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs t /tmp; mount -t tmpfs t /run
mount -t cgroup2 c /sys/fs/cgroup
mkdir -p /run/netns
while read -r m; do insmod /lib/modules/\$m; done </lib/modules/order
ip link set lo up
echo "kernel-floor: running on \$(uname -r)"
export REQUIRE_ROOT=1 REQUIRE_KERNEL_WIREGUARD=1 PATH=/tools:/bin
result=PASSED
for package in ${packages[@]}; do
	tests='$tests'
	[ \$package = vswitch ] || tests=.
	if /\$package.test -test.timeout ${minutes}m -test.run "\$tests" -test.v >/tmp/out 2>&1
	then grep -E '^ *(---|ok|PASS)' /tmp/out
	else cat /tmp/out; result=FAILED
	fi
done
echo "kernel-floor: \$result"
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

timeout $((minutes * 60 + 60)) qemu-system-x86_64 -machine "q35,accel=$(vm_accel)" -cpu max -m 2048 -smp 2 -nographic -nodefaults -serial stdio \
	-no-reboot -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd" -append "console=ttyS0 quiet loglevel=0 panic=1" </dev/null |
	tr -d '\r' | tee "$work/log" | sed -n '/kernel-floor: running/,$p'
grep -q '^kernel-floor: PASSED' "$work/log"
