#!/usr/bin/env bash
# Runs inside the machine of scripts/test-machine.sh, at each boot; what it says goes to a serial port. The stage is
# kept on disk.
# shellcheck disable=SC2016 # what check and eventually are given is for their eval
set -uo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root NO_COLOR=1
cd /machine || exit

say() { echo "machine: $*"; }
fail() {
	say "FAILED: $*"
	bulkhead ps -a
	journalctl -b -u bulkhead --no-pager -o cat | tail -40
	dmesg | tail -15
	sync
	systemctl poweroff
	exit 1
}
# check WHAT COMMAND... : the command succeeds.
check() {
	local what=$1 out
	shift
	out=$("$@" 2>&1) || fail "$what: $*: $out"
	say "ok: $what"
}
# eventually WHAT COMMAND... : within a minute and a half it does.
eventually() {
	local what=$1 end=$((SECONDS + 90))
	shift
	while ((SECONDS < end)); do
		if "$@" >/dev/null 2>&1; then
			say "ok: $what"
			return
		fi
		sleep 0.5
	done
	fail "$what: $*: $("$@" 2>&1)"
}
stage() { echo "$1" >stage.new && sync && mv stage.new stage && sync; }

# Published ports, in both families; connections that are opened once and have to last.
answers() { for a in 127.0.0.1 '[::1]'; do [[ $(curl -sS -m 5 "http://$a:8080/") == 'hello from box' ]] || return 1; done; }
call() {
	exec 3<>/dev/tcp/127.0.0.1/9000 4<>/dev/tcp/::1/9000
	talk hello
}
talk() {
	local fd line
	for fd in 3 4; do
		echo "$1 $fd" >&"$fd" && read -r -t 10 -u "$fd" line
		[[ ${line-} == "$1 $fd" ]] || { echo "connection $fd: got \"${line-}\""; return 1; }
	done
}
heard() { bulkhead exec caller sh -c 'wc -l </heard'; }
calls_on() { # the connection between two containers is alive
	local before
	before=$(heard) && sleep 1 && (($(heard) > before))
}
state() { bulkhead inspect "$1" | jq -r ".[0].state.$2"; }
is() { [[ $(state "$1" "$2") == "$3" ]] || { state "$1" "$2"; return 1; }; }
addresses() { bulkhead inspect "$1" | jq -cS '.[0].endpoints[] | [.addresses, .mac]'; }
healthy() {
	local bad
	bad=$(bulkhead doctor -o json | jq -r '.[] | select(.status == "fail" or .name == "leftovers" and .status != "ok") | .name + ": " + .detail')
	[[ -z $bad ]] || { echo "$bad"; return 1; }
}
# Everything that lasts, as text.
inventory() {
	bulkhead network ls -o json | jq -cS '.[] | [.ID, .Name, .Ipams]'
	bulkhead endpoint ls -o json | jq -cS '.[] | [.ID, .Name, .IpConfigurations, .MacAddress]'
	bulkhead exposed -o json | jq -cS '.[]'
	for c in web once unless polite stopped; do addresses "$c"; done
}
# What of it is in the kernel and on the disk, as far as it is the same after each start.
traces() {
	ip -o link | grep -oE 'bh[hpr][0-9a-z]+' | sort -u
	nft -s list table inet bulkhead | tr ',' '\n' | sed 's/^[[:space:]]*//' | sort
	find /sys/fs/bpf/bulkhead | sort
	find /run/netns -name 'hns-*' | wc -l
	grep -c ' /run/bulkhead/' /proc/mounts
	find /var/lib/bulkhead/containers /var/lib/bulkhead/volumes /var/lib/bulkhead/images -maxdepth 2 | sort
	find /sys/fs/cgroup/bulkhead -type d | wc -l
	pgrep -c conmon
}
same() { diff "$1.before" <("$1"); }

