#!/usr/bin/env bash
# Shows all of it on one machine, and checks each thing it shows:
#   scripts/demo.sh [--keep]      needs root; make demo, make demo-keep
# Everything happens in namespaces that this script makes, and that die with it; the machine's own network, firewall
# and files are never touched (but for missing Debian packages, the build, and ./.cache).
#
#   ┌ host ──────────────────┐        ┌ lan ─────────────┐        ┌ internet ──────────┐
#   │ bulkhead daemon        │        │ bridge br0       │        │ web server         │
#   │ containers             │        │ image registry   │        │                    │
#   │ eth0 192.0.2.10 ───────┼────────┼ 192.0.2.20 ──────┼────────┼ eth0 192.0.2.1     │
#   │      2001:db8:1::10    │        │ 2001:db8:1::20   │        │      2001:db8:1::1 │
#   └────────────────────────┘        └──────────────────┘        │ lo   198.51.100.80 │
#                                                                 │      2001:db8:2::80│
#                                                                 └────────────────────┘
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD

keep=
case ${1-} in
--keep) keep=1 ;;
'') ;;
*)
	echo "usage: $0 [--keep]" >&2
	exit 2
	;;
esac
if ((EUID != 0)); then
	echo "demo: needs root for namespaces: sudo $0 $*" >&2
	exit 1
fi

host4=192.0.2.10 host6=2001:db8:1::10
lan4=192.0.2.20 lan6=2001:db8:1::20
net4=198.51.100.80 net6=2001:db8:2::80
registry=registry.example:5000
image=$registry/demo/web
port=8080
cgroup=bulkhead-demo-$$
# The flags of the daemon, and of reset, which works without one.
own_cgroup=(--cgroup-parent "/$cgroup")

hosts=(host lan internet)
# shellcheck source=scripts/demo-lib.sh
. scripts/demo-lib.sh
export PATH=$repo/bin:$PATH LC_ALL=C.UTF-8
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY BULKHEAD_HOST

# --- the three hosts -------------------------------------------------------------------------------------------------

build_topology() {
	local h
	for h in "${hosts[@]}"; do make_host "$h"; done
	enter lan ip link add br0 type bridge mcast_snooping 0
	cable lan port1 host eth0
	cable lan port2 internet eth0
	enter lan bash -ec "ip link set port1 master br0; ip link set port2 master br0; ip link set br0 up
		ip addr add $lan4/24 dev br0; ip addr add $lan6/64 dev br0 nodad
		ip route add default via 192.0.2.1; ip route add default via 2001:db8:1::1"
	enter host bash -ec "ip addr add $host4/24 dev eth0; ip addr add $host6/64 dev eth0 nodad
		ip route add default via 192.0.2.1; ip route add default via 2001:db8:1::1
		echo '$lan4 registry.example' >>/etc/hosts; : >/etc/resolv.conf"
	enter internet bash -ec "ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8:1::1/64 dev eth0 nodad
		ip addr add $net4/32 dev lo; ip addr add $net6/128 dev lo nodad"
}

# --- the daemon ------------------------------------------------------------------------------------------------------

start_daemon() {
	# shellcheck disable=SC2016 # expanded in the host, whose PIDs are other ones
	background host daemon.log bash -c 'echo $$ >/run/demo-daemon.pid; exec "$@"' daemon bulkhead daemon "${own_cgroup[@]}"
	eventually 20 daemon_answers 2>/dev/null || fail "start the daemon"
}

daemon_answers() { enter host bulkhead info >/dev/null 2>&1; }

# signal_daemon SIGNAL sends it a signal that ends it, and waits until it is gone.
signal_daemon() {
	local pid
	pid=$(enter host cat /run/demo-daemon.pid)
	enter host bash -c "kill -s $1 $pid"
	eventually 20 daemon_gone "$pid" || fail "end the daemon with SIG$1"
}

daemon_gone() { ! enter host test -e "/proc/$1"; }

# --- what is checked again and again -----------------------------------------------------------------------------------

# fetch WHERE URL… gets each page from a host.
fetch() {
	local where=$1 url
	shift
	for url in "$@"; do enter "$where" curl -gsSf --max-time 5 "$url" || return 1; done
}

# fetch_in CONTAINER URL… gets each page from inside a container.
fetch_in() {
	local container=$1 url
	shift
	for url in "$@"; do enter host bulkhead exec "$container" curl -gsSf --max-time 5 "$url" || return 1; done
}

