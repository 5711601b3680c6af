#!/usr/bin/env bash
# PID 1 of a host of a demo, argument: its name. Runs with namespaces of its own already. internal/testhost/setup.go makes the same for tests.
set -eu

# Nothing that is mounted here may reach the real machine; within the host "/" is shared, as systemd has it.
mount --make-rprivate /

# /etc and /var/lib stay readable but written copies land in memory, so the machine keeps no trace.
stage=/mnt
mount -t tmpfs -o mode=755 testhost $stage
mkdir -p $stage/etc $stage/etc.work $stage/lib $stage/lib.work $stage/cgroup
mount -t overlay testhost-etc -o lowerdir=/etc,upperdir=$stage/etc,workdir=$stage/etc.work /etc
mount -t overlay testhost-lib -o lowerdir=/var/lib,upperdir=$stage/lib,workdir=$stage/lib.work /var/lib
mkdir -p /var/lib/bulkhead
# An overlay cannot carry another overlay's upper directory, and the daemon unpacks images here.
mount -t tmpfs -o mode=700 bulkhead /var/lib/bulkhead

mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock /run/bulkhead

mount -t proc proc /proc
# A new sysfs shows this network namespace's devices, but hides the cgroup mounts: carry them over.
if mountpoint -q /sys/fs/cgroup; then mount --rbind /sys/fs/cgroup $stage/cgroup; fi
mount -t sysfs sysfs /sys
if mountpoint -q $stage/cgroup; then
	mount --rbind $stage/cgroup /sys/fs/cgroup
	umount -l -R $stage/cgroup 2>/dev/null || umount -R -l $stage/cgroup
fi
mount -t bpf -o mode=700 bpf /sys/fs/bpf
umount -l $stage
mount --make-rshared /

echo "$1" >/proc/sys/kernel/hostname
# New namespaces inherit the IPv4 settings of the real machine; a demo wants the same ones everywhere.
echo 0 >/proc/sys/net/ipv4/ip_forward
for i in all default; do
	echo 2 >/proc/sys/net/ipv4/conf/$i/rp_filter
	echo 0 >/proc/sys/net/ipv6/conf/$i/accept_dad # addresses work at once
	echo 0 >/proc/sys/net/ipv6/conf/$i/accept_ra
done

echo ready
# Bash reaps orphans while it waits. The read ends when the demo is gone.
read -r _ || true
