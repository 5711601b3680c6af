package docker

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// The documents of the protocol, as far as they are read here.

type poolData struct {
	Pool    string
	Gateway string
}

type createNetwork struct {
	NetworkID          string
	Options            map[string]json.RawMessage
	IPv4Data, IPv6Data []poolData
}

type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// endpointCall are the members of all that is asked about endpoints.
type endpointCall struct {
	NetworkID, EndpointID, SandboxKey string
	Interface                         *endpointInterface
	Options                           map[string]json.RawMessage
}

// portBinding is a published port as Docker has it.
type portBinding struct {
	Proto       uint8
	Port        uint16
	HostIP      net.IP
	HostPort    uint16
	HostPortEnd uint16
}

type interfaceName struct{ SrcName, DstPrefix string }

type staticRoute struct {
	Destination string
	RouteType   int // 0: by a next hop, 1: on the link
	NextHop     string
}

type joined struct {
	InterfaceName         interfaceName
	Gateway               string        `json:",omitempty"`
	GatewayIPv6           string        `json:",omitempty"`
	StaticRoutes          []staticRoute `json:",omitempty"`
	DisableGatewayService bool
}

type poolCall struct {
	AddressSpace, Pool, SubPool, PoolID, Address string
	Options                                      map[string]string
	V6                                           bool
}

// The options that are read. Docker's own have its prefix.
const (
	optGeneric  = "com.docker.network.generic"
	optInternal = "com.docker.network.internal"
	optPortMap  = "com.docker.network.portmap"
	optMAC      = "com.docker.network.endpoint.macaddress"
	optRequest  = "RequestAddressType"
	gatewayAsk  = "com.docker.network.gateway"
	optMTU      = "com.docker.network.driver.mtu"

	prefix      = "bulkhead."
	optNetwork  = prefix + "network"
	optType     = prefix + "type"
	optUplink   = prefix + "uplink"
	optPolicies = prefix + "policies"
	optIsolated = prefix + "isolated"
	optPriority = prefix + "gateway-priority"
)

// checkOptions refuses options of ours that are not known: they would have no effect.
func checkOptions[V any](given map[string]V, known ...string) error {
	for k := range given {
		if !strings.HasPrefix(k, prefix) {
			continue
		}
		found := false
		for _, n := range known {
			found = found || k == n
		}
		if !found {
			return fmt.Errorf("option %.80q is not known here: there are %s", k, strings.Join(known, ", "))
		}
	}
	return nil
}

// text reads an option that is a string; some clients send numbers and truths as such.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return strings.Trim(string(raw), ` "`)
}

// policies reads HCN policies, a list as JSON text.
func policies(raw string) (out []hcn.EndpointPolicy, err error) {
	if raw == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(raw), &out); err != nil {
		return nil, fmt.Errorf("option %s: it is no list of HCN policies: %w", optPolicies, err)
	}
	return out, nil
}

// mappings are Docker's published ports as HCN policies.
func mappings(raw json.RawMessage) (out []hcn.EndpointPolicy, err error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var bindings []portBinding
	if err := json.Unmarshal(raw, &bindings); err != nil {
		return nil, fmt.Errorf("option %s: %w", optPortMap, err)
	}
	if len(bindings) > maxPorts {
		return nil, fmt.Errorf("option %s: %d ports are too many: at most %d to a container", optPortMap, len(bindings), maxPorts)
	}
	for _, b := range bindings {
		if b.HostPortEnd > b.HostPort {
			return nil, fmt.Errorf("port %d: a range of host ports, %d-%d, to choose from is not supported: name one, or none", b.Port, b.HostPort, b.HostPortEnd)
		}
		m := hcn.PortMappingPolicySetting{Protocol: hcn.Protocol(b.Proto), InternalPort: b.Port, ExternalPort: b.HostPort}
		if len(b.HostIP) > 0 && !b.HostIP.IsUnspecified() {
			a, ok := netip.AddrFromSlice(b.HostIP)
			if !ok {
				return nil, fmt.Errorf("port %d: HostIP is no address", b.Port)
			}
			m.VIP = a.Unmap().String()
		}
		out = append(out, m.Policy())
	}
	return out, nil
}

// maxPorts that a container may publish.
const maxPorts = 1024
