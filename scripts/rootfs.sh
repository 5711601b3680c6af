#!/usr/bin/env bash
# Makes a small root file system to try things with, as a tar: busybox under the names of its commands, and a page.
#   scripts/rootfs.sh FILE
set -euo pipefail

out=${1:?usage: $0 FILE}
busybox=$(command -v busybox) || {
	echo "rootfs: there is no busybox; run apt-get install busybox-static" >&2
	exit 1
}
if ldd "$busybox" >/dev/null 2>&1; then
	echo "rootfs: $busybox needs libraries, which a container would not have; run apt-get install busybox-static" >&2
	exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp,root,home,var,www}
chmod 755 "$root"
chmod 1777 "$root/tmp"
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
	[[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
done
echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
echo "root:x:0:" >"$root/etc/group"
echo "hello from box" >"$root/www/index.html"
tar --owner=0 --group=0 --numeric-owner -C "$root" -cf "$out" .
