package main

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/lease"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// leases shows the lease client to the engine, whose interface names its own types.
type leases struct{ client *lease.Client }

// newLeases makes the client; engine is asked for when it is used, for it is made later.
func newLeases(dev *netdev.Netdev, e func() *engine.Engine, log *slog.Logger) leases {
	enter := func(path string, fn func() error) error {
		if path == "" { // the host's own namespace, by a NIC
			return fn()
		}
		return dev.Enter(path, fn)
	}
	return leases{lease.New(lease.Config{
		Log: log, Open: lease.Sockets(enter),
		Wake:  func() { e().LeasesChanged() },
		Admit: func(id hcn.GUID, a netip.Addr) error { return e().AdmitLease(id, a) },
	})}
}

func (l leases) Sync(ctx context.Context, wants []engine.LeaseWant) {
	out := make([]lease.Want, len(wants))
	for i := range wants {
		out[i] = leaseWant(wants[i])
	}
	l.client.Sync(ctx, out)
}

func leaseWant(w engine.LeaseWant) lease.Want {
	stored := make(map[lease.Source]lease.Lease, len(w.Stored))
	for src, s := range w.Stored {
		stored[src] = lease.Lease(s)
	}
	return lease.Want{
		Endpoint: w.Endpoint, Network: w.Network, Name: w.Name, Namespace: w.Namespace, Device: w.Device, VLAN: w.VLAN, MAC: w.MAC,
		LinkLocal: w.LinkLocal, Hostname: w.Hostname, IPv4: w.IPv4, IPv6: w.IPv6, Parked: w.Parked, Within: w.Within, Stored: stored,
	}
}

func (l leases) States() []engine.LeaseState {
	states := l.client.States()
	out := make([]engine.LeaseState, len(states))
	for i, st := range states {
		out[i] = engine.LeaseState{
			Endpoint: st.Key.Endpoint, Source: st.Key.Source, Phase: string(st.Phase), Lease: (*plan.Lease)(st.Lease),
			Pending: (*plan.Lease)(st.Pending), Problem: st.Problem, Others: st.Others,
		}
	}
	return out
}

func (l leases) GiveBack(ctx context.Context, w engine.LeaseWant) error {
	return l.client.GiveBack(ctx, leaseWant(w))
}

func (l leases) Probe(ctx context.Context, w engine.LeaseWant, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]plan.MAC, error) {
	return l.client.Probe(ctx, leaseWant(w), addrs, wait)
}

func (l leases) Announce(ctx context.Context, w engine.LeaseWant, addrs []netip.Addr) error {
	return l.client.Announce(ctx, leaseWant(w), addrs)
}

func (l leases) Close() { l.client.Close() }
