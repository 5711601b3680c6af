package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// maxCaptures is how many captures may run at once: each holds kernel memory.
const maxCaptures = 8

// CaptureSource is a device to capture on.
type CaptureSource struct {
	Namespace, Device string // Namespace is a path, "" the host's
	Name, Comment     string // of the interface in the file
}

// CaptureRequest is a capture with every name resolved.
type CaptureRequest struct {
	Sources  []CaptureSource
	Protocol string
	// Hosts are groups: one prefix of each group must hold source or destination.
	Hosts            [][]netip.Prefix
	Port             uint16
	Packets, Snaplen int
	Duration         time.Duration
}

// CaptureOutput is where a capture goes. Flush is called when no packet waits.
type CaptureOutput interface {
	io.Writer
	Flush() error
}

// Capture captures packets as pcapng until a bound is reached, what is captured on is
// gone, or ctx ends.
func (e *Engine) Capture(ctx context.Context, o api.CaptureOptions, out CaptureOutput) error {
	if e.opt.Capture == nil {
		return api.Errorf(api.KindUnsupported, "capture packets: there is no data plane").Hint("bulkhead doctor")
	}
	r, err := e.captureRequest(o)
	if err != nil {
		return err
	}
	select {
	case e.capturing <- struct{}{}:
		defer func() { <-e.capturing }()
	default:
		return api.Errorf(api.KindConflict, "%d captures run already", maxCaptures).Hint("end one of them")
	}
	if err := e.opt.Capture(ctx, r, out); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("capture %s: %w", strings.TrimSpace(o.Point+" "+o.Target), err)
	}
	return nil
}

