package cli

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// owner marks the HCN objects that this command made.
const owner = "bulkhead"

// networkSpec is what network create asks for.
type networkSpec struct {
	name, kind string
	subnets    []string
	gateways   []string
	ranges     []string
	exclude    []string
	ipv6       bool
	persistent bool
	uplink     string
	vlan       uint16
	dhcp       bool
	macvlan    bool
	vsid       uint32
	vxlanPort  uint16
	hostRoute  bool
	multicast  bool
	encrypted  bool
	dns        hcn.Dns
	confirm    time.Duration
}

func newNetworkCreateCmd(a *app) *cobra.Command {
	var s networkSpec
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Create a network",
		Long: `Creates a network with a switch. Containers on a NAT network reach the outside behind
the host's addresses; those on an internal network reach the host and each
other; those on a private one each other only. Those on a transparent one are
members of the LAN of a NIC: each has a MAC there and an address of --subnet, and
the LAN's router is their --gateway. The NIC keeps its addresses and stays the
host's. Name in --ip-range or --exclude which addresses nobody else uses: the
daemon knows only of the host's own. With --dhcp the LAN's own servers and routers
give each container its addresses, routes and resolvers. With --macvlan the containers
are on the LAN past the switch: nothing here has a say in what they send, and the host
does not reach them. On an l2bridge network it
is as on a transparent one with a --subnet, but on the wire all containers have the
NIC's MAC, so it works where others are dropped: in virtual machines and on
wireless NICs. On an l2tunnel network, what containers send each other goes by the
switch outside, which has to send it back.

An overlay spans hosts: what is for an endpoint on another one goes there in a VXLAN
packet of the virtual network --vsid, by the NIC --uplink. Each host has the network,
with the same --vsid and its own part of the addresses, and is told who is on the
others (endpoint create --remote-host); nothing is learnt. With --host-route the host
reaches the network's local endpoints, and they the host. With --multicast each other
host gets a copy of what an endpoint sends to a group or to all, as programs do that
look for each other (mDNS, SSDP); without it that stays on the host.

A network has both families. Without --subnet the daemon picks prefixes that
collide with nothing on this host. With an IPv4 --subnet alone, an IPv6 prefix is
made at random (a unique local /64, RFC 4193) unless --ipv6=false. A network on
a LAN, or with --vsid, has only the prefixes that are named. An overlay without
--vsid is a network of the cluster that this host is in (bulkhead cluster): it is
made on all its hosts, and with --encrypted nothing of it goes between them in clear
text: what cannot be encrypted is dropped.`,
		Example: `  bulkhead network create lan
  bulkhead network create --subnet 10.7.0.0/24 --exclude 10.7.0.1-10.7.0.20 lan
  bulkhead network create --type internal --subnet 10.8.0.0/24 --subnet fd00:8::/64 back
  bulkhead network create --type transparent --uplink eth1 --subnet 192.168.1.0/24 \
    --gateway 192.168.1.1 --ip-range 192.168.1.192/26 office
  bulkhead network create --type transparent --uplink eth1 --dhcp office
  bulkhead network create -d overlay --vsid 5001 --subnet 10.9.0.0/16 --subnet fd00:9::/64 \
    --ip-range 10.9.1.0/24 --ip-range fd00:9::1:0/112 blue`,
		Args: needArgs(1, 1, "name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.name = args[0]
			if cmd.Flags().Changed("uplink") && s.uplink == "" {
				return api.Errorf(api.KindInvalid, "--uplink is empty").Hint("name a NIC (bulkhead nic ls), or leave --uplink out for one that fits")
			}
			doc, err := s.document(randomULA)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("confirm-within") {
				return a.createTentative(cmd.Context(), c, doc, s.confirm)
			}
			create := c.CreateNetwork
			if s.ofCluster() {
				create = c.CreateClusterNetwork
			}
			made, err := create(cmd.Context(), doc)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, made.ID)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&s.kind, "type", "d", "nat", "nat, internal, private, transparent, l2bridge, l2tunnel or overlay")
	flags.StringArrayVar(&s.subnets, "subnet", nil, "prefix, like 10.7.0.0/24; again for another or for IPv6")
	flags.StringArrayVar(&s.gateways, "gateway", nil, "the host's address in a subnet, or the router's on a LAN; the first address is the default")
	flags.StringArrayVar(&s.ranges, "ip-range", nil, "part of a subnet that addresses are picked from, like 10.7.0.128/25")
	flags.StringArrayVar(&s.exclude, "exclude", nil, "address, prefix or range FIRST-LAST that is never picked")
	flags.BoolVar(&s.ipv6, "ipv6", true, "give the network an IPv6 prefix too")
	flags.StringArrayVar(&s.dns.ServerList, "dns", nil, "resolver that other names are asked of; the host's are the default")
	flags.StringArrayVar(&s.dns.Search, "dns-search", nil, "domain to search names in")
	flags.StringVar(&s.dns.Domain, "domain", "", "domain of the network's own names")
	flags.StringVar(&s.uplink, "uplink", "", "NIC of a network on a LAN or under an overlay, by its name, its ID (bulkhead nic ls) or an address on it; without it one that fits")
	flags.Uint32Var(&s.vsid, "vsid", 0, "virtual network of an overlay (VNI), from 4096 on; the same on all its hosts")
	flags.Uint16Var(&s.vxlanPort, "vxlan-port", 0, "UDP port of an overlay; 4789 without it")
	flags.BoolVar(&s.encrypted, "encrypted", false, "encrypt what containers on different hosts send each other, with WireGuard; for an overlay of the cluster")
	flags.BoolVar(&s.hostRoute, "host-route", false, "let the host and an overlay's local endpoints reach each other")
	flags.BoolVar(&s.multicast, "multicast", false, "carry broadcast and multicast between the hosts of an overlay")
	flags.BoolVar(&s.dhcp, "dhcp", false, "addresses of a transparent network come from the LAN: DHCP, DHCPv6 and router advertisements")
	flags.BoolVar(&s.macvlan, "macvlan", false, "give the containers of a transparent network macvlan devices instead of ports: no rules, no limits, and the host does not reach them")
	flags.Uint16Var(&s.vlan, "vlan", 0, "802.1Q tag of a network on a LAN")
	flags.DurationVar(&s.confirm, "confirm-within", 0, "undo a network on a NIC unless bulkhead confirm is called within this time, like 2m")
	flags.BoolVar(&s.persistent, "persistent", true, "keep the network when the host restarts")
	complete(cmd, "type", "nat", "internal", "private", "transparent", "l2bridge", "l2tunnel", "overlay")
	return cmd
}