by_name() {
	local family
	for family in -4 -6; do
		enter host bulkhead exec client curl "$family" -sS --max-time 5 http://web/ | grep '^hello from web' || return 1
	done
}

# seen_as ADDRESS WHERE URL: web must have seen that address.
seen_as() {
	local page
	page=$(fetch "$2" "$3") && echo "$page" && [[ $page == *" to $1" ]]
}

from_lan() { seen_as "$lan4" lan "http://$host4:$port/" && seen_as "$lan6" lan "http://[$host6]:$port/"; }
from_host() { fetch host "http://127.0.0.1:$port/" "http://[::1]:$port/"; }
to_internet() { fetch_in client "http://$net4/" "http://[$net6]/"; }

# traffic checks what needs no daemon.
traffic() {
	check "the internet is reached through NAT, over IPv4 and IPv6" in_compartment client curl -gsSf --fail-early --max-time 5 "http://$net4/" "http://[$net6]/"
	check "the port answers at 127.0.0.1 and ::1" from_host
	check "the port answers the LAN, and web sees the client's own address, in both families" from_lan
	check "a connection opened before still carries data" connection_alive
}

# everything adds what needs it: names, and commands in containers.
everything() {
	check "client fetches a page from web by name, over IPv4 and IPv6" by_name
	traffic
}

# in_compartment CONTAINER COMMAND… works without the daemon: the compartment is there by name.
in_compartment() {
	local ns=${compartment[$1]}
	shift
	enter host nsenter --net="$ns" "$@"
}

# open_connection connects from the LAN to web and keeps that one TCP connection. Each line that it is given makes it
# fetch a page over it.
open_connection() {
	mkfifo "$work/go"
	: >"$work/answers"
	# shellcheck disable=SC2016 # expanded in the LAN host
	background lan connection.log bash -c 'exec 3<>"/dev/tcp/$1/$2" 4<>"$3" || exit 1
		while read -r _ <&4; do
			printf "GET / HTTP/1.1\r\nHost: web\r\n\r\n" >&3
			while read -r -t 5 line <&3; do
				[[ $line != hello* ]] || { echo "$line" >>"$4"; break; }
			done
		done' connection "$host4" "$port" "$work/go" "$work/answers"
}

connection_alive() {
	local before
	before=$(wc -l <"$work/answers")
	echo >>"$work/go"
	eventually 5 answers_beyond "$before"
}

answers_beyond() { (($(wc -l <"$work/answers") > $1)); }

# --- the story -------------------------------------------------------------------------------------------------------

prepare() {
	step "What is needed: packages, the program, an image made of Debian packages"
	./scripts/deps.sh runtime test
	if command -v go >/dev/null; then
		make --no-print-directory -s build
	elif [[ ! -x bin/bulkhead ]]; then
		fail "build" "there is no Go and no bin/bulkhead; install Go from https://go.dev/dl"
	fi
	say "$(bin/bulkhead version | head -n 1)"
	archive=.cache/demo-image-$(sha256sum scripts/demo-image.sh | cut -c1-12).tar
	if [[ ! -s $archive ]]; then
		say "making the image, once: later runs find it in $archive"
		./scripts/demo-image.sh "$archive"
	fi
	say "root file system of the image: $(du -h "$archive" | cut -f1)"
}

show_hosts() {
	step "Three hosts, in namespaces of their own"
	build_topology
	sed -n '/^#   ┌/,/┘$/s/^#   /    /p' "$0"
	mkdir "$work/www"
	echo "hello from the internet" >"$work/www/index.html"
	background internet access.log busybox httpd -f -vv -p '[::]:80' -h "$work/www"
	check "the host reaches the internet" eventually 10 fetch host "http://$net4/" "http://[$net6]/"
}

show_daemon() {
	step "The daemon, and the network that is there from its first start"
	before=$(snapshot host)
	start_daemon
	on host bulkhead network ls
}

show_image() {
	step "An image goes to a registry and comes back"
	start_registry
	check "the registry (TLS, on the LAN) wants credentials" registry_refuses
	on host bulkhead login -u demo --password-stdin "$registry" <<<secret
	on host bulkhead image import --cmd nginx "$PWD/$archive" "$image"
	on host bulkhead push "$image"
	on host bulkhead image rm "$image"
	on host bulkhead image prune
	pull
	on host bulkhead images
}

