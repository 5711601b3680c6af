package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func attachmentID(endpoint string) hcn.GUID { return api.AttachmentKey{Container: endpoint}.ID(owner) }

// spec is the attachment that an endpoint of Docker's is.
func (d *Driver) spec(in *endpointCall) (api.AttachmentSpec, error) {
	s := api.AttachmentSpec{Owner: owner, Container: in.EndpointID, Runtime: runtime, Handover: true}
	if in.EndpointID == "" {
		return s, errors.New("EndpointID: it is missing")
	}
	nw, err := d.networks.find(in.NetworkID)
	s.Network = string(nw.ID)
	return s, err
}

// createEndpoint reserves the addresses. Docker says then which they are, or is told.
func (d *Driver) createEndpoint(ctx context.Context, in *endpointCall) (any, error) {
	s, err := d.spec(in)
	if err != nil {
		return nil, err
	}
	if err := checkOptions(in.Options, optPolicies, optIsolated, optPriority); err != nil {
		return nil, err
	}
	if s.Policies, err = policies(text(in.Options[optPolicies])); err != nil {
		return nil, err
	}
	if raw := text(in.Options[optIsolated]); raw != "" {
		if s.Isolated, err = strconv.ParseBool(raw); err != nil {
			return nil, fmt.Errorf("option %s: %.40q is neither true nor false", optIsolated, raw)
		}
	}
	if raw := text(in.Options[optPriority]); raw != "" {
		if s.GatewayPriority, err = strconv.Atoi(raw); err != nil {
			return nil, fmt.Errorf("option %s: %.40q is no number", optPriority, raw)
		}
	}
	given := endpointInterface{}
	if in.Interface != nil {
		given = *in.Interface
	}
	for _, text := range []string{given.Address, given.AddressIPv6} {
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("interface address %.80q is no address with a prefix's length", text)
		}
		s.Addresses = append(s.Addresses, p.Addr().String())
	}
	s.MAC = given.MacAddress
	a, err := d.Daemon.Attach(ctx, s)
	if err != nil {
		return nil, err
	}
	d.pools.taken(s.Addresses)
	// Docker wants to hear what it did not say, and that alone.
	told := endpointInterface{}
	if given.MacAddress == "" {
		told.MacAddress = a.Endpoint.MAC
	}
	for _, text := range a.Endpoint.Addresses {
		switch p, err := netip.ParsePrefix(text); {
		case err != nil:
		case p.Addr().Is4() && given.Address == "":
			told.Address = text
		case p.Addr().Is6() && given.AddressIPv6 == "":
			told.AddressIPv6 = text
		}
	}
	return map[string]any{"Interface": told}, nil
}

// join has the interface wait for Docker, which moves it into the container.
func (d *Driver) join(ctx context.Context, in *endpointCall) (any, error) {
	s, err := d.spec(in)
	if err != nil {
		return nil, err
	}
	if s.Netns = in.SandboxKey; s.Netns == "" {
		return nil, errors.New("SandboxKey: it is missing")
	}
	a, err := d.Daemon.Attach(ctx, s)
	if err != nil {
		return nil, err
	}
	out := joined{InterfaceName: interfaceName{SrcName: a.Endpoint.Interface, DstPrefix: "eth"}}
	for _, text := range a.Endpoint.Gateways {
		switch via, err := netip.ParseAddr(text); {
		case err != nil:
		case via.Is4():
			out.Gateway = text
		default:
			out.GatewayIPv6 = text
		}
	}
	// A network without a way out shall not get one by Docker's own bridge.
	out.DisableGatewayService = len(a.Endpoint.Gateways) == 0
	d.name(s, in.NetworkID)
	return out, nil
}

func (d *Driver) leave(ctx context.Context, in *endpointCall) (any, error) {
	// Its addresses stay until the endpoint is deleted.
	if _, err := d.Daemon.Attachment(ctx, attachmentID(in.EndpointID)); notFound(err) {
		return nil, nil //nolint:nilnil // it went with its namespace
	}
	s, err := d.spec(in)
	if err == nil {
		_, err = d.Daemon.Attach(ctx, s)
	}
	return nil, err
}

func (d *Driver) deleteEndpoint(ctx context.Context, in *endpointCall) (any, error) {
	return nil, d.detach(ctx, in)
}

func (d *Driver) detach(ctx context.Context, in *endpointCall) error {
	if err := d.Daemon.Detach(ctx, attachmentID(in.EndpointID)); err != nil && !notFound(err) {
		return err
	}
	return nil
}

// operInfo tells what people may see of an endpoint in Docker.
func (d *Driver) operInfo(ctx context.Context, in *endpointCall) (any, error) {
	a, err := d.Daemon.Attachment(ctx, attachmentID(in.EndpointID))
	if err != nil {
		return nil, err
	}
	return map[string]any{"Value": map[string]any{
		prefix + "endpoint": a.ID, prefix + "ports": a.Endpoint.Ports, prefix + "interface": a.HostInterface,
	}}, nil
}

// publish publishes the ports of a container by the network that has its default route.
func (d *Driver) publish(ctx context.Context, in *endpointCall) (any, error) {
	ports, err := mappings(in.Options[optPortMap])
	if err != nil || len(ports) == 0 {
		return nil, err
	}
	return nil, d.modify(ctx, in, hcn.RequestTypeAdd, ports)
}

func (d *Driver) unpublish(ctx context.Context, in *endpointCall) (any, error) {
	doc, err := d.Daemon.Endpoint(ctx, attachmentID(in.EndpointID))
	if notFound(err) {
		return nil, nil //nolint:nilnil // its ports went with it
	}
	if err != nil {
		return nil, err
	}
	var ports []hcn.EndpointPolicy
	for _, p := range doc.Policies {
		if p.Type == hcn.PortMapping {
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		return nil, nil //nolint:nilnil // nothing to do
	}
	return nil, d.modify(ctx, in, hcn.RequestTypeRemove, ports)
}

func (d *Driver) modify(ctx context.Context, in *endpointCall, what hcn.RequestType, ports []hcn.EndpointPolicy) error {
	r, err := hcn.NewEndpointPolicyRequest(what, ports)
	if err != nil {
		return err
	}
	return d.Daemon.ModifyEndpoint(ctx, attachmentID(in.EndpointID), r)
}