// document builds the HCN document. ula makes an IPv6 prefix.
func (s networkSpec) document(ula func() netip.Prefix) (*hcn.HostComputeNetwork, error) {
	doc := &hcn.HostComputeNetwork{
		Name: s.name, Owner: owner, Dns: s.dns, SchemaVersion: hcn.V2(), Flags: hcn.EnablePersistent,
	}
	if !s.persistent {
		doc.Flags = hcn.EnableNonPersistent
	}
	switch strings.ToLower(s.kind) {
	case "nat":
		doc.Type = hcn.NAT
	case "internal":
		doc.Type = hcn.Internal
	case "private":
		doc.Type = hcn.Private
	case "transparent":
		doc.Type = hcn.Transparent
	case "l2bridge":
		doc.Type = hcn.L2Bridge
	case "l2tunnel":
		doc.Type = hcn.L2Tunnel
	case "overlay":
		doc.Type = hcn.Overlay
	default:
		return nil, api.Errorf(api.KindInvalid, "network type %q is not known", s.kind).Hint("use nat, internal, private, transparent, l2bridge, l2tunnel or overlay")
	}
	if err := s.placeUplink(doc); err != nil {
		return nil, err
	}
	prefixes, err := s.prefixes(ula)
	if err != nil {
		return nil, err
	}
	switch {
	case len(prefixes) > 0:
		subnets, err := s.documentSubnets(prefixes, doc.Type != hcn.Private && !s.dhcp)
		if err != nil {
			return nil, err
		}
		for i := range subnets {
			if s.vlan != 0 {
				subnets[i].Policies = s.vlanSubnet()[0].Policies
			}
			if s.vsid != 0 {
				subnets[i].Policies = []hcn.SubnetPolicy{hcn.NewSubnetPolicy(hcn.VSID, hcn.VsidPolicySetting{IsolationId: s.vsid})}
			}
		}
		doc.Ipams = []hcn.Ipam{{Subnets: subnets}}
	case s.dhcp:
		doc.Ipams = []hcn.Ipam{{Subnets: s.vlanSubnet()}}
	case len(s.gateways)+len(s.ranges) > 0:
		return nil, api.Errorf(api.KindInvalid, "--gateway and --ip-range need the subnet that they are in").Hint("add --subnet")
	}
	if s.dhcp {
		doc.Ipams[0].Type = hcn.IpamDhcp
	}
	if len(s.exclude) > 0 {
		setting, err := exclusions(s.exclude)
		if err != nil {
			return nil, err
		}
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.Exclusions, setting))
	}
	return doc, nil
}

