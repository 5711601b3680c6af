package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// owner marks what is ours among the daemon's objects.
const owner = "bulkhead-kube-proxy"

// atOnce is how many changes the daemon is asked for at a time.
const atOnce = 8

// daemon is what is needed of the client.
type daemon interface {
	Networks(ctx context.Context) ([]hcn.HostComputeNetwork, error)
	Addresses(ctx context.Context) ([]api.Address, error)
	CreateEndpoint(ctx context.Context, doc *hcn.HostComputeEndpoint) (*hcn.HostComputeEndpoint, error)
	DeleteEndpoint(ctx context.Context, id hcn.GUID) error
	EnumerateLoadBalancers(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error)
	LoadBalancer(ctx context.Context, id hcn.GUID) (*hcn.HostComputeLoadBalancer, error)
	CreateLoadBalancer(ctx context.Context, doc *hcn.HostComputeLoadBalancer) (*hcn.HostComputeLoadBalancer, error)
	ModifyLoadBalancer(ctx context.Context, id hcn.GUID, doc *hcn.HostComputeLoadBalancer) error
	DeleteLoadBalancer(ctx context.Context, id hcn.GUID) error
}

// host makes the daemon's load balancers those that are wanted. What it knows of them it keeps, so that nothing is asked or written when
// nothing changes; stale says what is to be asked again.
type host struct {
	daemon  daemon
	network string
	changed func(verb string) // counts writes

	mu    sync.Mutex
	stale struct {
		documents bool // those of load balancers, too
		all       bool
		addresses bool
		balancers map[hcn.GUID]struct{}
	}

	net     *hcn.HostComputeNetwork
	ends    map[netip.Addr]hcn.GUID // the endpoints of the network, here and on other hosts, and those that we have made
	far     map[hcn.GUID]netip.Addr // what we have made: machines outside of the network
	away    map[netip.Addr]bool     // which of ends are not on this host
	source  []netip.Addr            // as whom those see who comes by this host: of an endpoint that we have made, or none
	have    map[hcn.GUID]*hcn.HostComputeLoadBalancer
	missing int // back ends that the network does not have yet
}

func newHost(d daemon, network string, changed func(verb string)) *host {
	h := &host{daemon: d, network: network, changed: changed, have: map[hcn.GUID]*hcn.HostComputeLoadBalancer{}}
	h.stale.balancers = map[hcn.GUID]struct{}{}
	h.forget(true)
	return h
}

// forget has it asked again what there is; also the documents, when the daemon was away and may have done things that nobody was told of.
func (h *host) forget(documents bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stale.all, h.stale.addresses, h.stale.documents = true, true, h.stale.documents || documents
}

// told takes an event of the daemon: it tells whether that is of interest.
func (h *host) told(ev api.Event) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch ev.Kind {
	case "endpoint":
		h.stale.addresses = true
	case "network":
		h.stale.all, h.stale.addresses = true, true
	case "loadbalancer":
		h.stale.balancers[hcn.GUID(ev.ID)] = struct{}{}
	default:
		return false
	}
	return true
}

// sync makes the load balancers what is wanted. What fails is in the error; the rest is done.
func (h *host) sync(ctx context.Context, list []balancer) error {
	if err := h.read(ctx); err != nil {
		h.forget(true)
		return err
	}
	errs := []error{h.reach(ctx, list), h.makeSource(ctx, list)}
	want := map[hcn.GUID]*hcn.HostComputeLoadBalancer{}
	h.missing = 0
	for i := range list {
		if doc := h.document(&list[i]); doc != nil {
			want[doc.ID] = doc
		}
	}
	errs = append(errs, h.write(ctx, want)...)
	if err := errors.Join(errs...); err != nil {
		h.forget(true) // what has become of it is not known for sure
		return err
	}
	return h.leave(ctx, list)
}