# Limits are the kernel's doing, so they are tried, with each runtime.
limits() {
	local runtime=$1 id time from to
	mkdir -p /etc/systemd/system/bulkhead.service.d
	printf '%s\n' '[Service]' 'ExecStart=' "ExecStart=/usr/local/bin/bulkhead daemon --runtime $runtime" \
		>/etc/systemd/system/bulkhead.service.d/runtime.conf
	systemctl daemon-reload
	check "$runtime: the service takes it" systemctl restart bulkhead
	check "$runtime: the daemon answers at once" bulkhead ps

	check "$runtime: a container" [ "$(bulkhead run --rm box echo inside)" = inside ]
	bulkhead run --name hog --memory 32m box dd if=/dev/zero of=/dev/null bs=100M count=1
	check "$runtime: too much memory is ended" is hog exitCode 137
	check "$runtime: and known as such" is hog oomKilled true
	bulkhead rm hog

	id=$(bulkhead run -d --name many --pids-limit 12 box sh -c 'sh -c "while :; do sleep 600 & done"; sleep 600')
	eventually "$runtime: the kernel refuses forks" grep -q '^max [1-9]' "/sys/fs/cgroup/bulkhead/$id/pids.events"
	check "$runtime: the bound is told" [ "$(stat_of many pidsLimit)" = 12 ]
	eventually "$runtime: and reached" eval '(( $(stat_of many pids) >= 11 ))'
	bulkhead rm -f many

	id=$(bulkhead run -d --name full --memory 64m box sh -c 'dd if=/dev/zero of=/dev/shm/held bs=1M count=20
		dd if=/dev/zero of=/written bs=1M count=6 conv=fsync; rm /written; sleep 600')
	eventually "$runtime: what is written is told" eval '(( $(stat_of full blockWrite) >= 6 << 20 ))'
	check "$runtime: memory is told" eval '(( $(stat_of full memoryUsage) > 20 << 20 && $(stat_of full memoryUsage) < 32 << 20 ))'
	check "$runtime: the kernel's memory limit" [ "$(<"/sys/fs/cgroup/bulkhead/$id/memory.max")" = $((64 << 20)) ]
	check "$runtime: and that of swap" [ "$(<"/sys/fs/cgroup/bulkhead/$id/memory.swap.max")" = $((64 << 20)) ]
	bulkhead rm -f full

	id=$(bulkhead run -d --name busy --cpus 0.2 --cpu-shares 512 --memory 48m box sh -c 'while :; do :; done')
	check "$runtime: the memory limit is told" [ "$(stat_of busy memoryLimit)" = $((48 << 20)) ]
	check "$runtime: the kernel's processor limit" [ "$(<"/sys/fs/cgroup/bulkhead/$id/cpu.max")" = '20000 100000' ]
	check "$runtime: and weight" eval '(( $(<"/sys/fs/cgroup/bulkhead/$id/cpu.weight") < 100 ))'
	from=$(stat_of busy cpuNanos) && time=${EPOCHREALTIME/./}
	sleep 5
	to=$(stat_of busy cpuNanos) && time=$((${EPOCHREALTIME/./} - time))
	say "$runtime: $(((to - from) / 1000)) of $time us of a processor"
	check "$runtime: the processor is shared out" eval "(( to - from > time * 20 && to - from < time * 300 ))"
	check "$runtime: a container freezes" bulkhead pause busy
	eventually "$runtime: the kernel says so" grep -q '^frozen 1' "/sys/fs/cgroup/bulkhead/$id/cgroup.events"
	check "$runtime: it thaws" bulkhead unpause busy
	check "$runtime: it takes commands" [ "$(bulkhead exec busy echo in)" = in ]
	check "$runtime: it is removed" bulkhead rm -f busy
	check "$runtime: with its cgroup" [ ! -e "/sys/fs/cgroup/bulkhead/$id" ]
}
stat_of() { bulkhead stats --no-stream -o json "$1" | jq ".[0].$2"; }

# apart: containers and their monitors are not in the service's cgroup, where systemd would find them.
apart() {
	local unit pids
	unit=$(systemctl show -P ControlGroup bulkhead)
	pids=$(cat "/sys/fs/cgroup$unit/cgroup.procs")
	[[ $pids == "$(systemctl show -P MainPID bulkhead)" ]] || { ps -o pid,args -p "${pids//$'\n'/,}"; return 1; }
	grep -q '^0::/bulkhead/' "/proc/$(state web pid)/cgroup"
}

first_boot() {
	check "the system is up on cgroup v2" eval '[[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]'
	check "enable the service" systemctl enable --now bulkhead
	check "the daemon answers at once" bulkhead ps
	check "systemd knows" eval '[[ $(systemctl show -P SubState bulkhead) == running && $(systemctl is-active bulkhead-containers) == active ]]'
	bulkhead version
	check "import an image" bulkhead image import --cmd sh box.tar box
	if [[ -e only ]]; then
		"$(<only)"
		say "PASSED after $(cut -d' ' -f1 /proc/uptime) s"
		systemctl poweroff
		return
	fi
	limits crun
	limits runc
	rm -r /etc/systemd/system/bulkhead.service.d && systemctl daemon-reload
	check "back to the default" systemctl restart bulkhead

	check "a network" bulkhead network create --subnet 10.77.0.0/24 --subnet fd77::/64 back
	check "an endpoint without a container" bulkhead endpoint create --network back --name spare --ip 10.77.0.99
	check "a container that comes back" bulkhead run -d --name web --restart always -p 8080:80 --memory 64m --cpus 1 \
		--pids-limit 50 box httpd -f -h /www
	check "one that does not" bulkhead run -d --name once --network back:ip=10.77.0.7,ip6=fd77::7 box httpd -f -h /www
	check "one that comes back unless stopped" bulkhead run -d --name unless --restart unless-stopped -p 8081:80 --expose lan \
		--network back box httpd -f -h /www
	check "one that ends when it is asked to" bulkhead run -d --name polite --restart unless-stopped -v said:/said box \
		sh -c 'trap "echo bye >>/said/bye; exit 7" TERM; while :; do sleep 1; done'
	check "one that was stopped" bulkhead run -d --name stopped --restart unless-stopped box sleep 1000
	check "stopped" bulkhead stop -t 1 stopped
	eventually "the port answers" answers
	check "logs" bulkhead logs web
	bulkhead doctor
	check "doctor finds nothing wrong" healthy
	eventually "containers are apart from the service" apart
	without_daemon
	check "once stops" bulkhead stop -t 1 once # as it will be then
	eventually "doctor finds nothing wrong" healthy
	inventory >inventory.before
	traces >traces.before
	check "once starts" bulkhead start once
	stage rebooted
	say "rebooting after $(cut -d' ' -f1 /proc/uptime) s"
	date +%s >reboot.began
	systemctl reboot
}

# encryption: the kernel's WireGuard outlives the daemon, gives way to a process and comes back, and goes with the cluster.
encryption() {
	local was
	check "the kernel has it" modprobe wireguard
	in_cluster
	eventually "the kernel encrypts" encrypts kernel
	check "doctor knows" eval '[[ $(says encryption) == "ok WireGuard of the kernel" ]]'
	was=$(ip -n hns-wireguard -o link show type wireguard)
	check "a restart" systemctl restart bulkhead
	eventually "it encrypts still" encrypts kernel
	check "by the same device" [ "$(ip -n hns-wireguard -o link show type wireguard)" = "$was" ]
	encrypt_by user-space
	eventually "a process encrypts" encrypts user-space
	check "and only that" [ -z "$(ip -n hns-wireguard -o link show type wireguard)" ]
	encrypt_by kernel
	eventually "the kernel encrypts again" encrypts kernel
	check "and no process" eval '! pgrep -f "bulkhead [w]ireguard" && [[ ! -e /run/wireguard ]]'
	bulkhead rm -f inside
	check "it leaves" bulkhead cluster leave
	eventually "nothing of it is left" no_encryption
	in_cluster
	eventually "the kernel encrypts once more" encrypts kernel
	systemctl stop bulkhead
	check "reset is to remove the device" eval '[[ $(bulkhead reset --dry-run) == *"device bhw1"* ]]'
	check "reset" bulkhead reset --yes
	check "nothing of it is left" no_encryption
}
in_cluster() {
	check "a cluster" bulkhead cluster init --address 192.0.2.2
	check "an encrypted network" bulkhead network create -d overlay --encrypted secret
	check "a container on it" bulkhead run -d --name inside --network secret box sleep 1000
}
encrypts() { [[ $(bulkhead cluster status -o json | jq -r .encryption) == "$1" ]] || { bulkhead cluster status -o json; return 1; }; }
encrypt_by() {
	mkdir -p /etc/systemd/system/bulkhead.service.d
	printf '%s\n' '[Service]' 'ExecStart=' "ExecStart=/usr/local/bin/bulkhead daemon --wireguard $1" >/etc/systemd/system/bulkhead.service.d/wireguard.conf
	systemctl daemon-reload
	check "the service is to encrypt by $1" systemctl restart bulkhead
}
says() { bulkhead doctor -o json | jq -r ".[] | select(.name == \"$1\") | .status + \" \" + .detail"; }
no_encryption() { [[ ! -e /run/netns/hns-wireguard && ! -e /run/wireguard && -z $(ss -Hlun 'sport = 2392 or sport = 2393') ]] && ! pgrep -f "bulkhead [w]ireguard"; }

# bonds: networks on a bond and on a team, whose active members fail one after the other.
#
#   b1, b2 ─ switch ─ bond0 or team0 (10.88.0.1, of the host) ─┬─ m0 ── p0 ─┬─ br0 in "wire" (10.88.0.2)
#                                                              └─ m1 ── p1 ─┘
bonds() {
	local i
	check "the kernel has them" modprobe -a bonding team team_mode_activebackup veth bridge
	tar xf box.tar ./bin/busybox
	./bin/busybox nc -ll -p 9001 -e cat &
	ip netns add wire
	ip -n wire link add br0 type bridge
	for i in 0 1; do
		ip link add "m$i" type veth peer name "p$i" netns wire
		ip -n wire link set "p$i" master br0 up
		# A member of a team would speak IPv6 for itself, with the team's MAC; kernels since 6.2 keep it from that.
		echo 1 >"/proc/sys/net/ipv6/conf/m$i/disable_ipv6"
	done
	ip -n wire link set br0 up
	ip -n wire addr add 10.88.0.2/24 dev br0
	ip -n wire addr add fd88::2/64 dev br0 nodad
	bonded bond transparent bond0
	bonded bond l2bridge m0,m1
	bonded team transparent m0,m1
	bonded team l2bridge team0
}
# join_bond takes a MAC along with the members on a network that has only one, where it matters.
join_bond() {
	ip link set m0 down && ip link set m1 down && ip link add bond0 type bond mode active-backup miimon 50 fail_over_mac "$([[ $1 == l2bridge ]] && echo active || echo none)" &&
		ip link set m0 master bond0 && ip link set m1 master bond0 && ip link set bond0 up
}
leave_bond() { ip link del bond0; }
activate_bond() { echo "m$1" >/sys/class/net/bond0/bonding/active_slave; }
active_bond() { cat /sys/class/net/bond0/bonding/active_slave; }
join_team() {
	ip link set m0 down && ip link set m1 down && teamd -d -t team0 -c '{"runner": {"name": "activebackup"}, "link_watch": {"name": "ethtool"},
		"ports": {"m0": {}, "m1": {}}}' && ip link set team0 up
}
leave_team() { teamd -k -t team0; }
activate_team() { teamdctl team0 state item set runner.active_port "m$1"; }
active_team() { teamdctl team0 state item get runner.active_port; }
active() { [[ $("active_$1") == "m$2" ]]; }

