package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/process"
)

// checks are the lines of the doctor's report that need the parts below the
// engine: the kernel's features, other firewalls, the container runtime.
func (p *parts) checks(ctx context.Context) []api.Check {
	return append(p.hostChecks(ctx), nameChecks(p.engine, p.names)...)
}

// hostChecks are those of the host and of what works for us there.
func (p *parts) hostChecks(ctx context.Context) []api.Check {
	var out []api.Check
	for _, f := range vswitch.Probe() {
		c := api.Check{Name: "kernel: " + f.Name, Status: "ok", Detail: f.Detail}
		if !f.OK {
			c.Status, c.Next = "warn", "use Linux "+f.Since+" or later for it"
			if f.Needed {
				c.Status = "fail"
			}
		}
		out = append(out, c)
	}
	out = append(out, api.Check{Name: "switch", Status: "ok", Detail: "programs are attached by " + string(p.sw.Mode())}, offloadCheck(p.sw), wireguardCheck(p.wg))
	out = append(out, forwarding("net/ipv4/ip_forward", "IPv4"), forwarding("net/ipv6/conf/all/forwarding", "IPv6"))
	out = append(out, neighbourChecks()...)
	foreign, err := p.filter.Foreign(ctx)
	if err != nil {
		out = append(out, api.Check{Name: "other firewalls", Status: "warn", Detail: err.Error()})
	}
	for _, f := range foreign {
		out = append(out, api.Check{Name: "other firewalls", Status: "warn", Detail: f, Next: foreignNext(f)})
	}
	if err == nil && len(foreign) == 0 {
		out = append(out, api.Check{Name: "other firewalls", Status: "ok", Detail: "none forbids forwarding"})
	}
	counters, err := p.filter.Counters()
	if err == nil {
		var parts []string
		for name, c := range counters {
			if c.Packets > 0 {
				parts = append(parts, fmt.Sprintf("%s %d", name, c.Packets))
			}
		}
		out = append(out, api.Check{Name: "netfilter drops", Status: "ok", Detail: strings.Join(parts, ", ")})
	}
	return append(append(out, runtimeChecks(p.runtime.Probe(ctx))...), vmCheck(ctx, p.vms))
}

// offloadCheck says whether flows across the host are carried past its stack.
func offloadCheck(sw *vswitch.Applier) api.Check {
	c := api.Check{Name: "offload", Status: "ok"}
	s, err := sw.Offload()
	switch {
	case err != nil:
		c.Status, c.Detail = "warn", err.Error()
	case !s.On:
		c.Detail = "flows across the host take the way through its stack: " + s.Reason
	case s.Devices == 0:
		c.Detail = "ready; there is no NAT network"
	default:
		c.Detail = fmt.Sprintf("%d packets carried out, %d in; %d directions of flows known", s.Stats.Out, s.Stats.In, s.Entries)
	}
	return c
}

// foreignNext is what to do about something of others.
func foreignNext(what string) string {
	switch {
	case strings.HasPrefix(what, "iptables-legacy") || strings.HasPrefix(what, "ip6tables-legacy"):
		tool, _, _ := strings.Cut(what, ":")
		return tool + "-save shows them; a rule there that drops goes before whatever nftables accepts"
	case strings.HasPrefix(what, "br_netfilter"):
		return "nothing for containers here, whose frames meet no bridge; if those bridges lose frames, set it to 0"
	case strings.HasPrefix(what, "net.ipv4.conf.all.route_localnet"):
		return "sysctl -w net.ipv4.conf.all.route_localnet=0, unless another tool needs it: published ports do not"
	}
	return "allow forwarding for interfaces named bhh* there, if containers cannot reach out"
}

func forwarding(sysctl, family string) api.Check {
	b, err := os.ReadFile("/proc/sys/" + sysctl)
	switch {
	case err != nil:
		return api.Check{Name: family + " forwarding", Status: "fail", Detail: err.Error(), Next: "enable " + family + " in the kernel"}
	case strings.TrimSpace(string(b)) == "0":
		return api.Check{
			Name: family + " forwarding", Status: "warn", Detail: "it is off: somebody turned it off, or no NAT network of this family exists",
			Next: "look for a tool that resets " + strings.ReplaceAll(sysctl, "/", "."),
		}
	}
	return api.Check{Name: family + " forwarding", Status: "ok"}
}

func runtimeChecks(p process.Probe) []api.Check {
	out := []api.Check{
		{Name: "OCI runtime", Status: "ok", Detail: p.RuntimeVersion + " (" + p.Runtime + ")"},
		{Name: "container monitor", Status: "ok", Detail: p.ConmonVersion},
		{Name: "cgroups", Status: "ok", Detail: p.Cgroups},
	}
	if p.Runtime == "" {
		out[0] = api.Check{Name: "OCI runtime", Status: "fail", Detail: fmt.Sprintf("none works: %v", p.Rejected), Next: "apt-get install runc"}
	}
	if p.Conmon == "" {
		out[1] = api.Check{Name: "container monitor", Status: "fail", Detail: "conmon is missing", Next: "apt-get install conmon"}
	}
	if len(p.Missing) > 0 {
		out[2].Status, out[2].Detail = "warn", p.Cgroups+", without "+strings.Join(p.Missing, ", ")
		out[2].Next = "limits that need these controllers are refused"
	}
	if p.Overlay != "" {
		out = append(out, api.Check{Name: "overlayfs", Status: "fail", Detail: p.Overlay, Next: "put the state directory on ext4, xfs or btrfs"})
	}
	if !p.Seccomp {
		out = append(out, api.Check{Name: "seccomp", Status: "warn", Detail: "the kernel has none: containers run unfiltered", Next: "use a kernel with CONFIG_SECCOMP_FILTER"})
	}
	return out
}

// leftovers lists devices, compartments and pins of ours that serve nothing of the
// plan.
func leftovers(dev *netdev.Netdev, bpfDir string) func(context.Context, *plan.Plan) ([]string, error) {
	return func(ctx context.Context, p *plan.Plan) ([]string, error) {
		ours, err := dev.Leftovers(ctx, p)
		// What is changed on the host is no leftover while the daemon runs.
		ours = slices.DeleteFunc(ours, func(s string) bool { return strings.HasPrefix(s, "sysctl ") })
		pins, pinErr := vswitch.Leftovers(bpfDir, p)
		if len(p.Ports) == 0 {
			pins = nil // the maps, which stay for the next port
		}
		return append(ours, pins...), errors.Join(err, pinErr)
	}
}
