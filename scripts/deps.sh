#!/usr/bin/env bash
# Installs the Debian packages of the named groups, those that are missing.
#   scripts/deps.sh [--list] GROUP...     groups: build runtime test floor machine bench
# build:   compile the BPF programs      runtime: what the daemon calls
# test:    what tests and demo call; also unpacks the kernel of utility VMs into .cache/vm, without installing it
# bench:   the tools we measure ourselves against
# floor:   a virtual machine with the oldest kernel that we support
# machine: what such a machine is made of, when it boots as a whole
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/vm.sh

declare -A groups=(
	[build]="clang-14 llvm-14 gcc make"
	[runtime]="nftables iproute2 runc conmon conntrack"
	[test]="etcd-server tcpdump socat netcat-openbsd iperf3 bind9-dnsutils dnsmasq-base radvd kea-dhcp6-server curl jq docker-registry mmdebstrap busybox-static openssl shellcheck ufw firewalld dbus iptables podman docker.io containerd containernetworking-plugins qemu-system-x86 crun"
	[floor]="qemu-system-x86 cpio kmod busybox-static"
	[machine]="systemd systemd-sysv runc crun conmon procps jq curl kmod e2fsprogs libteam-utils iputils-ping"
	[bench]="podman netavark containernetworking-plugins iptables ipset iperf3 crun"
)

list=
if [[ ${1-} == --list ]]; then
	list=1
	shift
fi
if (($# == 0)); then
	echo "usage: $0 [--list] GROUP...   (groups: ${!groups[*]})" >&2
	exit 2
fi

# The kernel that tests start VMs with. Installed, it would want to be the host's.
guest_kernel() {
	local dir=.cache/vm
	[[ " $* " == *" test "* && ! -d $dir ]] || return 0
	rm -rf "$dir.new"
	vm_kernel "$dir.new" >/dev/null || { apt-get update -qq && vm_kernel "$dir.new" >/dev/null; }
	mv "$dir.new" "$dir"
}

missing=()
for group in "$@"; do
	if [[ -z ${groups[$group]-} ]]; then
		echo "deps: no group $group; there are: ${!groups[*]}" >&2
		exit 2
	fi
	for package in ${groups[$group]}; do
		status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
		[[ $status == installed ]] || missing+=("$package")
	done
done

if [[ -n $list ]]; then
	((${#missing[@]} == 0)) || printf '%s\n' "${missing[@]}"
	exit 0
fi
if ((${#missing[@]} == 0)); then
	guest_kernel "$@"
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps: this is no Debian; install what these packages hold: ${missing[*]}" >&2
	exit 1
fi
if ((EUID != 0)); then
	echo "deps: missing: ${missing[*]}; install them with: sudo $0 $*" >&2
	exit 1
fi

# Some of the packages bring a service (a registry on port 5000, for one). None is wanted: while this policy is in
# place, package scripts start nothing. Somebody else's policy stays as it is.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy && ! -L $policy ]]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

echo "deps: installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

# Nor at the next boot. What was there before is somebody's choice; ufw stays off by its own configuration.
for unit in docker-registry/docker-registry.service firewalld/firewalld.service etcd/etcd.service \
	docker.io/docker.service docker.io/docker.socket containerd/containerd.service radvd/radvd.service kea-dhcp6-server/kea-dhcp6-server.service; do
	if [[ " ${missing[*]} " == *" ${unit%/*} "* ]]; then
		DPKG_MAINTSCRIPT_PACKAGE=${unit%/*} deb-systemd-helper disable "${unit#*/}" >/dev/null
	fi
done
echo "deps: installed ${#missing[@]} packages"
guest_kernel "$@"
