#!/usr/bin/env bash
# Shows networks that span hosts, and checks each thing it shows:
#   scripts/demo-overlay.sh [--keep]      needs root; make demo-overlay, make demo-overlay-keep
# Three hosts with three members of etcd, in namespaces that this script makes and that die with it; the machine's own network, firewall
# and files are never touched (but for missing Debian packages, and the build).
#
#   ┌ alpha ──────────┐   ┌ beta ───────────┐   ┌ gamma ──────────┐
#   │ bulkhead, etcd  │   │ bulkhead, etcd  │   │ bulkhead, etcd  │
#   │ container web   │   │ container two   │   │ container three │
#   │ eth0 192.0.2.1  │   │ eth0 192.0.2.2  │   │ eth0 192.0.2.3  │
#   └────────┬────────┘   └────────┬────────┘   └────────┬────────┘
#            └───────────── lan: bridge br0 ─────────────┘
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

cgroup=bulkhead-demo-$$
hosts=(lan alpha beta gamma)
members=(alpha beta gamma)
# shellcheck source=scripts/demo-lib.sh
. scripts/demo-lib.sh
export PATH=$repo/bin:$PATH LC_ALL=C.UTF-8
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY BULKHEAD_HOST

# --- the hosts -------------------------------------------------------------------------------------------------------

build_topology() {
	local h n=0
	for h in "${hosts[@]}"; do make_host "$h"; done
	enter lan ip link add br0 type bridge mcast_snooping 0
	enter lan ip link set br0 up
	for h in "${members[@]}"; do
		n=$((n + 1))
		cable lan "$h" "$h" eth0
		enter lan ip link set "$h" master br0
		enter "$h" bash -ec "ip addr add 192.0.2.$n/24 dev eth0; ip addr add 2001:db8::$n/64 dev eth0 nodad; : >/etc/resolv.conf"
	done
}

own_cgroup() { echo "/$cgroup-$1"; }

start_daemon() {
	# shellcheck disable=SC2016 # expanded in the host, whose PIDs are other ones
	background "$1" "$1-daemon.log" bash -c 'echo $$ >/run/demo-daemon.pid; exec "$@"' daemon bulkhead daemon --cgroup-parent "$(own_cgroup "$1")"
	eventually 30 answers "$1" 2>/dev/null || fail "start the daemon of $1"
}

answers() { enter "$1" bulkhead info >/dev/null 2>&1; }

# end_daemon HOST sends it a signal that ends it, and waits until it is gone.
end_daemon() {
	local pid
	pid=$(enter "$1" cat /run/demo-daemon.pid)
	enter "$1" bash -c "kill -s TERM $pid"
	eventually 20 gone "$1" "$pid" || fail "end the daemon of $1"
}

gone() { ! enter "$1" test -e "/proc/$2"; }

# --- what is checked -------------------------------------------------------------------------------------------------

# alive HOST NUMBER: so many hosts live, as that one sees it, and it is connected.
alive() {
	local status
	status=$(enter "$1" bulkhead cluster status -o json) || return 1
	[[ $(jq -r '[.hosts[] | select(.alive)] | length' <<<"$status") == "$2" && $(jq -r .connected <<<"$status") == true ]]
}

# fetch HOST CONTAINER NAME gets a page from a container by its name. (Debian's static busybox dies of wget -T.)
fetch() { enter "$1" bulkhead exec "$2" timeout 5 wget -q -O - "http://$3/"; }

knows() { enter "$1" bulkhead exec "$2" nslookup "$3" >/dev/null 2>&1; }
forgets() { ! knows "$@"; }

# follow keeps fetching from web on gamma, and notes how each attempt ended.
follow() {
	background gamma follow.log bulkhead exec three sh -c 'while :; do if timeout 2 wget -q -O /dev/null http://web/; then echo fine; else echo LOST; fi; sleep 0.2; done'
	eventually 10 grep -q fine "$work/follow.log" 2>/dev/null || fail "keep fetching from web"
}

fetched() { grep -c fine "$work/follow.log"; }

# none_lost BEFORE: there were more fetches since then, and none failed.
none_lost() {
	printf '%s fetches, %s lost\n' "$(fetched)" "$(grep -c LOST "$work/follow.log" || true)"
	(($(fetched) > $1)) && ! grep LOST "$work/follow.log"
}

# --- the story -------------------------------------------------------------------------------------------------------

prepare() {
	step "What is needed: packages, the program, an image of busybox"
	./scripts/deps.sh runtime test
	if command -v go >/dev/null; then
		make --no-print-directory -s build
	elif [[ ! -x bin/bulkhead ]]; then
		fail "build" "there is no Go and no bin/bulkhead; install Go from https://go.dev/dl"
	fi
	./scripts/rootfs.sh "$work/box.tar"
	say "$(bin/bulkhead version | head -n 1)"
}

show_hosts() {
	local h
	step "Three hosts on a LAN, in namespaces of their own"
	build_topology
	sed -n '/^#   ┌/,/br0/s/^#   /    /p' "$0"
	for h in "${members[@]}"; do
		before[$h]=$(snapshot "$h" "$cgroup-$h")
		start_daemon "$h"
	done
}

declare -A before