// placeUplink names the NIC. A network on a LAN has the addresses that the LAN gives it.
func (s *networkSpec) placeUplink(doc *hcn.HostComputeNetwork) error {
	if doc.Type == hcn.Overlay {
		return s.placeOverlay(doc)
	}
	if s.vsid != 0 || s.vxlanPort != 0 || s.hostRoute || s.multicast || s.encrypted {
		return api.Errorf(api.KindInvalid, "--vsid, --vxlan-port, --host-route, --multicast and --encrypted are for overlay networks, and this one is of type %s", doc.Type).
			Hint("add --type overlay, or drop them")
	}
	if !onLAN(doc.Type) {
		if s.uplink != "" || s.vlan != 0 || s.dhcp || s.macvlan {
			return api.Errorf(api.KindInvalid, "--uplink, --vlan, --dhcp and --macvlan are for networks on a LAN, and this one is of type %s", doc.Type).
				Hint("add --type transparent or l2bridge, or drop them")
		}
		return nil
	}
	if s.macvlan && doc.Type != hcn.Transparent {
		return api.Errorf(api.KindInvalid, "--macvlan is for a network of type transparent: the containers of one of type %s have one MAC on the wire, which only the switch can give them", doc.Type).
			Hint("drop it, or use --type transparent")
	}
	if s.macvlan {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.Macvlan, hcn.EmptySetting{}))
	}
	if s.dhcp && doc.Type != hcn.Transparent {
		return api.Errorf(api.KindInvalid, "--dhcp is for a network of type transparent: the containers of one of type %s have one MAC on the wire, so nobody there tells them apart", doc.Type).
			Hint("drop --dhcp, and add --subnet and --gateway, like --subnet 192.168.1.0/24 --gateway 192.168.1.1")
	}
	if len(s.subnets) == 0 && doc.Type != hcn.Transparent {
		return api.Errorf(api.KindInvalid, "a network of type %s needs a subnet: its containers have one MAC on the wire, so nobody there gives them addresses", doc.Type).
			Hint("add --subnet and --gateway, like --subnet 192.168.1.0/24 --gateway 192.168.1.1")
	}
	if len(s.subnets) == 0 && !s.dhcp {
		return api.Errorf(api.KindInvalid, "a transparent network needs the subnet of its LAN, or addresses by DHCP").
			Hint("add --subnet and --gateway, like --subnet 192.168.1.0/24 --gateway 192.168.1.1, or --dhcp")
	}
	if s.dhcp && len(s.gateways)+len(s.ranges)+len(s.exclude) > 0 {
		return api.Errorf(api.KindInvalid, "--gateway, --ip-range and --exclude are for addresses that Bulkhead gives out, and with --dhcp the LAN does").
			Hint("drop them, and say in the LAN's DHCP server who gets what")
	}
	s.ipv6 = slices.ContainsFunc(s.subnets, func(p string) bool { return strings.Contains(p, ":") })
	if s.uplink != "" {
		doc.Policies = append(doc.Policies, uplinkPolicy(s.uplink))
	}
	return nil
}