func (e *Engine) captureRequest(o api.CaptureOptions) (CaptureRequest, error) {
	r := CaptureRequest{Protocol: o.Protocol, Port: o.Port, Packets: o.Packets, Snaplen: o.Snaplen, Duration: o.Duration}
	switch {
	case !slices.Contains([]string{"", "arp", "icmp", "ip", "ip6", "sctp", "tcp", "udp"}, o.Protocol):
		return r, api.Errorf(api.KindInvalid, "protocol %.40q is not known", o.Protocol).Hint("use arp, icmp, ip, ip6, sctp, tcp or udp")
	case o.Port != 0 && !slices.Contains([]string{"", "ip", "ip6", "sctp", "tcp", "udp"}, o.Protocol):
		return r, api.Errorf(api.KindInvalid, "protocol %s has no ports", o.Protocol).Hint("leave the port or the protocol out")
	case o.Packets < 0 || o.Duration < 0:
		return r, api.Errorf(api.KindInvalid, "a capture cannot end before it begins: %d packets, %s", o.Packets, o.Duration).Hint("give bounds above 0, or none")
	case o.Snaplen != 0 && (o.Snaplen < 14 || o.Snaplen > api.MaxSnaplen):
		return r, api.Errorf(api.KindInvalid, "%d bytes of a packet cannot be kept: from 14 to %d can", o.Snaplen, api.MaxSnaplen)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	var err error
	switch cmp.Or(o.Point, api.PointVNIC) {
	case api.PointVNIC:
		err = e.vnicSources(o.Target, &r)
	case api.PointPort:
		err = e.portSources(o.Target, &r)
	case api.PointGateway:
		err = e.gatewaySources(o.Target, &r)
	case api.PointUplink:
		err = e.uplinkSource(o.Target, &r)
	default:
		err = api.Errorf(api.KindInvalid, "%.40q is no point to capture at", o.Point).Hint("use vnic, port, gateway or uplink")
	}
	if err != nil {
		return r, err
	}
	return r, e.captureHosts(o.Hosts, &r)
}

// attachedPorts are the ports of what a reference means that are there now. Locked: e.mu.
func (e *Engine) attachedPorts(ref string) ([]*plan.Port, error) {
	if ref == "" {
		return nil, api.Errorf(api.KindInvalid, "capture: of what is not said").Hint("name a container or an endpoint")
	}
	eps, err := e.st.endpointsOf(ref)
	if err != nil {
		return nil, err
	}
	var out []*plan.Port
	for _, ep := range eps {
		if p := e.view.port(plan.EndpointPortID(ep.Doc.ID)); p != nil {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, api.Errorf(api.KindConflict, "%s is not attached to a network now, so it has no packets", ref).Hint("bulkhead start %s, if it is a container", ref)
	}
	return out, nil
}

func (e *Engine) vnicSources(ref string, r *CaptureRequest) error {
	ports, err := e.attachedPorts(ref)
	for _, p := range ports {
		r.Sources = append(r.Sources, CaptureSource{
			Namespace: p.VNIC.Namespace, Device: p.VNIC.Device, Name: portName(p) + "/" + p.VNIC.Device, Comment: e.captureComment(p),
		})
	}
	return err
}

func (e *Engine) portSources(ref string, r *CaptureRequest) error {
	ports, err := e.attachedPorts(ref)
	for _, p := range ports {
		if isMacvlan(p) {
			return e.noSwitch(p, ref)
		}
		r.Sources = append(r.Sources, CaptureSource{Device: p.Device, Name: p.Device, Comment: e.captureComment(p)})
	}
	return err
}

// captureComment says whose an interface is.
func (e *Engine) captureComment(p *plan.Port) string {
	s := "endpoint " + strings.TrimSpace(p.Name+" "+string(p.Endpoint))
	if n := e.view.network(p.Network); n != nil {
		s += " on network " + n.Name
	}
	return s
}

// gatewaySources are the host's vNICs on the networks of what is named; of an endpoint
// only its own packets are wanted there.
func (e *Engine) gatewaySources(ref string, r *CaptureRequest) error {
	var switches []*plan.Switch
	ports, err := e.attachedPorts(ref)
	if n, netErr := e.st.findNetwork(ref); err != nil && netErr == nil {
		switches, err = append(switches, e.view.network(n.Doc.ID)), nil
	}
	if err != nil {
		return err
	}
	var own []netip.Prefix
	for _, p := range ports {
		switches = append(switches, e.view.network(p.Network))
		for _, a := range p.Addrs {
			own = append(own, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if len(own) > 0 {
		r.Hosts = append(r.Hosts, own)
	}
	for _, sw := range switches {
		if sw == nil || sw.HostDevice == "" || slices.ContainsFunc(r.Sources, func(s CaptureSource) bool { return s.Device == sw.HostDevice }) {
			continue
		}
		r.Sources = append(r.Sources, CaptureSource{Device: sw.HostDevice, Name: sw.HostDevice, Comment: "the host on network " + sw.Name})
	}
	if len(r.Sources) == 0 && slices.ContainsFunc(switches, func(sw *plan.Switch) bool { return sw != nil && sw.Mode.OnLAN() }) {
		return api.Errorf(api.KindConflict, "the host is on the LAN of %s by its own NIC, and has no gateway there", ref).Hint("capture at that NIC: bulkhead capture %s --point uplink", ref)
	}
	if len(r.Sources) == 0 {
		return api.Errorf(api.KindConflict, "%s is on no network that the host is on", ref).Hint("capture at the vnic: bulkhead capture %s", ref)
	}
	return nil
}

// uplinkSource is the device of the default route, or the NICs of what is named. Of an endpoint only its own packets are wanted there,
// which can be told where it has its address on the wire.
func (e *Engine) uplinkSource(ref string, r *CaptureRequest) error {
	if ref != "" {
		return e.nicSources(ref, r)
	}
	if e.facts.Uplink == "" {
		return api.Errorf(api.KindConflict, "capture at the uplink: the host has no default route").Hint("bulkhead info")
	}
	r.Sources = []CaptureSource{{Device: e.facts.Uplink, Name: e.facts.Uplink, Comment: "uplink of the host"}}
	return nil
}

func (e *Engine) nicSources(ref string, r *CaptureRequest) error {
	ports, err := e.attachedPorts(ref)
	if n, netErr := e.st.findNetwork(ref); err != nil && netErr == nil {
		if n.Uplink != "" {
			return e.addNIC(n.Uplink, "the NIC of network "+n.Doc.Name, r)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	var own []netip.Prefix
	for _, p := range ports {
		sw := e.view.network(p.Network)
		if sw == nil || !sw.Mode.OnLAN() {
			continue
		}
		for _, a := range p.Addrs {
			own = append(own, netip.PrefixFrom(a, a.BitLen()))
		}
		if err := e.addNIC(sw.Uplink, "the NIC of network "+sw.Name, r); err != nil {
			return err
		}
	}
	if len(r.Sources) == 0 {
		return api.Errorf(api.KindInvalid, "%s is on no LAN: at the uplink its packets have the host's address, and are not known from others", ref).
			Hint("leave the name out, and choose by --address, --port and --proto")
	}
	if len(own) > 0 {
		r.Hosts = append(r.Hosts, own)
	}
	return nil
}

func (e *Engine) addNIC(nic, comment string, r *CaptureRequest) error {
	if e.facts.NIC(nic) == nil {
		return api.Errorf(api.KindConflict, "capture at the uplink: the NIC %s is gone", nic).Hint("bulkhead doctor")
	}
	if !slices.ContainsFunc(r.Sources, func(s CaptureSource) bool { return s.Device == nic }) {
		r.Sources = append(r.Sources, CaptureSource{Device: nic, Name: nic, Comment: comment})
	}
	return nil
}

// maxCaptureHosts bounds the filter; a container has an address or two on each network.
const maxCaptureHosts = 64

func (e *Engine) captureHosts(hosts []string, r *CaptureRequest) error {
	var group []netip.Prefix
	for _, h := range hosts {
		if p, err := netip.ParsePrefix(h); err == nil {
			group = append(group, p.Masked())
			continue
		}
		if a, err := netip.ParseAddr(h); err == nil {
			a = a.Unmap().WithZone("")
			group = append(group, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		eps, err := e.st.endpointsOf(h)
		if err != nil {
			return err
		}
		for _, ep := range eps {
			for _, a := range ep.Addrs {
				group = append(group, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
			}
		}
	}
	if len(group) > maxCaptureHosts {
		return api.Errorf(api.KindInvalid, "a filter cannot have %d addresses, %d at most", len(group), maxCaptureHosts).Hint("capture at one container, or filter by a prefix")
	}
	if len(group) > 0 {
		r.Hosts = append(r.Hosts, group)
	}
	return nil
}