// read asks for what has changed. A network that was made anew has nothing of the old one's.
func (h *host) read(ctx context.Context) error {
	h.mu.Lock()
	stale := h.stale
	h.stale.all, h.stale.addresses, h.stale.documents, h.stale.balancers = false, false, false, map[hcn.GUID]struct{}{}
	h.mu.Unlock()
	if stale.documents {
		h.have = map[hcn.GUID]*hcn.HostComputeLoadBalancer{}
	}
	if stale.all {
		if err := h.readAll(ctx); err != nil {
			return err
		}
	}
	for id := range stale.balancers {
		if h.have[id] == nil {
			continue
		}
		doc, err := h.daemon.LoadBalancer(ctx, id)
		if errors.Is(err, hcn.ErrElementNotFound) {
			delete(h.have, id)
			continue
		}
		if err != nil {
			return err
		}
		h.have[id] = doc
	}
	if !stale.addresses && h.missing == 0 {
		return nil
	}
	return h.readAddresses(ctx)
}

func (h *host) readAll(ctx context.Context) error {
	networks, err := h.daemon.Networks(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(networks, func(n hcn.HostComputeNetwork) bool { return n.Name == h.network })
	if at < 0 {
		return fmt.Errorf("there is no network %q yet: see `bulkhead network ls`", h.network)
	}
	h.net = &networks[at]
	ids, err := h.daemon.EnumerateLoadBalancers(ctx, hcn.HostComputeQuery{SchemaVersion: hcn.V2(), Filter: `{"Owner":"` + owner + `"}`})
	if err != nil {
		return err
	}
	have := map[hcn.GUID]*hcn.HostComputeLoadBalancer{}
	for _, id := range ids {
		if have[id] = h.have[id]; have[id] != nil {
			continue // what others do with it they are told of
		}
		doc, err := h.daemon.LoadBalancer(ctx, id)
		if errors.Is(err, hcn.ErrElementNotFound) {
			delete(have, id)
			continue
		}
		if err != nil {
			return err
		}
		have[id] = doc
	}
	h.have = have
	return nil
}

func (h *host) readAddresses(ctx context.Context) error {
	list, err := h.daemon.Addresses(ctx)
	if err != nil {
		return err
	}
	h.ends, h.far, h.away, h.source = map[netip.Addr]hcn.GUID{}, map[hcn.GUID]netip.Addr{}, map[netip.Addr]bool{}, nil
	known := map[hcn.GUID]bool{}
	for _, a := range list {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || a.NetworkID != h.net.ID || a.Endpoint == "" {
			continue
		}
		if a.Endpoint == h.sourceID() {
			h.source = append(h.source, addr.Unmap())
			continue
		}
		h.ends[addr.Unmap()] = a.Endpoint
		known[a.Endpoint] = true
		h.away[addr.Unmap()] = a.Kind == "remote" || a.Owner == owner
		if a.Owner == owner {
			h.far[a.Endpoint] = addr.Unmap()
		}
	}
	// An endpoint that was deleted has left the load balancers that it was in.
	for _, doc := range h.have {
		doc.HostComputeEndpoints = slices.DeleteFunc(doc.HostComputeEndpoints, func(id hcn.GUID) bool { return !known[id] })
	}
	return nil
}

// inside tells that an address is one of the network's: whoever has it is an endpoint, or will be.
func (h *host) inside(a netip.Addr) bool { return h.net.SubnetOf(a) != nil }

// farID is always the same for an address of a network.
func (h *host) farID(a netip.Addr) hcn.GUID { return guid("endpoint", string(h.net.ID), a.String()) }

// reach makes the endpoints that stand for machines outside of the network.
func (h *host) reach(ctx context.Context, list []balancer) error {
	var errs []error
	for i := range list {
		for _, a := range list[i].backends {
			if _, ok := h.ends[a]; ok || h.inside(a) {
				continue
			}
			doc, err := h.daemon.CreateEndpoint(ctx, &hcn.HostComputeEndpoint{
				ID: h.farID(a), Name: owner + "-" + strings.ReplaceAll(a.String(), ":", "-"), Owner: owner, HostComputeNetwork: h.net.ID, Flags: hcn.RemoteEndpoint, SchemaVersion: hcn.V2(),
				IpConfigurations: []hcn.IpConfig{{IpAddress: a.String()}},
			})
			if err != nil {
				errs = append(errs, fmt.Errorf("make %s a back end of %s: %w", a, list[i].name, err))
				h.ends[a] = "" // not again in this round
				continue
			}
			h.changed("create endpoint")
			h.ends[a], h.far[doc.ID], h.away[a] = doc.ID, a, true
		}
	}
	return errors.Join(errs...)
}

// sourceID is that of the endpoint as which back ends that are not on this host see who comes by it.
func (h *host) sourceID() hcn.GUID { return guid("source", string(h.net.ID)) }

// isAway tells that a load balancer has a back end that is not on this host: its answers come back here by a source. On a LAN they do so
// by the host's own address.
func (h *host) isAway(b *balancer) bool {
	if h.net.Type == hcn.L2Bridge || h.net.Type == hcn.Transparent {
		return false
	}
	return slices.ContainsFunc(b.backends, func(a netip.Addr) bool { return h.away[a] })
}

// makeSource makes that endpoint when somebody needs it. It is in no compartment, and nobody else gets its addresses.
func (h *host) makeSource(ctx context.Context, list []balancer) error {
	if len(h.source) > 0 || !slices.ContainsFunc(list, func(b balancer) bool { return h.isAway(&b) }) {
		return nil
	}
	doc, err := h.daemon.CreateEndpoint(ctx, &hcn.HostComputeEndpoint{
		ID: h.sourceID(), Name: owner + "-source", Owner: owner, HostComputeNetwork: h.net.ID, SchemaVersion: hcn.V2(),
	})
	if err != nil {
		return fmt.Errorf("make the source for back ends that are not on this host: %w", err)
	}
	h.changed("create endpoint")
	for _, c := range doc.IpConfigurations {
		if a, err := netip.ParseAddr(c.IpAddress); err == nil {
			h.source = append(h.source, a.Unmap())
		}
	}
	return nil
}

// leave deletes those that nobody needs any more.
func (h *host) leave(ctx context.Context, list []balancer) error {
	unused := maps.Clone(h.far)
	for i := range list {
		for _, a := range list[i].backends {
			delete(unused, h.ends[a])
		}
	}
	var errs []error
	if len(h.source) > 0 && !slices.ContainsFunc(list, func(b balancer) bool { return h.isAway(&b) }) {
		if err := h.daemon.DeleteEndpoint(ctx, h.sourceID()); err != nil && !errors.Is(err, hcn.ErrEndpointNotFound) {
			errs = append(errs, err)
		} else {
			h.changed("delete endpoint")
			h.source = nil
		}
	}
	for id, a := range unused {
		if err := h.daemon.DeleteEndpoint(ctx, id); err != nil && !errors.Is(err, hcn.ErrEndpointNotFound) {
			errs = append(errs, err)
			continue
		}
		h.changed("delete endpoint")
		delete(h.far, id)
		delete(h.ends, a)
	}
	return errors.Join(errs...)
}

// document is the load balancer as the daemon is to have it; nil where the network cannot have it.
func (h *host) document(b *balancer) *hcn.HostComputeLoadBalancer {
	if len(b.vips) == 0 && !slices.ContainsFunc(h.net.AllSubnets(), func(s *hcn.Subnet) bool {
		p, err := s.Prefix()
		return err == nil && p.Addr().Is6() == b.v6
	}) {
		return nil // the node has no way to pods of the family
	}
	doc := &hcn.HostComputeLoadBalancer{
		ID: guid("loadbalancer", string(h.net.ID), b.name), Owner: owner, Name: b.name, HostComputeNetwork: h.net.ID, SchemaVersion: hcn.V2(),
		Flags: hcn.EnableDirectServerReturn, AdditionalParams: []byte(hcn.HostOnlyParams),
		PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: b.protocol, InternalPort: b.target, ExternalPort: b.port, Flags: b.flags}},
	}
	if b.v6 {
		doc.Flags |= hcn.LoadBalancerIPv6
	}
	if b.affinity {
		doc.PortMappings[0].DistributionType = hcn.DistributionSourceIP
	}
	if at := slices.IndexFunc(h.source, func(a netip.Addr) bool { return a.Is6() == b.v6 }); at >= 0 && h.isAway(b) {
		doc.SourceVIP = h.source[at].String()
	}
	for _, a := range b.vips {
		doc.FrontendVIPs = append(doc.FrontendVIPs, a.String())
	}
	for _, a := range b.backends {
		switch id := h.ends[a]; {
		case id != "":
			doc.HostComputeEndpoints = append(doc.HostComputeEndpoints, id)
		case h.inside(a):
			h.missing++
		}
	}
	slices.Sort(doc.HostComputeEndpoints)
	doc.HostComputeEndpoints = slices.Compact(doc.HostComputeEndpoints)
	return doc
}

