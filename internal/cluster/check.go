package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// CheckCluster has hosts send each other packets like those of tunnels, and says what becomes of them.
func (h *Host) CheckCluster(ctx context.Context, r api.ClusterCheckRequest) (api.ClusterCheck, error) {
	a := h.member.Agent()
	if a == nil {
		return api.ClusterCheck{}, api.Errorf(api.KindConflict, "this host is in no cluster").Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one")
	}
	status := a.Status()
	if !status.Connected {
		return api.ClusterCheck{}, api.Errorf(api.KindUnavailable, "the other hosts are asked by way of etcd, which is away: %s", status.Problem).Hint("bulkhead cluster status")
	}
	hosts, err := checkedHosts(status.Hosts, a.Self().ID, r.Hosts)
	if err != nil {
		return api.ClusterCheck{}, err
	}
	ports, least := map[uint16]bool{}, 0
	for i := range status.Networks {
		doc := status.Networks[i].Doc
		if plan.Encrypted(&doc) {
			ports[overlay.PortOf(newestKeys(status.Hosts))] = true
		} else {
			ports[plan.VXLANPort(&doc)] = true
		}
		least = max(least, plan.LeastMTU(&plan.Network{Doc: doc}))
	}
	if len(ports) == 0 {
		ports[plan.DefaultVXLANPort], least = true, plan.LeastMTU(&plan.Network{})
	}
	sorted := slices.Sorted(maps.Keys(ports))
	var ids []hcn.GUID
	for i := range hosts {
		ids = append(ids, hosts[i].ID)
	}
	found, err := checkAll(sorted, func(part []uint16) (map[hcn.GUID]overlay.Checked, error) { return a.Check(ctx, ids, part) })
	if err != nil {
		return api.ClusterCheck{}, asClusterError(fmt.Errorf("check the network between the hosts: %w", err))
	}
	return diagnose(hosts, sorted, found, least), nil
}

// checkAll checks as many ports at a time as a check has.
func checkAll(ports []uint16, check func([]uint16) (map[hcn.GUID]overlay.Checked, error)) (map[hcn.GUID]overlay.Checked, error) {
	all := map[hcn.GUID]overlay.Checked{}
	for part := range slices.Chunk(ports, overlay.MaxPorts) {
		found, err := check(part)
		if err != nil {
			return nil, err
		}
		for id, c := range found {
			had := all[id]
			c.Paths, c.Error = append(had.Paths, c.Paths...), cmp.Or(had.Error, c.Error)
			all[id] = c
		}
	}
	return all, nil
}

// checkedHosts are this host and those that are named, or all that are alive.
func checkedHosts(all []overlay.HostStatus, self hcn.GUID, refs []string) (out []overlay.Host, err error) {
	want := map[hcn.GUID]bool{self: true}
	for _, ref := range refs {
		ids := named(all, ref)
		i := slices.IndexFunc(all, func(o overlay.HostStatus) bool { return len(ids) == 1 && o.ID == ids[0] })
		switch {
		case len(ids) > 1:
			return nil, api.Errorf(api.KindConflict, "%d hosts of the cluster are called %.100q", len(ids), ref).Hint("use the ID; bulkhead cluster ls shows it")
		case i < 0:
			return nil, api.Errorf(api.KindNotFound, "no host of the cluster has the name or ID %.100q", ref).Hint("bulkhead cluster ls")
		case !all[i].Alive:
			return nil, api.Errorf(api.KindConflict, "host %q is gone, and cannot be asked", all[i].Name).Hint("bulkhead cluster ls")
		}
		want[ids[0]] = true
	}
	for _, o := range all {
		if o.Alive && (len(refs) == 0 || want[o.ID]) {
			out = append(out, o.Host)
		}
	}
	switch {
	case len(out) < 2:
		return nil, api.Errorf(api.KindConflict, "there is no other host to check the way to").Hint("bulkhead cluster ls")
	case len(out) > overlay.MaxChecked:
		return nil, api.Errorf(api.KindInvalid, "a check is of %d hosts at most, for each sends to each, and these are %d", overlay.MaxChecked, len(out)).Hint("name hosts: bulkhead cluster check web2 web3")
	}
	return out, nil
}

// overhead is what a tunnel takes of the MTU.
func overhead(v4 bool) int {
	if v4 {
		return plan.Overhead4
	}
	return plan.Overhead6
}

