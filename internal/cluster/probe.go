package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/underlay"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// probe takes part in checks of the underlay, by the NIC that has the host's address for tunnels.
func (h *Host) probe(ctx context.Context, t overlay.CheckTask, report func(found []overlay.PathFound, done bool)) error {
	f, err := h.facts(ctx)
	if err != nil {
		return fmt.Errorf("look at the host: %w", err)
	}
	task, err := probeTask(&f, t)
	if err != nil {
		return err
	}
	p, err := underlay.Open(task)
	if err != nil {
		return err
	}
	p.Run(ctx, func(found []underlay.Found, done bool) {
		out := make([]overlay.PathFound, len(found))
		for i := range found {
			out[i] = pathFound(&found[i], task.NICs[0])
		}
		report(out, done)
	})
	return nil
}

func probeTask(f *plan.Facts, t overlay.CheckTask) (underlay.Task, error) {
	v4 := t.Self.Addrs[0].Is4()
	from := t.Self.Addr(v4)
	nic := nicWith(f, from)
	if nic == nil {
		return underlay.Task{}, fmt.Errorf("the address %s, by which the others know this host, is on none of its NICs", from)
	}
	task := underlay.Task{Check: t.Check, Host: t.Self.ID, NICs: []string{nic.Name}, Tunnels: map[uint16]string{}}
	for _, port := range t.Ports {
		device := plan.DeviceName(plan.TunnelPrefix, plan.TunnelPortID(port))
		if _, err := net.InterfaceByName(device); err == nil {
			task.Tunnels[port] = device
		}
		for i := range t.Peers {
			if to := t.Peers[i].Addr(v4); to.IsValid() {
				task.Paths = append(task.Paths, underlay.Path{Host: t.Peers[i].ID, From: from, To: to, Port: port, MTU: nic.MTU})
			}
		}
	}
	return task, nil
}

func nicWith(f *plan.Facts, a netip.Addr) *plan.NIC {
	for i := range f.NICs {
		if slices.ContainsFunc(f.NICs[i].Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return &f.NICs[i]
		}
	}
	return nil
}

func pathFound(u *underlay.Found, nic string) overlay.PathFound {
	return overlay.PathFound{
		Host: u.Host, From: u.From, To: u.To, Port: u.Port, NIC: nic, MTU: u.MTU, Size: u.Size, Done: u.Done, Error: u.Error, Inside: u.Inside,
		Answered: overlay.Sums(u.Answered), Heard: overlay.Sums(u.Heard), Let: overlay.Sums(u.HeardInside), Bad: overlay.Sums(u.BadSum), Damaged: overlay.Sums(u.Damaged),
	}
}