// uplinkPolicy names a NIC by one of its addresses, by its ID or by its name.
func uplinkPolicy(nic string) hcn.NetworkPolicy {
	if a, err := netip.ParseAddr(nic); err == nil {
		return hcn.NewNetworkPolicy(hcn.NetworkProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: a.String()})
	}
	if id, err := hcn.ParseGUID(nic); err == nil {
		return hcn.NewNetworkPolicy(hcn.NetworkInterfaceConstraint, hcn.InterfaceConstraintPolicySetting{InterfaceGuid: id})
	}
	return hcn.NewNetworkPolicy(hcn.NetAdapterName, hcn.NetAdapterNamePolicySetting{NetworkAdapterName: nic})
}

// ofCluster tells that the network is one of a cluster: an overlay of which nobody says its virtual network.
func (s *networkSpec) ofCluster() bool { return strings.EqualFold(s.kind, "overlay") && s.vsid == 0 }

// placeOverlay says by which NIC and how the hosts of an overlay reach each other.
func (s *networkSpec) placeOverlay(doc *hcn.HostComputeNetwork) error {
	switch {
	case s.vlan != 0 || s.dhcp:
		return api.Errorf(api.KindInvalid, "--vlan and --dhcp are for networks on a LAN, and this one is of type %s", doc.Type).Hint("drop them")
	case s.confirm != 0:
		return api.Errorf(api.KindInvalid, "--confirm-within is for networks on a LAN, and this one is of type %s", doc.Type).Hint("drop it")
	case s.ofCluster() && (s.uplink != "" || len(s.ranges) > 0):
		return api.Errorf(api.KindInvalid, "--uplink and --ip-range are each host's own, and a network of the cluster is the same on all").
			Hint("drop them; or add --vsid, for a network of this host alone")
	case !s.ofCluster() && s.encrypted:
		return api.Errorf(api.KindInvalid, "--encrypted is for networks of a cluster, by which hosts learn each other's keys, and one with --vsid is this host's alone").Hint("drop --vsid")
	case !s.ofCluster() && len(s.subnets) == 0:
		return api.Errorf(api.KindInvalid, "an overlay network with --vsid needs a subnet, the same on all hosts").
			Hint("add --subnet, like --subnet 10.9.0.0/16, and with --ip-range this host's part of it; or drop --vsid, for a network of the cluster")
	}
	if !s.ofCluster() {
		s.ipv6 = slices.ContainsFunc(s.subnets, func(p string) bool { return strings.Contains(p, ":") })
	}
	if s.uplink != "" {
		doc.Policies = append(doc.Policies, uplinkPolicy(s.uplink))
	}
	if s.vxlanPort != 0 {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.VxlanPort, hcn.VxlanPortPolicySetting{Port: s.vxlanPort}))
	}
	if s.encrypted {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.NetworkEncryption, hcn.NetworkEncryptionSetting{EncryptionMethodType: hcn.EncryptionMethodWireGuard}))
	}
	if s.hostRoute {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.HostRoute, hcn.EmptySetting{}))
	}
	if s.multicast {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.Multicast, hcn.EmptySetting{}))
	}
	return nil
}

// onLAN tells that a network of the type has a NIC of the host for its uplink.
func onLAN(t hcn.NetworkType) bool {
	return t == hcn.Transparent || t == hcn.L2Bridge || t == hcn.L2Tunnel
}

// vlanSubnet is a subnet that says nothing but the VLAN; none without one.
func (s *networkSpec) vlanSubnet() []hcn.Subnet {
	if s.vlan == 0 {
		return nil
	}
	return []hcn.Subnet{{Policies: []hcn.SubnetPolicy{hcn.NewSubnetPolicy(hcn.VLAN, hcn.VlanPolicySetting{IsolationId: uint32(s.vlan)})}}}
}

// prefixes are the subnets, with an IPv6 one added to a network that would have none.
func (s networkSpec) prefixes(ula func() netip.Prefix) ([]netip.Prefix, error) {
	if len(s.subnets) == 0 {
		if !s.ipv6 && !s.dhcp {
			return nil, api.Errorf(api.KindInvalid, "--ipv6=false needs a subnet: the daemon picks one of each family").
				Hint("add --subnet, like --subnet 10.7.0.0/24")
		}
		return nil, nil
	}
	var out []netip.Prefix
	has6 := false
	for _, text := range s.subnets {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() {
			return nil, api.Errorf(api.KindInvalid, "subnet %q is not a prefix", text).Hint("write it like 10.7.0.0/24 or fd00:7::/64")
		}
		if p.Masked() != p {
			return nil, api.Errorf(api.KindInvalid, "subnet %s has bits set after its length", p).Hint("use %s", p.Masked())
		}
		has6 = has6 || p.Addr().Is6()
		out = append(out, p)
	}
	if s.ipv6 && !has6 {
		out = append(out, ula())
	}
	if !s.ipv6 && has6 {
		return nil, api.Errorf(api.KindInvalid, "--ipv6=false and an IPv6 subnet contradict each other").Hint("drop one of them")
	}
	return out, nil
}

