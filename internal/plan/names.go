package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// The prefixes by which our devices are known, in the kernel and in nftables
// rules (`iifname "bhh*"`).
const (
	HostVNICPrefix = "bhh" // the host's own vNIC on a switch
	LANVNICPrefix  = "bhl" // one of the host's own on a switch with a NIC, which our nftables rules leave alone
	PortPrefix     = "bhp" // the switch side of any port
	ResolverPrefix = "bhr" // the resolver's vNIC, in the resolver's compartment
	TunnelPrefix   = "bhv" // a VXLAN device
	ParkedPrefix   = "bhd" // a vNIC that its container's runtime moves into its compartment
	SecurePrefix   = "bhw" // a WireGuard device, in a compartment of theirs
)

// NetnsDir is where compartments are bound, as iproute2 does.
const NetnsDir = "/run/netns"

// ResolverNamespace is the key of the resolver's compartment in
// Plan.Namespaces. It is not a GUID, so no document can name it.
const ResolverNamespace hcn.GUID = "resolver"

// ServicesNetwork is the key of the switch by which the host reaches the load balancers of networks on a LAN, where it has no vNIC
// (ADR 34). No document can name it, either.
const ServicesNetwork hcn.GUID = "services"

// HostPortID and ResolverPortID name a network's own ports.
func HostPortID(network hcn.GUID) PortID { return PortID("host:" + string(network)) }

// ResolverPortID names the port of a network's resolver.
func ResolverPortID(network hcn.GUID) PortID { return PortID("resolver:" + string(network)) }

// UplinkPortID names the NIC of a network as a port of its switch.
func UplinkPortID(network hcn.GUID) PortID { return PortID("uplink:" + string(network)) }

// EndpointPortID names the port of an endpoint.
func EndpointPortID(endpoint hcn.GUID) PortID { return PortID(endpoint) }

// DeviceName makes an interface name of at most 15 bytes from an identity: a
// fixed-length hash, because GUIDs are longer than names may be.
func DeviceName(prefix string, id PortID) string {
	sum := sha256.Sum256([]byte(id))
	return prefix + hex.EncodeToString(sum[:6])
}

// NamespacePath is where the compartment of an HCN namespace is bound.
func NamespacePath(id hcn.GUID) string {
	return NetnsDir + "/" + namespacePrefix + strings.ToLower(string(id))
}

const namespacePrefix = "hns-"

// IsNamespaceName tells that a name in NetnsDir is that of a compartment of ours: no other program makes such a one. What merely begins like
// it may be anybody's.
func IsNamespaceName(name string) bool {
	rest, is := strings.CutPrefix(name, namespacePrefix)
	if !is {
		return false
	}
	id, err := hcn.ParseGUID(rest)
	return OwnNamespace(hcn.GUID(rest)) || err == nil && rest == id.Lower()
}

// Alias is the interface alias that marks a device as ours. The kernel takes at
// most 255 bytes.
func Alias(kind string, id, name string) string {
	a := "bulkhead " + kind + " " + id + " " + name
	if len(a) > 255 {
		a = a[:255]
	}
	return strings.TrimSpace(a)
}

// String writes the MAC the way Linux tools do.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// LinkLocal is the modified EUI-64 link-local address of a MAC (RFC 4291,
// appendix A).
func (m MAC) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})
}

// Owner names an endpoint as the holder of host ports.
func Owner(name string, id hcn.GUID) string {
	if name == "" {
		return "endpoint " + string(id)
	}
	return "endpoint " + name + " (" + string(id) + ")"
}