show_cluster() {
	local token
	step "A cluster: one command on each host"
	say "alpha\$ bulkhead cluster init"
	token=$(enter alpha bulkhead cluster init 2>"$work/init.log") || fail "begin a cluster" "$(cat "$work/init.log")"
	say "  ${token:0:40}…" "beta\$ bulkhead join --member TOKEN" "gamma\$ bulkhead join --member TOKEN"
	check "beta joins, and runs a member of etcd" enter beta bulkhead join --member "$token"
	check "gamma joins, and runs a member of etcd" enter gamma bulkhead join --member "$token"
	check "all see three hosts" eventually 20 all_see 3
	on alpha bulkhead cluster ls
	on beta bulkhead cluster status
}

all_see() {
	local h
	for h in "${members[@]}"; do alive "$h" "$1" || return 1; done
}

show_check() {
	step "What the network between them does to tunnels"
	local TIMEFORMAT='    (%1R s)'
	time on alpha bulkhead cluster check
	say "the switch is made to take packets of 1400 bytes only, to and from beta:"
	enter lan ip link set beta mtu 1400
	enter alpha bulkhead cluster check >"$work/check.log" || true
	sed -n '1,11p' "$work/check.log" | sed 's/^/    /'
	check "the way is found to carry 1400 bytes" grep -Eq '^alpha +beta +4789 +1400 +1500' "$work/check.log"
	enter lan ip link set beta mtu 1500
	check "and 1500 again, as the next check says" checked_whole
}

checked_whole() { enter alpha bulkhead cluster check | grep -E '^alpha +beta +4789 +1500 +1500'; }

show_network() {
	local h name
	step "A network that is on all of them, and a container on each"
	on alpha bulkhead network create -d overlay blue
	for h in "${members[@]}"; do
		check "it is on $h" eventually 10 enter "$h" bulkhead network inspect blue
		enter "$h" bulkhead image import --cmd sh "$work/box.tar" box >/dev/null
	done
	on alpha bulkhead run -d --name web --network blue box httpd -f -h /www
	for name in beta:two gamma:three; do on "${name%:*}" bulkhead run -d --name "${name#*:}" --network blue box httpd -f -h /www; done
	check "two, on beta, fetches a page from web by its name" eventually 20 fetch beta two web
	check "three, on gamma, does too" eventually 20 fetch gamma three web
	check "web, on alpha, fetches one from three" eventually 20 fetch alpha web three
	on beta bulkhead exec two wget -q -O - http://web/
	follow
	say "three goes on fetching from web, five times a second, in all that follows"
}

show_partition() {
	local had
	step "beta is cut off"
	had=$(fetched)
	enter lan ip link set beta down
	local cut=$EPOCHREALTIME
	check "two is not known any more on the others" eventually 40 forgets gamma three two
	say "that took $(since "$cut"): a host is waited for that long"
	on alpha bulkhead cluster ls
	check "beta goes on: a new container there has an address of beta's own block" enter beta bulkhead run -d --name late --network blue box httpd -f -h /www
	check "two and late reach each other" eventually 20 fetch beta two late
	enter lan ip link set beta up
	cut=$EPOCHREALTIME
	check "the cut is mended: three reaches late by its name" eventually 40 fetch gamma three late
	say "that took $(since "$cut")"
	check "three has not lost one fetch from web meanwhile" none_lost "$had"
}

show_death() {
	step "gamma is killed, with all that runs there"
	kill -9 "${init[gamma]}"
	local died=$EPOCHREALTIME
	check "the others see two hosts, and go on with two of three members of etcd" eventually 40 alive alpha 2
	say "that took $(since "$died")"
	check "three is not known any more" eventually 20 forgets beta two three
	check "two still fetches from web" fetch beta two web
	on alpha bulkhead cluster ls
	on alpha bulkhead cluster forget gamma
	check "its addresses and its member of etcd are free for others" eventually 10 forgotten
	on alpha bulkhead cluster status
}

forgotten() {
	local status
	status=$(enter alpha bulkhead cluster status -o json) && [[ $(jq -r '(.hosts | length), (.etcd | length)' <<<"$status" | paste -sd' ') == "2 2" ]]
}

show_removal() {
	local h
	step "Everything goes"
	on beta bulkhead rm -f two late
	on alpha bulkhead rm -f web
	on alpha bulkhead network rm blue
	on beta bulkhead cluster leave
	on alpha bulkhead cluster leave
	for h in alpha beta; do
		enter "$h" bulkhead image rm box >/dev/null
		end_daemon "$h"
		enter "$h" bulkhead reset --yes --cgroup-parent "$(own_cgroup "$h")" >/dev/null
		enter "$h" rm -rf /etc/bulkhead /run/demo-daemon.pid
		check "nothing is left on $h: devices, addresses, routes, nftables, namespaces, bpffs, files, mounts, cgroups, processes" same_as_before "$h"
	done
}

same_as_before() { diff <(echo "${before[$1]}") <(snapshot "$1" "$cgroup-$1"); }

show_kept() {
	step "It goes on running"
	say "a shell on alpha:   sudo nsenter -t ${init[alpha]} -m -u -i -n -p -- bash" \
		"on beta:            sudo nsenter -t ${init[beta]} -m -u -i -n -p -- bash" \
		"to end it:          sudo kill -9 ${init[lan]} ${init[alpha]} ${init[beta]}; sudo rm -rf $work"
}

trap cleanup EXIT
trap 'exit 130' INT TERM
prepare
show_hosts
show_cluster
show_check
show_network
show_partition
show_death
if [[ -n $keep ]]; then
	show_kept
	trap - EXIT
else
	show_removal
fi
step_end
printf '\n%sAll of it is true.%s  %s in all\n' "$bold" "$off" "$(since "$started")"