reaches() { ip netns exec wire ping -c 1 -W 2 "$1"; }
serves() { [[ $(ip netns exec wire curl -sS -m 5 "http://$1/") == 'hello from box' ]]; }
# talk_with ADDRESS PORT FILE: a connection from the wire; what comes back of it is in the file.
talk_with() {
	ip netns exec wire bash -c 'exec 3<>"/dev/tcp/$0/$1" && while sleep 0.2; do
		echo on >&3 && read -r -t 60 -u 3 line && echo "$line" || exit; done' "$1" "$2" >"$3" 2>&1 &
}
talks() {
	local file before
	for file in spoken.host spoken.container; do
		before=$(wc -l <$file) && sleep 1 && (($(wc -l <$file) > before)) || return
	done
}
# taken MEMBER: the member takes frames for the containers.
taken() { (($(bridge fdb show dev "m$1" | grep -ci '^00:15:5d') == 2)); }
# untouched: no MAC of a container, no program and no flag is left at a device and its members.
untouched() {
	local dev
	for dev in "$1" m0 m1; do
		if bridge fdb show dev "$dev" | grep -i '^00:15:5d' || tc filter show dev "$dev" ingress | grep bulkhead ||
			tc filter show dev "$dev" egress | grep bulkhead || ip -d link show dev "$dev" | grep -E 'ALLMULTI|allmulti [1-9]|promiscuity [1-9]'; then
			return 1
		fi
	done
}
# learnt PORT: that is where the switch outside looks for b2.
learnt() { bridge -n wire fdb show br br0 | grep -i "^${b2} dev p$1 "; }