# pull shows its progress bars where there is a terminal.
pull() {
	if [[ -t 1 ]]; then
		printf '  %shost$ bulkhead pull %s%s\n' "$bold" "$image" "$off"
		nsenter -t "${init[host]}" -m -u -i -n -p -- timeout --foreground -k 2 60 bulkhead pull "$image"
	else
		on host bulkhead pull "$image"
	fi
}

registry_refuses() {
	[[ $(enter host curl -sS -o /dev/null -w '%{http_code}' "https://$registry/v2/") == 401 ]]
}

# start_registry runs Debian's docker-registry on the LAN host, with a certificate that the host is made to trust.
start_registry() {
	# shellcheck disable=SC2016 # a salt for bcrypt
	local salt='$2y$05$abcdefghijklmnopqrstuu'
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=registry.example \
		-addext subjectAltName=DNS:registry.example -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
	echo "demo:$(perl -e 'print crypt($ARGV[0], $ARGV[1])' secret "$salt")" >"$work/htpasswd"
	cat >"$work/registry.yml" <<-CONFIG
		version: 0.1
		log: {level: warn}
		storage: {filesystem: {rootdirectory: $work/registry}}
		http: {addr: ":5000", tls: {certificate: $work/cert.pem, key: $work/key.pem}}
		auth: {htpasswd: {realm: demo, path: $work/htpasswd}}
	CONFIG
	enter host bash -c 'mkdir -p /etc/ssl/certs && cat - >>/etc/ssl/certs/ca-certificates.crt' <"$work/cert.pem"
	background lan registry.log docker-registry serve "$work/registry.yml"
	eventually 15 registry_refuses 2>/dev/null || fail "start the registry" "$(tail -n 5 "$work/registry.log")"
}

show_containers() {
	step "Two containers, each in a compartment of its own"
	on host bulkhead run -d --name web -h web -p $port:80 "$image"
	on host bulkhead run -d --name client "$image" sleep infinity
	on host bulkhead ps
	on host bulkhead exec client ip -brief address
	local c
	for c in web client; do
		compartment[$c]=/run/netns/hns-$(enter host bulkhead inspect "$c" | jq -r '.[0].namespace | ascii_downcase')
		check "$c has a compartment and both families" has_both "$c"
	done
	on host bulkhead topology
}

declare -A compartment

has_both() {
	in_compartment "$1" ip -o addr show dev eth0 scope global |
		awk '{ seen[$3] = 1; print } END { exit !(seen["inet"] && seen["inet6"]) }'
}

show_names() {
	step "By name, and out to the internet"
	on host bulkhead exec client drill -Q web.
	on host bulkhead exec client drill -Q web. AAAA
	on host bulkhead exec client curl -4 -sS http://web/
	on host bulkhead exec client curl -6 -sS http://web/
	check "client fetches a page from web by name, over IPv4 and IPv6" by_name
	check "client reaches the internet through NAT, over IPv4 and IPv6" to_internet
	check "web reaches the internet through NAT, over IPv4 and IPv6" fetch_in web "http://$net4/" "http://[$net6]/"
	check "where only the host's own addresses were seen" only_host_seen
	say "the internet's access log:"
	grep response: "$work/access.log" | sed -E 's/:[0-9]+: response.*//' | sort | uniq -c | sed 's/^/  /'
}

only_host_seen() {
	grep -q -F "[$host6]" "$work/access.log" && grep -q -F "$host4" "$work/access.log" &&
		! grep response: "$work/access.log" | grep -v -F -e "[$host6]" -e "$host4]" -e "$host4:"
}

show_ports() {
	step "A published port: this host only, until more is asked for"
	on host bulkhead exposed
	check "it answers at 127.0.0.1 and ::1" from_host
	refused "the LAN is refused over IPv4" fetch lan "http://$host4:$port/"
	refused "the LAN is refused over IPv6" fetch lan "http://[$host6]:$port/"
	on host bulkhead publish add web $port:80 --expose lan
	on host bulkhead exposed
	check "the LAN is answered, and web sees the client's own address, in both families" from_lan
	on host bulkhead logs --tail 2 web
	open_connection
	check "a connection from the LAN is opened, to be kept" connection_alive
	on host bulkhead topology
}