// documentSubnets gives each prefix its gateway, as the next hop of a default
// route, and the ranges that are in it. Behind a private switch there is no host
// to be the gateway.
func (s networkSpec) documentSubnets(prefixes []netip.Prefix, host bool) ([]hcn.Subnet, error) {
	if !host && len(s.gateways) > 0 {
		return nil, api.Errorf(api.KindInvalid, "a private network has no gateway: the host is not on it").
			Hint("drop --gateway, or use --type internal")
	}
	subnets := make([]hcn.Subnet, len(prefixes))
	gateways := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		gateways[i] = p.Addr().Next()
		subnets[i].IpAddressPrefix = p.String()
	}
	if err := s.placeGateways(prefixes, gateways); err != nil {
		return nil, err
	}
	if err := s.placeRanges(prefixes, subnets); err != nil {
		return nil, err
	}
	for i := range subnets {
		if !host {
			continue
		}
		all := "0.0.0.0/0"
		if gateways[i].Is6() {
			all = "::/0"
		}
		subnets[i].Routes = []hcn.Route{{NextHop: gateways[i].String(), DestinationPrefix: all}}
	}
	return subnets, nil
}

func (s networkSpec) placeGateways(prefixes []netip.Prefix, gateways []netip.Addr) error {
	set := make([]bool, len(prefixes))
	for _, text := range s.gateways {
		a, err := parseAddress(text)
		if err != nil {
			return api.Errorf(api.KindInvalid, "gateway: %w", err).Hint("give an address in the subnet")
		}
		i := within(prefixes, a)
		if i < 0 || set[i] {
			return api.Errorf(api.KindInvalid, "gateway %s is in no --subnet that needs one", a).
				Hint("give each subnet one gateway that is in it")
		}
		gateways[i], set[i] = a, true
	}
	return nil
}

func (s networkSpec) placeRanges(prefixes []netip.Prefix, subnets []hcn.Subnet) error {
	for _, text := range s.ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return api.Errorf(api.KindInvalid, "--ip-range %q is not a prefix", text).Hint("write it like 10.7.0.128/25")
		}
		i := within(prefixes, p.Addr())
		if i < 0 || p.Bits() < prefixes[i].Bits() {
			return api.Errorf(api.KindInvalid, "--ip-range %s is in no --subnet", p).Hint("give a part of one of them")
		}
		subnets[i].IpSubnets = append(subnets[i].IpSubnets, hcn.IpSubnet{IpAddressPrefix: p.Masked().String()})
	}
	return nil
}

func within(prefixes []netip.Prefix, a netip.Addr) int {
	for i, p := range prefixes {
		if p.Contains(a) {
			return i
		}
	}
	return -1
}

func exclusions(list []string) (hcn.ExclusionsSetting, error) {
	var s hcn.ExclusionsSetting
	for _, text := range list {
		if strings.Contains(text, "-") {
			s.Ranges = append(s.Ranges, text)
		} else {
			s.Prefixes = append(s.Prefixes, text)
		}
		if _, err := s.AddrRanges(); err != nil { // of this one: those before it are good
			return s, api.Errorf(api.KindInvalid, "--exclude %.100q is no address, prefix or range of addresses", text).
				Hint("write it like 10.7.0.5, 10.7.0.0/28 or 10.7.0.10-10.7.0.20")
		}
	}
	return s, nil
}

// randomULA makes a unique local prefix: fd, forty random bits, subnet 0 (RFC 4193).
func randomULA() netip.Prefix {
	var b [16]byte
	b[0] = 0xfd
	rand.Read(b[1:6]) // never fails: crypto/rand ends the program rather than return weak bytes
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}