# bonded KIND TYPE UPLINK: a network goes on over the failure of each member, and so do connections to the host and to one of its
# containers. b2 does not speak unless it is spoken to.
bonded() {
	local what="$1, $2" i dev=${1}0 talkers=() b2
	check "$what: members join" "join_$1" "$2"
	ip addr add 10.88.0.1/24 dev "$dev"
	ip addr add fd88::1/64 dev "$dev" nodad
	eventually "$what: it can send by either" eval "activate_$1 1 && active $1 1 && activate_$1 0 && active $1 0"
	eventually "$what: it leads to the wire" reaches 10.88.0.1
	[[ $3 != *,* ]] || check "$what: a member is refused, with the name of the whole" eval \
		"! bulkhead network create --type transparent --uplink m0 --subnet 10.88.0.0/24 --gateway 10.88.0.2 no >refused 2>&1 && grep '$dev can be' refused"
	local create=(--type "$2" --uplink "$3" --subnet 10.88.0.0/24 --gateway 10.88.0.2 --subnet fd88::/64 --gateway fd88::2
		--exclude 10.88.0.1-10.88.0.63 --exclude fd88::1-fd88::3f lan)
	bulkhead network create --dry-run "${create[@]}" | tee would
	check "$what: what it would change is told of the whole alone" eval "grep -q '^link $dev' would && grep -q 'allmulticast on' would && ! grep -E '^link m[01]' would"
	check "$what: and nothing is changed by that" untouched "$dev"
	check "$what: make it" bulkhead network create "${create[@]}"
	bulkhead nic ls | tee nics
	check "$what: it is on the whole" eval "grep -E '^$dev .* lan ' nics && grep -E '^m0 .*$dev can be the uplink' nics"
	check "$what: with its address" eval "bulkhead network inspect lan | grep '\"ProviderAddress\": \"10.88.0.1\"'"
	check "$what: a container" bulkhead run -d --name b1 --network lan:ip=10.88.0.100,ip6=fd88::100 box sh -c 'httpd -h /www; exec nc -ll -p 9000 -e cat'
	check "$what: another" bulkhead run -d --name b2 --network lan:ip=10.88.0.101,ip6=fd88::101 box httpd -f -h /www
	b2=$(bulkhead inspect b2 | jq -r '.[0].endpoints[0].mac | ascii_downcase | gsub("-"; ":")')
	for i in 10.88.0.100 '[fd88::101]'; do eventually "$what: $i answers" serves "$i"; done
	bulkhead explain 10.88.0.2 b1 tcp/80 | tee explained
	check "$what: how it came there is told" eval "grep -q $dev explained && ! grep -iE 'fault|differ' explained"
	bulkhead doctor | grep -v '^ok' || true
	check "$what: doctor finds nothing wrong" healthy
	talk_with 10.88.0.1 9001 spoken.host && talkers+=($!)
	talk_with 10.88.0.100 9000 spoken.container && talkers+=($!)
	eventually "$what: connections" talks

	# The other member takes over while the first is well: nobody but ourselves tells the switch outside where b2 is.
	if [[ $2 == transparent ]]; then
		check "$what: m0 takes frames for them" taken 0
		check "$what: the switch outside knows where b2 is" learnt 0
	fi
	check "$what: m1 takes over" "activate_$1" 1
	eventually "$what: it does" active "$1" 1
	[[ $2 != transparent ]] || eventually "$what: the switch outside finds b2 there" learnt 1
	eventually "$what: who did not speak is reached" reaches 10.88.0.101
	eventually "$what: the connections go on" talks
	for i in 1 0; do
		check "$what: m$i fails" ip -n wire link set "p$i" down
		eventually "$what: m$((1 - i)) is active" active "$1" $((1 - i))
		[[ $2 != transparent ]] || eventually "$what: m$((1 - i)) takes frames for them" taken $((1 - i))
		eventually "$what: the connections go on" talks
		eventually "$what: fd88::101 answers" reaches fd88::101
		check "$what: m$i is back" ip -n wire link set "p$i" up
	done
	check "$what: a container reaches another and the wire" bulkhead exec b2 sh -c 'wget -qO- http://10.88.0.100/ && ping -c 1 -W 5 fd88::2'
	eventually "$what: the host and the container reach each other" eval "[[ \$(curl -sS -m 5 http://10.88.0.100/) == 'hello from box' ]]"
	if [[ $1$2 == bondl2bridge ]]; then
		check "$what: the daemon starts again" systemctl restart bulkhead
		eventually "$what: the connections go on" talks
	fi
	kill "${talkers[@]}"
	check "$what: remove it" eval 'bulkhead rm -f b1 b2 && bulkhead network rm lan'
	# What is removed is cut off first, and taken away after the answer.
	eventually "$what: nothing of ours is left at it" untouched "$dev"
	"leave_$1"
}

