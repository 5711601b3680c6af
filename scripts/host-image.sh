#!/usr/bin/env bash
# Makes the root file system of a host of containers, as a tar: bulkhead, and what its daemon calls, out of the Debian packages that are
# installed here. Nothing is downloaded.
#   scripts/host-image.sh FILE [PROGRAM...]
#   bulkhead image import --entrypoint /usr/bin/bulkhead --entrypoint host-init --cmd --pool --cmd 10.247.0.0/16 FILE bulkhead-host
# Further programs are taken along with their libraries, such as etcd for a host that is to be a member of a cluster. BULKHEAD names the
# program; bin/bulkhead, which `make build` makes, without it. The pool keeps the networks of the host apart from those around it.
set -euo pipefail

out=${1:?usage: $0 FILE [PROGRAM...]}
shift
bulkhead=${BULKHEAD:-$(dirname "$0")/../bin/bulkhead}
declare -A packages=([conmon]=conmon [crun]=crun [nft]=nftables [busybox]=busybox-static)

need() {
	command -v "$1" || {
		echo "host-image: there is no $1; run apt-get install ${packages[$1]-a package that has it}" >&2
		exit 1
	}
}
[[ -x $bulkhead ]] || {
	echo "host-image: there is no $bulkhead; run make build, or name it in BULKHEAD" >&2
	exit 1
}
busybox=$(need busybox)
if ldd "$busybox" >/dev/null 2>&1; then
	echo "host-image: $busybox needs libraries; run apt-get install busybox-static" >&2
	exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root" "$out.new"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{dev,etc/ssl/certs,proc,sys,run,tmp,root,var/lib/bulkhead,usr/bin,usr/sbin,usr/lib,usr/lib64}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
ln -s /run "$root/var/run"
chmod 1777 "$root/tmp"
install -m 755 "$bulkhead" "$root/usr/bin/bulkhead"
for tool in conmon crun nft "$@"; do
	path=$(need "$tool")
	install -m 755 "$path" "$root/usr/bin/"
	while read -r library; do
		install -D "$library" "$root$library"
	done < <(ldd "$path" 2>/dev/null | grep -o '/[^ ]*' || true)
done
install -m 755 "$busybox" "$root/usr/bin/busybox"
for applet in $("$busybox" --list); do
	[[ -e $root/usr/bin/$applet ]] || ln -s busybox "$root/usr/bin/$applet"
done
echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
printf '%s\n' "root:x:0:" "tty:x:5:" >"$root/etc/group"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || echo "host-image: there are no certificates of CAs here (ca-certificates); registries with TLS will not be trusted" >&2
tar --owner=0 --group=0 --numeric-owner -C "$root" -cf "$out.new" .
mv "$out.new" "$out"