// diagnose makes of what each host has found what is true of each way, and what to do. least is what the networks need.
func diagnose(hosts []overlay.Host, ports []uint16, found map[hcn.GUID]overlay.Checked, least int) api.ClusterCheck {
	out := api.ClusterCheck{OK: true}
	byPath := func(of, to hcn.GUID, port uint16) *overlay.PathFound {
		paths := found[of].Paths
		if i := slices.IndexFunc(paths, func(p overlay.PathFound) bool { return p.Host == to && p.Port == port }); i >= 0 {
			return &paths[i]
		}
		return nil
	}
	for i := range hosts {
		from := &hosts[i]
		h := api.ClusterCheckHost{ID: from.ID, Name: from.Name}
		c, told := found[from.ID]
		switch {
		case !told:
			h.Problems = append(h.Problems, api.ClusterCheckProblem{
				Reason: fmt.Sprintf("host %s said nothing within the time", from.Name), Next: "see there that its daemon runs and is of this version: bulkhead cluster status",
			})
		case c.Error != "":
			h.Problems = append(h.Problems, api.ClusterCheckProblem{Reason: fmt.Sprintf("host %s could not take part: %s", from.Name, c.Error), Next: "see the daemon's log there"})
		}
		for j := range hosts {
			if i == j || !told || c.Error != "" {
				continue
			}
			for _, port := range ports {
				sent := byPath(from.ID, hosts[j].ID, port)
				p := diagnosePath(from, &hosts[j], port, sent, byPath(hosts[j].ID, from.ID, port), least)
				if sent != nil {
					h.NIC, h.NICMTU = sent.NIC, sent.MTU
				}
				out.OK = out.OK && len(p.Problems) == 0
				out.Paths = append(out.Paths, p)
			}
		}
		if h.NICMTU > 0 {
			h.NetworkMTU = max(min(cmp.Or(c.Held, h.NICMTU), h.NICMTU)-overhead(from.Addrs[0].Is4()), least)
		}
		out.OK = out.OK && len(h.Problems) == 0
		out.Hosts = append(out.Hosts, h)
	}
	return out
}

// diagnosePath judges a way by what its sender has had answered and its receiver has heard; either may have said nothing, or not have come
// to its end in time: then only what did arrive is known.
func diagnosePath(from, to *overlay.Host, port uint16, sent, heard *overlay.PathFound, least int) api.ClusterPath {
	v4 := from.Addrs[0].Is4()
	p := api.ClusterPath{From: from.Name, To: to.Name, Port: port, Source: text(from.Addr(v4)), Destination: text(to.Addr(v4))}
	bad := func(next, format string, args ...any) {
		p.Problems = append(p.Problems, api.ClusterCheckProblem{Reason: fmt.Sprintf(format, args...), Next: next})
	}
	if to.Addrs[0].Is4() != v4 {
		bad("have both join with --address of one family first", "%s sends tunnels from %s and %s expects them at %s: these are of different families", from.Name, from.Addrs[0], to.Name, to.Addrs[0])
		return p
	}
	if sent == nil {
		bad("check again: it may have come or changed just now", "%s did not try the way to %s", from.Name, to.Name)
		return p
	}
	p.MTU, p.Bytes = sent.MTU, sent.Size
	came := sent.Answered
	if heard != nil {
		came |= heard.Heard
	}
	usual := overlay.SumLeft
	if v4 {
		usual = overlay.SumNone
	}
	p.Arrives = came&usual != 0
	var wrong overlay.Sums
	if heard != nil {
		wrong = heard.Bad | heard.Damaged
	}
	switch {
	case !sent.Done:
		bad("check fewer hosts at once: bulkhead cluster check HOST…", "%s did not come to the end of checking the way to %s in time", from.Name, to.Name)
		p.Bytes = 0
		return p
	case came == 0 && wrong == 0 && sent.Error != "":
		bad(fmt.Sprintf("on %s: ip route get %s; nft list ruleset", from.Name, p.Destination), "%s cannot send to %s: %s", from.Name, p.Destination, sent.Error)
	case came == 0 && wrong == 0:
		bad(fmt.Sprintf("let UDP port %d pass from %s to %s, in the network between them", port, p.Source, p.Destination), "nothing that %s sends to UDP port %d of %s arrives", from.Name, port, to.Name)
	case came&usual == 0 && v4 && came != 0:
		bad("let UDP without a checksum pass, as RFC 7348 asks, or have the hosts join with IPv6 addresses first", "packets without a UDP checksum, as tunnels over IPv4 are, are dropped on the way from %s to %s; with one they arrive", from.Name, to.Name)
	case came != 0 && sent.Size == 0:
		p.Note = "they arrive, but no answer comes back, so that their size is not known"
	}
	if wrong&overlay.SumLeft != 0 && wrong&overlay.SumWhole == 0 || came&overlay.SumWhole != 0 && came&overlay.SumLeft == 0 {
		bad(fmt.Sprintf("on %s: ethtool -K %s tx off", from.Name, orNIC(sent.NIC)), "checksums that the NIC of %s is to compute are wrong when they arrive at %s: its offload of checksums is broken", from.Name, to.Name)
	} else if wrong != 0 {
		bad("look for what changes packets between them: a NIC's offloads (ethtool -K NIC tx off rx off), a middlebox", "packets from %s are changed on the way to %s", from.Name, to.Name)
	}
	if !v4 && heard != nil && heard.Inside && heard.Let == 0 && heard.Heard != 0 {
		bad(fmt.Sprintf("on %s: let UDP port %d from the other hosts pass its firewall", to.Name, port), "packets from %s arrive at %s, and its own firewall drops them", from.Name, to.Name)
	}
	switch most := p.Bytes - overhead(v4); {
	case p.Bytes == 0 || p.Bytes >= p.MTU:
	case most < least:
		bad(fmt.Sprintf("raise the MTU of the network between them to %d or more", least+overhead(v4)), "only packets of up to %d bytes pass from %s to %s, which leaves %d for what is in the tunnel, and the networks' containers need %d", p.Bytes, from.Name, to.Name, most, least)
	default:
		p.Note = fmt.Sprintf("the way carries less than the NIC: the networks' MTU on %s is %d or less", from.Name, most)
	}
	return p
}

func orNIC(nic string) string { return cmp.Or(nic, "NIC") }

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