# Containers and their connections do not depend on the daemon.
without_daemon() {
	local pid
	check "an echo" bulkhead run -d --name echo -p 9000:9000 box nc -ll -p 9000 -e cat
	check "somebody who calls it" bulkhead run -d --name caller box sh -c 'while :; do echo on; sleep 0.2; done | nc echo 9000 >/heard'
	eventually "connections are open" call
	eventually "between containers too" calls_on
	pid=$(state web pid)
	check "restart the service" systemctl restart bulkhead
	check "the daemon answers at once" bulkhead ps
	check "connections go on" talk restarted
	check "kill the daemon" systemctl kill -s KILL bulkhead
	check "connections go on" talk killed
	check "the port goes on" answers
	eventually "it is back by itself" bulkhead version
	check "systemd has counted it" [ "$(systemctl show -P NRestarts bulkhead)" = 1 ]
	check "stop the service" systemctl stop bulkhead
	check "systemd finds nothing wrong with that" [ "$(systemctl show -P Result bulkhead)" = success ]
	check "connections go on" talk stopped
	check "the port goes on" answers
	check "start the service" systemctl start bulkhead
	check "the daemon answers at once" bulkhead ps
	check "connections go on" talk started
	check "between containers too" calls_on
	check "the container has not noticed" is web pid "$pid"
	eventually "containers are apart from the service" apart
	exec 3>&- 4>&-
	check "remove them" bulkhead rm -f echo caller
}

