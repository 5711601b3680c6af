package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkPath sends from one container to another on the same host, beside a bare veth pair, a Linux bridge, and one as a
// Docker host has it.
func BenchmarkPath(b *testing.B) {
	s := configure(b)
	section := report.section("3. same host, container to container; client and server on one CPU",
		"rr: one byte each way on one connection; crr: connect, one byte each way, close; udp: 64-byte datagrams delivered.",
		"stream: one TCP connection, or 4 at once, iperf3.",
		"redirect alone: two pairs and a program on each that does nothing but send each frame to the other's far end.",
		"bulkhead, N rules: on both ports, half of them In and half Out; the last one lets the packets pass.")
	paths := []path{barePath(b), bridgePath(b)}
	docker, missing := dockerPath(b)
	if missing != "" {
		section.Notes = append(section.Notes, missing)
	}
	ours := []path{switchPath(b, s, 0), switchPath(b, s, 100), switchPath(b, s, 10_000)}
	paths = append(paths, docker)
	if redirect, err := redirectPath(b); err == nil {
		paths = append(paths, redirect)
	} else {
		section.Notes = append(section.Notes, "redirect alone is not measured: "+err.Error())
	}
	paths = append(paths, ours...)
	metrics := []string{metricRR, metricCRR, metricUDP, metricStream, metricStreams}
	measurePaths(b, s, section, paths, metrics...)
	bare := map[string]float64{metricRR: 0.95, metricCRR: 0.93, metricUDP: 0.90, metricStream: 0.95, metricStreams: 0.95}
	beside := map[string]float64{metricRR: 1.35, metricCRR: 1.4, metricUDP: 1.45}
	for _, metric := range metrics {
		for _, p := range ours {
			rate := section.median(metric, p.name)
			what := "same host, " + metric + ", " + p.name + " by "
			report.atLeast(what+"a bare veth pair", ratio(rate, section.median(metric, paths[0].name)), bare[metric])
			report.atLeast(what+"a Linux bridge", ratio(rate, section.median(metric, paths[1].name)), 1)
			if aim := beside[metric]; aim > 0 && missing == "" {
				report.atLeast(what+"a bridge with Docker-like rules", ratio(rate, section.median(metric, docker.name)), aim)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

func barePath(b *testing.B) path {
	b.Helper()
	h := testhost.New(b, testhost.WithName("bare"))
	client, server := h.NewNamespace("client"), h.NewNamespace("server")
	client.Connect(server, testhost.Cable{Addrs: []string{"10.9.0.1/24"}, PeerAddrs: []string{"10.9.0.2/24"}})
	return path{name: "bare veth", client: client, server: server, at: netip.MustParseAddr("10.9.0.2"), served: 80, port: 80}
}

func bridgePath(b *testing.B) path {
	b.Helper()
	lan := testhost.Switch(b, testhost.WithName("bridge"))
	// Where br_netfilter is loaded, a bridge is to be one without it: that is its best case.
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		lan.Sysctl("net.bridge.bridge-nf-call-iptables", "0")
	}
	client, server := lan.NewNamespace("client"), lan.NewNamespace("server")
	lan.Plug(client, "eth0", "10.9.0.1/24")
	lan.Plug(server, "eth0", "10.9.0.2/24")
	return path{name: "Linux bridge", client: client, server: server, at: netip.MustParseAddr("10.9.0.2"), served: 80, port: 80}
}

// switchPath is ours, with so many rules on each of the two ports.
func switchPath(b *testing.B, s settings, rules int) path {
	b.Helper()
	name := "bulkhead"
	if rules > 0 {
		name = fmt.Sprintf("bulkhead, %d rules", rules)
	}
	h := testhost.New(b, testhost.WithName("bulkhead"))
	uplink := testhost.New(b, testhost.WithName("lan"))
	h.Connect(uplink, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	f := newFleet(newDaemon(b, h, s.binary))
	for i := range 2 {
		f.attach(i)
		if rules > 0 {
			f.addRules(i, hcn.DirectionTypeIn, mixed(rules/2, 0))
			f.addRules(i, hcn.DirectionTypeOut, mixed(rules/2, 0))
		}
	}
	return path{name: name, client: f.compartment(0), server: f.compartment(1), at: f.addr(1), served: 80, port: 80}
}

// redirectPath is the limit of any switch that is a program on the ports: one that decides nothing.
func redirectPath(b *testing.B) (path, error) {
	b.Helper()
	h := testhost.New(b, testhost.WithName("redirect"))
	client, server := h.NewNamespace("client"), h.NewNamespace("server")
	h.Connect(client, testhost.Cable{Dev: "veth0", PeerAddrs: []string{"10.9.0.1/24"}})
	h.Connect(server, testhost.Cable{Dev: "veth1", PeerAddrs: []string{"10.9.0.2/24"}})
	from, to := h.Link("veth0").Attrs().Index, h.Link("veth1").Attrs().Index
	var err error
	h.Do(func() { err = errors.Join(redirectTo(b, from, to), redirectTo(b, to, from)) })
	return path{name: "redirect alone", client: client, server: server, at: netip.MustParseAddr("10.9.0.2"), served: 80, port: 80}, err
}

// redirectTo sends all that comes in by a port to the far end of another one.
func redirectTo(b *testing.B, from, to int) error {
	b.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		// The frame is for another MAC than that of the port, and would be nobody's.
		asm.Mov.Imm(asm.R2, 0), // PACKET_HOST
		asm.FnSkbChangeType.Call(),
		asm.Mov.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirectPeer.Call(),
		asm.Return(),
	}})
	if err != nil {
		return fmt.Errorf("load a program that redirects: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: from, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return errors.Join(fmt.Errorf("attach it: %w", err), prog.Close())
	}
	b.Cleanup(func() { l.Close(); prog.Close() })
	return nil
}

// dockerPath is a bridge whose frames netfilter sees, with the rules that Docker has for two containers of which each
// publishes a port. Where the kernel lacks br_netfilter, it says so: then no rule is asked.
func dockerPath(b *testing.B) (p path, missing string) {
	b.Helper()
	lan := testhost.Switch(b, testhost.WithName("docker"))
	lan.Addr("br0", "10.9.0.254/24")
	lan.Forwarding(true)
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		lan.Sysctl("net.bridge.bridge-nf-call-iptables", "1")
	} else {
		missing = "bridge, Docker-like rules: this kernel has no br_netfilter, so frames between two containers pass no rule."
	}
	client, server := lan.NewNamespace("client"), lan.NewNamespace("server")
	lan.Plug(client, "eth0", "10.9.0.1/24")
	lan.Plug(server, "eth0", "10.9.0.2/24")
	lan.WriteFile("/run/docker.rules", dockerRules)
	lan.Run(b, "iptables-restore", "/run/docker.rules")
	return path{
		name: "bridge, Docker-like rules", client: client, server: server, at: netip.MustParseAddr("10.9.0.2"), served: 80, port: 80,
	}, missing
}

// dockerRules are for containers 10.9.0.1 and 10.9.0.2 on br0, whose ports 80 are published as 8081 and 8082.
const dockerRules = `*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.9.0.0/24 ! -o br0 -j MASQUERADE
-A POSTROUTING -s 10.9.0.1/32 -d 10.9.0.1/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A POSTROUTING -s 10.9.0.2/32 -d 10.9.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i br0 -j RETURN
-A DOCKER ! -i br0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.9.0.1:80
-A DOCKER ! -i br0 -p tcp -m tcp --dport 8082 -j DNAT --to-destination 10.9.0.2:80
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br0 -j DOCKER
-A FORWARD -i br0 ! -o br0 -j ACCEPT
-A FORWARD -i br0 -o br0 -j ACCEPT
-A DOCKER -d 10.9.0.1/32 ! -i br0 -o br0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d 10.9.0.2/32 ! -i br0 -o br0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br0 ! -o br0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`
