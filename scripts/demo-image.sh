#!/usr/bin/env bash
# Makes the root file system of the demo's image out of Debian packages, as a tar:
#   scripts/demo-image.sh FILE
# A web server and the usual network tools. The packages come from where this machine's apt gets its own, and are only
# unpacked: their scripts never run, so nothing here needs a chroot, a mount or a running service.
set -euo pipefail

out=${1:?usage: $0 FILE}
packages=busybox,nginx,iproute2,iputils-ping,curl,ldnsutils,netcat-openbsd

# shellcheck source=/dev/null
. /etc/os-release
codename=${VERSION_CODENAME:?this system does not say its code name}

# apt knows its sources whatever files they are in; take those of the distribution itself, not of third parties.
# shellcheck disable=SC2016 # the fields are apt's
sources=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
	awk -v release="^$codename(-|$)" '$2 ~ release || $2 ~ /^(stable|testing|sid)(-|$)/ {
		print "deb", $1, $2, $3 }' | sort -u)
if [[ -z $sources ]]; then
	echo "demo-image: apt has no sources for $codename yet; run apt-get update" >&2
	exit 1
fi

options=()
proxy=
eval "$(apt-config shell proxy Acquire::http::Proxy)"
if [[ -n $proxy ]]; then
	options+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
fi

# What the packages' scripts would have done, as far as it is needed.
# shellcheck disable=SC2016 # $1 is the hook's
finish='set -eu
	cd "$1"
	mkdir -p dev proc sys run tmp root var/www/html var/log/nginx var/lib/nginx etc
	chmod 1777 tmp
	for applet in sh ash cat ls cp mv rm mkdir rmdir ln chmod chown echo env expr false true grep head tail sed awk \
		sleep sort tr uname id hostname touch wc date kill ps printf test sync stat find xargs seq yes timeout mount umount dd stty cut df; do
		[ -e bin/$applet ] || [ -e usr/bin/$applet ] || ln -s /bin/busybox bin/$applet
	done
	ln -sf nc.openbsd bin/nc
	printf "%s\n" "root:x:0:0:root:/root:/bin/sh" "www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin" \
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin" >etc/passwd
	printf "%s\n" "root:x:0:" "tty:x:5:" "adm:x:4:" "www-data:x:33:" "nogroup:x:65534:" >etc/group
	printf "%s\n" "hosts: files dns" "passwd: files" "group: files" >etc/nsswitch.conf
	printf "%s\n" "daemon off;" "error_log stderr notice;" "user www-data;" "worker_processes 1;" "pid /run/nginx.pid;" \
		"events {}" "http {" "	access_log /dev/stdout;" "	server {" "		listen 80;" "		listen [::]:80;" \
		"		location / {" "			return 200 \"hello from \$hostname at \$server_addr to \$remote_addr\\n\";" "		}" "	}" "}" >etc/nginx/nginx.conf
	rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/bash-completion usr/share/lintian usr/share/info \
		usr/share/perl* usr/lib/*/perl* usr/share/zoneinfo usr/lib/*/gconv var/cache/debconf var/lib/dpkg/info'

mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.new"' EXIT
mmdebstrap --quiet --variant=extract --mode=root --format=tar --skip=output/dev --include="$packages" "${options[@]}" \
	--aptopt='APT::Install-Recommends "false"' --extract-hook="$finish" "$codename" "$out.new" - <<<"$sources"
mv "$out.new" "$out"
