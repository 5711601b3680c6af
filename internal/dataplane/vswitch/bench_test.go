package vswitch

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// crowd is a switch with n containers, their far ends all in one namespace: the applier
// sees only the near ones.
func crowd(b *testing.B, mode AttachMode, n int) *lab {
	b.Helper()
	l := newLab(b, mode)
	l.nat(1)
	for _, p := range l.plan.Ports {
		l.devices(p)
	}
	far, err := os.Open(l.host.NewNamespace("far").NetnsPath())
	if err != nil {
		b.Fatal(err)
	}
	defer far.Close()
	for i := range n {
		p := l.container(1, 256+i)
		p.VNIC.Device = fmt.Sprintf("v%d", i)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues = p.Device, 1, 1
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.VNIC.Device, PeerHardwareAddr: p.MAC[:], PeerNamespace: netlink.NsFd(far.Fd())}
		if err := l.host.Netlink().LinkAdd(veth); err != nil {
			b.Fatal(err)
		}
	}
	l.sync()
	return l
}

// threadTime is the CPU time of the calling thread, which a busy machine does not stretch
// as it does the clock on the wall.
func threadTime(b *testing.B) int64 {
	b.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}

func cpuTime(b *testing.B) func() {
	b.Helper()
	start := threadTime(b)
	return func() { b.ReportMetric(float64(threadTime(b)-start)/float64(b.N)/1000, "cpu-µs/op") }
}

// BenchmarkPort removes and adds one port of a switch, Check polls a switch, and Sync
// compares it in full, all without a difference to write but the port's.
func BenchmarkPort(b *testing.B) {
	ctx := context.Background()
	for _, mode := range []AttachMode{AttachTCX, AttachClsact} {
		for _, n := range []int{1, 1000} {
			l := crowd(b, mode, n)
			p := l.plan.Ports["1-256"]
			name := fmt.Sprintf("%s/%d", mode, n)
			b.Run(name+"/remove+add", func(b *testing.B) {
				l.in(func() error {
					defer cpuTime(b)()
					var remove, add time.Duration
					for b.Loop() {
						start := time.Now()
						delete(l.plan.Ports, p.ID)
						if err := l.a.Update(ctx, l.plan, change(p, nil)); err != nil {
							return err
						}
						remove += time.Since(start)
						start = time.Now()
						l.plan.Ports[p.ID] = p
						if err := l.a.Update(ctx, l.plan, change(nil, p)); err != nil {
							return err
						}
						add += time.Since(start)
					}
					b.ReportMetric(float64(add.Microseconds())/float64(b.N), "µs/add")
					b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "µs/remove")
					return nil
				})
			})
			b.Run(name+"/check", func(b *testing.B) {
				l.in(func() error {
					defer cpuTime(b)()
					for b.Loop() {
						if ok, err := l.a.Check(ctx, l.plan); !ok || err != nil {
							return fmt.Errorf("check: %v, %w", ok, err)
						}
					}
					return nil
				})
			})
			b.Run(name+"/sync", func(b *testing.B) {
				l.in(func() error {
					defer cpuTime(b)()
					for b.Loop() {
						if _, err := l.a.Sync(ctx, l.plan); err != nil {
							return err
						}
					}
					return nil
				})
			})
		}
	}
}

// BenchmarkProgram is the program's own time, as the kernel measures it over many runs on
// one frame.
func BenchmarkProgram(b *testing.B) {
	l := crowd(b, AttachAuto, 1000)
	from, to := l.plan.Ports["1-256"], l.plan.Ports["1-900"]
	m, n := hw(from.MAC), hw(to.MAC)
	gw := hw(l.plan.Ports[plan.HostPortID(network(1))].MAC)
	index := l.a.applied[from.ID].index
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"unicast IPv4", th.Frame(eth(m, n), v4(from.Addrs[0], to.Addrs[0]), th.TCP{DstPort: 80, Flags: "A"})},
		{"unicast IPv6", th.Frame(eth(m, n), v6(from.Addrs[1], to.Addrs[1]), th.TCP{DstPort: 80, Flags: "A"})},
		{"to the host", th.Frame(eth(m, gw), v4(from.Addrs[0], addr("192.0.2.1")), th.TCP{DstPort: 80, Flags: "A"})},
		{"name query", th.Frame(eth(m, gw), v4(from.Addrs[0], gateway4(1)), udp(1000, 53))},
		{"spoofed", th.Frame(eth(m, n), v4(to.Addrs[0], to.Addrs[0]), udp(1, 2))},
	} {
		b.Run(c.name, func(b *testing.B) {
			// With ingress_ifindex set the program takes the frame for a real one: it counts.
			// It cannot send: what it returns is only a verdict here.
			in := bpfSkBuff{Ifindex: index, IngressIfindex: index}
			l.in(func() error {
				const repeat = 1_000_000
				opts := &ebpf.RunOptions{Data: c.frame, Context: in, Repeat: repeat}
				start := threadTime(b)
				_, err := l.a.objs.BhFromPort.Run(opts)
				b.ReportMetric(float64(threadTime(b)-start)/repeat, "cpu-ns/packet")
				return err
			})
		})
	}
}