show_rules() {
	step "Rules at the switch, per connection"
	on host bulkhead acl add web --action block --proto tcp --ports 80 --remote "$lan4,$lan6" --id not-the-lan
	on host bulkhead acl add web --action allow --priority 65500
	refused "the LAN is blocked over IPv4" enter lan curl -sS --max-time 1 "http://$host4:$port/"
	refused "the LAN is blocked over IPv6" enter lan curl -gsS --max-time 1 "http://[$host6]:$port/"
	check "client still fetches a page from web, over IPv4 and IPv6" by_name
	on host bulkhead rules web
	on host bulkhead drops -n 2 web
	check "the drop names the rule" dropped_by not-the-lan
	on host bulkhead acl rm web not-the-lan allow-in
	check "the LAN is answered again" from_lan
	check "the connection opened before still carries data" connection_alive
	on host bulkhead flows -n 3 web
}

dropped_by() { enter host bulkhead drops web | grep -F "$1"; }

show_survival() {
	step "kill -9 of the daemon"
	signal_daemon KILL
	say "the daemon is gone, and with it the answers to names; the rest is the kernel's:"
	traffic
	step "The daemon starts again"
	start_daemon
	everything
	on host bulkhead ps
	step "A restart"
	signal_daemon TERM
	start_daemon
	everything
	step "nft flush ruleset"
	background host events.log bulkhead events
	eventually 5 events_flow || fail "follow the events"
	enter host nft flush ruleset
	local flushed=$EPOCHREALTIME
	eventually 3 table_is_there || fail "repair the nftables table"
	say "the table was back after $(since "$flushed")"
	awk -v a="$flushed" -v b="$EPOCHREALTIME" 'BEGIN { exit !(b - a < 1) }' || fail "repair within a second"
	eventually 5 grep -q '^[^ ]* drift' "$work/events.log" || fail "report the drift" "$(cat "$work/events.log")"
	grep '^[^ ]* drift' "$work/events.log" | cut -c1-150 | sed 's/^/    /'
	everything
}

# events_flow makes something happen until the follower has seen it.
events_flow() {
	enter host bulkhead network create --type private events-begin >/dev/null 2>&1 || true
	enter host bulkhead network rm events-begin >/dev/null 2>&1 || true
	[[ -s $work/events.log ]]
}

table_is_there() { enter host nft list table inet bulkhead >/dev/null 2>&1; }

show_removal() {
	step "Everything goes"
	on host bulkhead rm -f web client
	on host bulkhead image rm "$image"
	on host bulkhead ps -a
	signal_daemon TERM
	on host bulkhead reset --yes "${own_cgroup[@]}"
	enter host rm -rf /etc/bulkhead /run/demo-daemon.pid
	check "nothing is left: devices, addresses, routes, nftables, namespaces, bpffs, files, mounts, cgroups, processes" same_as_before
}

same_as_before() { diff <(echo "$before") <(snapshot host); }

show_kept() {
	cat >"$work/enter" <<-ENTER
		#!/bin/sh
		# usage: enter host|lan|internet [COMMAND…]
		case \$1 in host) pid=${init[host]} ;; lan) pid=${init[lan]} ;; internet) pid=${init[internet]} ;; *) exit 2 ;; esac
		shift
		[ \$# -gt 0 ] || set -- bash
		PATH=$repo/bin:\$PATH exec nsenter -t \$pid -m -u -i -n -p -- "\$@"
	ENTER
	cat >"$work/stop" <<-STOP
		#!/bin/sh
		kill -9 ${init[host]} ${init[lan]} ${init[internet]}
		sleep 1
		find /sys/fs/cgroup -depth -type d -path '*/$cgroup*' -exec rmdir {} \;
		rm -rf $work
	STOP
	chmod 755 "$work/enter" "$work/stop"
	step "It goes on running"
	say "a shell on the host:    sudo $work/enter host" \
		"  which is:             sudo nsenter -t ${init[host]} -m -u -i -n -p --" \
		"from the LAN:           sudo $work/enter lan curl http://$host4:$port/" \
		"as a command here:      alias bulkhead='sudo $work/enter host bulkhead'" \
		"to end it:              sudo $work/stop"
}

trap cleanup EXIT
trap 'exit 130' INT TERM
prepare
show_hosts
show_daemon
show_image
show_containers
show_names
show_ports
show_rules
show_survival
if [[ -n $keep ]]; then
	show_kept
	trap - EXIT
else
	show_removal
fi
step_end
printf '\n%sAll of it is true.%s  %s in all\n' "$bold" "$off" "$(since "$started")"
