package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

func networkID(k int) hcn.GUID { return guid(0xb, k+1) }

const subnetText = "10.64.0.0/16"

func makeNetwork(ctx context.Context, a *overlay.Agent, k int) error {
	_, err := a.CreateNetwork(ctx, func(t overlay.Taken) (overlay.Network, error) {
		id, name := networkID(k), fmt.Sprintf("net%d", k)
		doc := hcn.HostComputeNetwork{
			ID: id, Name: name, Type: hcn.Overlay, SchemaVersion: hcn.V2(), Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{IpAddressPrefix: subnetText}}}},
		}
		return overlay.Network{ID: id, Name: name, VNI: t.VNI, Doc: doc}, nil
	})
	return err
}

// populate gives every host its block and endpoints, by an agent for each that ends when they are published: were all of them to watch
// already, each endpoint would be told to each, and it is not that which is measured.
func populate(ctx context.Context, etcd overlay.Etcd, n, per int) error {
	for i := range n { // first, so that everybody finds its network
		if i%hostsPerNetwork != 0 {
			continue
		}
		if err := actAs(ctx, etcd, i, func(a *overlay.Agent) error { return makeNetwork(ctx, a, i/hostsPerNetwork) }); err != nil {
			return err
		}
	}
	errs := make(chan error, n)
	places := make(chan struct{}, 4)
	for i := range n {
		places <- struct{}{}
		go func() {
			defer func() { <-places }()
			errs <- actAs(ctx, etcd, i, func(a *overlay.Agent) error { return fill(ctx, a, etcd, i, per) })
		}()
	}
	var all []error
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// actAs runs the agent of a host for as long as fn.
func actAs(ctx context.Context, etcd overlay.Etcd, i int, fn func(*overlay.Agent) error) error {
	a, cli, err := agentOf(etcd, i, nil)
	if err != nil {
		return err
	}
	defer cli.Close()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { a.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	if err := connected(ctx, a); err != nil {
		return err
	}
	return fn(a)
}

// fill leases what the endpoints of a host need, and publishes them.
func fill(ctx context.Context, a *overlay.Agent, etcd overlay.Etcd, i, per int) error {
	net, subnet := networkID(i/hostsPerNetwork), netip.MustParsePrefix(subnetText)
	eps := endpointsOf(i, per)
	for _, ep := range eps {
		if _, err := lease(ctx, a, net, subnet, ep.Addrs[0]); err != nil {
			return err
		}
	}
	a.Publish(eps)
	prefix := fmt.Sprintf("%s/v1/endpoints/%s/%s/", etcd.Prefix, net.Lower(), a.Self().ID.Lower())
	cli, err := overlay.Dial(etcd)
	if err != nil {
		return err
	}
	defer cli.Close()
	for until := time.Now().Add(2 * time.Minute); ; pause(ctx, 10*time.Millisecond) {
		res, err := cli.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && int(res.Count) == per {
			return nil
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return fmt.Errorf("the endpoints of %s are not published: %w", a.Self().Name, errors.Join(err, ctx.Err()))
		}
	}
}

// endpointsOf are those of a host, by its number. Its addresses are a /24's of its network's: of several blocks, all its own.
func endpointsOf(i, per int) (eps []overlay.Endpoint) {
	a := netip.AddrFrom4([4]byte{10, 64, byte(i % hostsPerNetwork), 1})
	for k := range per {
		name := fmt.Sprintf("c%d-%d", i, k)
		eps = append(eps, overlay.Endpoint{
			ID: guid(0xe, i<<12|k), Network: networkID(i / hostsPerNetwork), Name: name, Names: []string{name, "web"},
			MAC: overlay.MAC{2, 0, byte(i >> 8), byte(i), 0, byte(k)}, Addrs: []netip.Addr{a},
		})
		a = a.Next()
	}
	return eps
}

// lease waits for the network, which the host may not have seen yet, and for an etcd that is busy.
func lease(ctx context.Context, a *overlay.Agent, net hcn.GUID, subnet netip.Prefix, at netip.Addr) (p netip.Prefix, err error) {
	var b netipx.IPSetBuilder
	b.Add(at)
	wanted, err := b.IPSet()
	if err != nil {
		return p, err
	}
	for until := time.Now().Add(5 * time.Minute); time.Now().Before(until); pause(ctx, 50*time.Millisecond) {
		if p, err = a.LeaseBlock(ctx, net, subnet, wanted); !errors.Is(err, overlay.ErrNotFound) && !errors.Is(err, overlay.ErrAway) {
			break
		}
	}
	return p, err
}
