#!/usr/bin/env bash
# What the demos share: how they talk, the hosts that they make of namespaces, and how all of that goes. It is sourced, with $hosts and $cgroup
# set, and with $keep where the hosts are to stay.

# shellcheck disable=SC2034,SC2154 # the demos set and use these
work=$(mktemp -d "${TMPDIR:-/tmp}/bulkhead-demo.XXXXXX")
declare -A init outer

bold='' dim='' green='' red='' off=''
if [[ -t 1 && -z ${NO_COLOR-} ]]; then
	bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' off=$'\e[0m'
fi

# --- talking ---------------------------------------------------------------------------------------------------------

started=$EPOCHREALTIME step_started=$EPOCHREALTIME step_number=0

since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }'; }

step_end() { ((step_number == 0)) || printf '%s  (%s)%s\n' "$dim" "$(since "$step_started")" "$off"; }

step() {
	step_end
	step_number=$((step_number + 1))
	step_started=$EPOCHREALTIME
	printf '\n%s%d. %s%s\n' "$bold" "$step_number" "$1" "$off"
}

say() { printf '  %s\n' "$@"; }

fail() {
	trap - ERR
	printf '\n%s  FAILED: %s%s\n' "$red" "$1" "$off" >&2
	shift
	(($# == 0)) || printf '  %s\n' "$@" >&2
	local log
	for log in "$work"/*daemon.log; do
		[[ -s $log ]] || continue
		printf '\n  the end of %s:\n' "${log##*/}" >&2
		tail -n 15 "$log" | cut -c1-300 | sed 's/^/    /' >&2
	done
	exit 1
}

# check TEXT COMMAND…: the command must succeed.
check() {
	local text=$1 out
	shift
	if out=$("$@" 2>&1); then
		printf '  %s✓%s %s\n' "$green" "$off" "$text"
	else
		fail "$text" "the command was: $*" "$out"
	fi
}

# refused TEXT COMMAND…: the command must fail.
refused() {
	local text=$1 out
	shift
	if out=$("$@" 2>&1); then
		fail "$text" "this succeeded, and must not: $*" "$out"
	fi
	printf '  %s✓%s %s\n' "$green" "$off" "$text"
}

# eventually SECONDS COMMAND…: waits until the command succeeds.
eventually() {
	local seconds=$1 from=$EPOCHREALTIME
	shift
	until "$@"; do
		if awk -v a="$from" -v b="$EPOCHREALTIME" -v s="$seconds" 'BEGIN { exit !(b - a > s) }'; then
			echo "not within $seconds s" >&2
			return 1
		fi
		sleep 0.05
	done
}

# --- hosts -------------------------------------------------------------------------------------------------------------

# enter HOST COMMAND…: runs a command there, for a minute at most.
enter() {
	local where=$1
	shift
	nsenter -t "${init[$where]}" -m -u -i -n -p -- timeout -k 2 60 "$@"
}

# on HOST COMMAND…: shows the command, runs it, and shows what it says.
on() {
	local where=$1
	shift
	printf '  %s%s$ %s%s\n' "$bold" "$where" "$*" "$off"
	enter "$where" "$@" 2>&1 | sed 's/^/    /' || fail "$*"
}

# make_host NAME: PID 1 of the host's PID namespace is a script; when it dies, all that runs in the host dies with it.
# It dies with this script, however that ends; with --keep only when it is told to.
make_host() {
	local name=$1 line=
	local unshare=(unshare --net --mount --pid --uts --ipc --fork)
	[[ -n $keep ]] || unshare=(setpriv --pdeathsig KILL "${unshare[@]}" --kill-child=KILL)
	mkfifo "$work/$name.life" "$work/$name.ready"
	# shellcheck disable=SC2016 # expanded by the inner shell, which still sees the outer /proc
	local begin='read -r pid _ </proc/self/stat; echo "$pid" >"$1"; exec bash "$2" "$3"'
	setsid "${unshare[@]}" bash -c "$begin" host "$work/$name.pid" scripts/demo-host.sh "$name" \
		<>"$work/$name.life" >"$work/$name.ready" 2>"$work/$name.log" &
	outer[$name]=$!
	read -r -t 20 line <"$work/$name.ready" || true
	[[ $line == ready ]] || fail "make the namespaces of $name" "$(cat "$work/$name.log")"
	init[$name]=$(<"$work/$name.pid")
	enter "$name" ip link set lo up
}

# cable HOST DEV HOST DEV lays a veth pair between two hosts.
cable() {
	nsenter -t "${init[$1]}" -n ip link add "$2" type veth peer name "$4" netns "${init[$3]}"
	enter "$1" ip link set "$2" up
	enter "$3" ip link set "$4" up
}

# cleanup ends everything by the PIDs that this script started.
cleanup() {
	local status=$? h
	trap - EXIT INT TERM
	for h in "${hosts[@]}"; do
		[[ -z ${init[$h]-} ]] || kill -9 "${init[$h]}" 2>/dev/null || true
		[[ -z ${outer[$h]-} ]] || wait "${outer[$h]}" 2>/dev/null || true
	done
	remove_cgroups
	rm -rf "$work"
	exit "$status"
}

# remove_cgroups: a cgroup stays busy for a moment after its last process died.
remove_cgroups() {
	local left
	for _ in {1..50}; do
		left=$(find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" 2>/dev/null || true)
		[[ -n $left ]] || return 0
		xargs -r rmdir <<<"$left" 2>/dev/null || sleep 0.1
	done
	echo "demo: cgroups are left: $left" >&2
}

# background HOST LOG COMMAND… starts a program that stays.
background() {
	local where=$1 log=$2
	shift 2
	setsid nsenter -t "${init[$where]}" -m -u -i -n -p -- "$@" >>"$work/$log" 2>&1 </dev/null &
	disown
}

# snapshot HOST [CGROUP] lists what a host has, one thing a line, without numbers that change by themselves.
snapshot() {
	enter "$1" bash -s "${2-$cgroup}" <<'SNAPSHOT'
ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*/link \1/' | sort
ip -o addr | awk '{ print "address", $2, $4 }' | sort
for f in -4 -6; do
	ip $f rule | sed 's/^/rule /'
	ip $f route show table all | sed 's/^/route /; s/ expires [^ ]*//'
done | sort
nft -s list ruleset | sed 's/^/nft /'
find /run/netns /sys/fs/bpf /var/lib/bulkhead /run/bulkhead /run/conmon /run/runc -mindepth 1 2>/dev/null | sed 's/^/file /' | sort
awk '{ print "mount", $5 }' /proc/self/mountinfo | sort -u
find /sys/fs/cgroup -type d -path "*/$1*" | sed 's/^/cgroup /' | sort
for f in net/ipv4/ip_forward net/ipv6/conf/all/forwarding net/ipv4/conf/all/route_localnet; do
	echo "sysctl $f $(cat /proc/sys/$f)"
done
for p in /proc/[0-9]*; do
	pid=${p#/proc/}
	read -r _ _ _ parent _ <"$p/stat" 2>/dev/null || continue
	[[ $pid == "$$" || $pid == "$PPID" || $parent == "$$" ]] || echo "process $(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)"
done | sort
SNAPSHOT
}