# back: what is to be back after a start of the machine is, and no more.
back() {
	check "the service is up by itself" systemctl is-enabled bulkhead
	eventually "the daemon answers" bulkhead ps
	for c in web unless polite; do eventually "$c runs" is "$c" status running; done
	for c in once stopped; do check "$c has exited" is "$c" status exited; done
	bulkhead ps -a
	eventually "the port answers" answers
	check "limits are kept" [ "$(stat_of web memoryLimit)" = $((64 << 20)) ]
	check "networks, endpoints, addresses and ports are those of before" same inventory
	eventually "containers are apart from the service" apart
	eventually "doctor finds nothing wrong" healthy
	check "nothing is taken for somebody else's doing" eval '! journalctl -b -u bulkhead --no-pager -o cat | grep "drift repaired"'
	eventually "kernel and disk hold what they held" same traces
	check "once starts" bulkhead start once
	for host in 10.77.0.7 '[fd77::7]' once; do
		check "it answers as $host" bulkhead exec unless wget -qO- "http://$host/"
	done
	check "once stops" bulkhead stop -t 1 once
}

rebooted() {
	local down up
	up=$(cut -d. -f1 /proc/uptime)
	down=$(($(date +%s) - up - $(<reboot.began)))
	say "down took $down s, up $up s"
	eventually "the daemon answers" bulkhead ps
	check "containers that heed no signal did not hold the shutdown up" eval "((down < 85))"
	check "how they ended is known" is once exitCode 137
	eventually "polite runs" is polite status running
	check "it was asked to end" [ "$(bulkhead exec polite cat /said/bye)" = bye ]
	back
	stage cut
	say "storm begins"
	for ((i = 0; ; i++)); do
		bulkhead run -d --name "s$i" --network back -p "$((9000 + i)):80" --restart "$([[ $((i % 2)) == 0 ]] && echo always || echo no)" \
			box httpd -f -h /www >/dev/null &
		bulkhead network create "n$i" >/dev/null &
		bulkhead endpoint create --network back --name "e$i" >/dev/null &
		((i < 2)) || bulkhead rm -f "s$((i - 2))" >/dev/null &
		((i < 2)) || bulkhead network rm "n$((i - 2))" >/dev/null &
		wait
		say "storm: $((i + 1))"
	done
}