// same compares what we say of a load balancer.
func same(a, b *hcn.HostComputeLoadBalancer) bool {
	ends := func(l *hcn.HostComputeLoadBalancer) []hcn.GUID {
		return slices.Sorted(slices.Values(l.HostComputeEndpoints))
	}
	return a.Name == b.Name && a.HostComputeNetwork == b.HostComputeNetwork && a.Flags == b.Flags && a.SourceVIP == b.SourceVIP && a.HostOnly() == b.HostOnly() &&
		slices.Equal(a.FrontendVIPs, b.FrontendVIPs) && slices.Equal(a.PortMappings, b.PortMappings) && slices.Equal(ends(a), ends(b))
}

// write makes the difference. What is not wanted goes first, for another one may have its address; one that is refused because its
// address is still another's goes too, and comes again when all others have changed.
func (h *host) write(ctx context.Context, want map[hcn.GUID]*hcn.HostComputeLoadBalancer) (errs []error) {
	var gone, changed, created []hcn.GUID
	for id := range h.have {
		if want[id] == nil {
			gone = append(gone, id)
		}
	}
	for id, doc := range want {
		switch old := h.have[id]; {
		case old == nil:
			created = append(created, id)
		case !same(old, doc):
			changed = append(changed, id)
		}
	}
	var mu sync.Mutex
	each := func(verb string, ids []hcn.GUID, do func(hcn.GUID) error) {
		slices.Sort(ids)
		g := errgroup.Group{}
		g.SetLimit(atOnce)
		for _, id := range ids {
			g.Go(func() error {
				err := do(id)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, err)
					return nil
				}
				h.changed(verb + " loadbalancer")
				if verb == "delete" {
					delete(h.have, id)
				} else {
					h.have[id] = want[id]
				}
				return nil
			})
		}
		_ = g.Wait() // errors are kept
	}
	remove := func(id hcn.GUID) error {
		if err := h.daemon.DeleteLoadBalancer(ctx, id); err != nil && !errors.Is(err, hcn.ErrElementNotFound) {
			return fmt.Errorf("delete load balancer %s: %w", id, err)
		}
		return nil
	}
	each("delete", gone, remove)
	var again []hcn.GUID
	each("modify", changed, func(id hcn.GUID) error {
		err := h.daemon.ModifyLoadBalancer(ctx, id, want[id])
		if errors.Is(err, hcn.ErrPortAlreadyExists) {
			if err := remove(id); err != nil {
				return err
			}
			mu.Lock()
			again = append(again, id)
			mu.Unlock()
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", want[id].Name, err)
		}
		return nil
	})
	each("create", append(created, again...), func(id hcn.GUID) error {
		if _, err := h.daemon.CreateLoadBalancer(ctx, want[id]); err != nil {
			return fmt.Errorf("%s: %w", want[id].Name, err)
		}
		return nil
	})
	return errs
}

// guid is one that is the same whenever the same is asked for (RFC 9562, version 8).
func guid(parts ...string) hcn.GUID {
	b := sha256.Sum256([]byte("bulkhead-kube-proxy\x00" + strings.Join(parts, "\x00")))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return hcn.GUID(fmt.Sprintf("%X-%X-%X-%X-%X", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]))
}