# After the power cut: what of the storm was stored is there and whole, what was there before is as it was, and all of it
# can be removed.
power_cut() {
	eventually "the daemon answers" bulkhead ps
	check "every row can be read" eval '! journalctl -b -u bulkhead --no-pager | grep -iE "corrupt|panic|set aside|damaged|cannot be read"'
	eventually "nothing is about to start" eval '[[ $(bulkhead ps -a -o json | jq "[.[] | select(.state.status == \"restarting\" or .state.status == \"starting\")] | length") == 0 ]]'
	bulkhead ps -a
	bulkhead network ls
	check "no address is given twice" eval '[[ -z $(bulkhead endpoint ls -o json | jq -r ".[].IpConfigurations[].IpAddress" | sort | uniq -d) ]]'
	local name
	for name in $(bulkhead ps -a -o json | jq -r '.[].name | select(test("^s[0-9]"))'); do
		check "remove $name" bulkhead rm -f "$name"
	done
	for name in $(bulkhead endpoint ls -o json | jq -r '.[] | select(.Name != null) | select(.Name | test("^e[0-9]")) | .ID'); do
		check "remove endpoint $name" bulkhead endpoint rm "$name"
	done
	for name in $(bulkhead network ls -o json | jq -r '.[].Name | select(test("^n[0-9]"))'); do
		check "remove network $name" bulkhead network rm "$name"
	done
	back

	check "stop the service" systemctl stop bulkhead
	check "reset" bulkhead reset --yes
	check "no link of ours" eval '! ip -o link | grep -E " bh[hpr]"'
	check "no table of ours" eval '! nft list tables | grep bulkhead'
	check "no compartment" eval '! ls /run/netns 2>/dev/null | grep .'
	check "no cgroup" [ ! -e /sys/fs/cgroup/bulkhead ]
	check "no pin" [ ! -e /sys/fs/bpf/bulkhead ]
	check "no process" eval '! pgrep -a "conmon|httpd"'
	check "no mount" eval '! grep /run/bulkhead /proc/mounts'
	check "no file" eval '[[ ! -e /run/bulkhead && $(ls /var/lib/bulkhead) == lost+found ]]'
	say "PASSED after $(cut -d' ' -f1 /proc/uptime) s"
	systemctl poweroff
}

case $(cat stage 2>/dev/null || echo first) in
first) first_boot ;;
rebooted) rebooted ;;
cut) power_cut ;;
esac
