// Package plan is the compiler between intent and kernel.
//
// Users state what they want as HCN documents. [Compile] turns those, together
// with what is known of this host, into one [Plan]: every namespace, device,
// address, route, switch port, translation and name that has to exist. The
// appliers in internal/dataplane make the kernel match it and decide nothing
// themselves, so what explains the data path (this package) and what builds it
// (the appliers) read the same value and cannot disagree.
//
// Entries of a Plan are immutable once compiled: a change replaces the pointer.
// That is what makes a [Delta] cheap, and lets an applier look at what an object
// was while it removes it.
package plan

import (
	"net/netip"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Plan is the whole state wanted of this host's kernel. An applier may be given
// the same Plan for ever.
type Plan struct {
	// Revision of the store that this plan was compiled from.
	Revision uint64
	// Host says which settings of the host itself the plan needs.
	Host Host
	// Namespaces that have to exist, by HCN namespace GUID. The resolver's
	// compartment is among them, under [ResolverNamespace].
	Namespaces map[hcn.GUID]*Namespace
	// Switches, one per network, by network GUID.
	Switches map[hcn.GUID]*Switch
	// Ports of all switches.
	Ports map[PortID]*Port
	// Remotes are the endpoints on other hosts, of the overlay networks that this host has.
	Remotes map[hcn.GUID]*Remote
	// Balancers are the load balancers of all switches.
	Balancers map[hcn.GUID]*Balancer
	// Secure is the way of encrypted networks to other hosts, nil while there are none.
	Secure *Secure

	// rules and policies remember what was compiled of policies, by network and by
	// endpoint.
	rules    map[hcn.GUID]*networkRules
	policies map[hcn.GUID]*endpointPolicy
	// sources are the load balancers by their source.
	sources map[sourceKey]map[hcn.GUID]struct{}
	// opened counts the load balancers that the host forwards for, and atServices those of them that it reaches by ServicesNetwork.
	opened, atServices opened
}

// Host holds the settings of the host's own network namespace that the plan
// needs. They are turned on when needed and put back when nothing needs them.
type Host struct {
	// Forward4 and Forward6 ask for packet forwarding between interfaces.
	Forward4, Forward6 bool
}

// Namespace is a compartment: a network namespace bound at Path.
type Namespace struct {
	ID   hcn.GUID
	Path string // /run/netns/hns-<guid in lower case>
	// Adopted is where the namespace is, if it is not ours to make.
	Adopted *Adopted
	// Sysctls of the namespace's stack, keyed as below /proc/sys, for example
	// "net/ipv4/ip_unprivileged_port_start". Written when the namespace is made.
	Sysctls map[string]string
}

// Mode says what a switch is connected to.
type Mode uint8

// The modes of a switch, as the HCN network types demand them.
const (
	// ModeNAT: a host port with the gateway address, forwarding and translation.
	ModeNAT Mode = iota + 1
	// ModeInternal: a host port, no forwarding, no translation.
	ModeInternal
	// ModePrivate: no host port; the host sees no frame.
	ModePrivate
	// ModeTransparent: an uplink port; the containers are members of the LAN.
	ModeTransparent
	// ModeL2Bridge: the same, but on the wire all of them have the MAC of the NIC.
	ModeL2Bridge
	// ModeL2Tunnel: the same, and what they send each other goes by the wire as well.
	ModeL2Tunnel
	// ModeOverlay: members on other hosts, behind tunnels.
	ModeOverlay
	// ModeMacvlan: no switch at all. The containers are on the LAN by devices of their own.
	ModeMacvlan
	// ModeServices: the host's own, where it reaches the load balancers of networks on a LAN. No container is there.
	ModeServices
)

// OnLAN tells that a switch of the mode has an uplink port, and no port of the host's own:
// the host is behind the uplink as well.
func (m Mode) OnLAN() bool { return m == ModeTransparent || m.OneMAC() }

// OneMAC tells that on the wire the ports of a switch of the mode have the MAC of its NIC.
func (m Mode) OneMAC() bool { return m == ModeL2Bridge || m == ModeL2Tunnel }

// Switch is the virtual switch of one network.
type Switch struct {
	// Number identifies the switch in the BPF maps. It is chosen once, kept in
	// the store and never 0.
	Number  uint32
	Network hcn.GUID
	Name    string
	Mode    Mode
	MTU     int
	Subnets []Subnet
	// HostPort and ResolverPort name the switch's own ports in Plan.Ports; ""
	// where the switch has none.
	HostPort     PortID
	ResolverPort PortID
	// UplinkPort is the NIC of a switch on a LAN, "" without one or while it is gone. Uplink is its name, and that of the NIC
	// under an overlay.
	UplinkPort PortID
	Uplink     string
	// ConfirmBy is when the network is undone unless somebody confirms it; zero: it stays.
	ConfirmBy time.Time
	// HostDevice is the host's own vNIC on the switch (bhh…), "" without one.
	HostDevice string
	DNS        DNS
	// Sets are the address sets that rules of the switch's ports refer to, by Id: sorted,
	// masked, without duplicates. A nested set holds the addresses of its members.
	Sets map[string][]netip.Prefix
	// Overlay is nil of a switch that has no ports on other hosts.
	Overlay *Overlay
}

// Subnet is one address space of a switch.
type Subnet struct {
	Prefix  netip.Prefix // masked
	Gateway netip.Addr   // invalid when the subnet has none (Private)
	VNI     uint32       // of an overlay
}

// DNS is what the resolver of a network serves and where.
type DNS struct {
	// Listen holds the addresses the resolver owns in its compartment, the
	// gateway addresses. Empty: the network has no resolver.
	Listen []netip.Addr
	// Namespace is the path of the compartment to listen in, Device the
	// interface to bind to.
	Namespace, Device string
	// Upstreams are asked for what is not ours. Empty: the host's resolvers.
	Upstreams []netip.AddrPort
	// HostNames (host.internal) are answered with HostAddrs.
	HostAddrs []netip.Addr
	// Domain and Search of the network, lower case, no trailing dot.
	Domain string
	Search []string
}

// PortID names a port: an endpoint's GUID, or HostPortID and ResolverPortID of
// a network.
type PortID string

// PortKind says what is behind a port.
type PortKind uint8

// The kinds of port. The numbers are those of enum port_kind in bpf/lib.
const (
	// PortContainer is the host side of an endpoint's veth (or its tap).
	PortContainer PortKind = iota + 1
	// PortHost is the switch side of the host's own vNIC.
	PortHost
	// PortResolver is the switch side of the resolver's vNIC. It shares the
	// gateway's addresses and MAC with the host port; the switch hands it what
	// is addressed to the gateway's port 53, so no packet is rewritten and the
	// host's own port 53 stays free.
	PortResolver
	// PortUplink is a NIC of the host, which stays the host's own: the switch takes out
	// what is for its ports. Both the wire and the host's stack are behind it.
	PortUplink
	_ // PORT_GUEST is no port of a plan
	// PortTunnel is a VXLAN device of ours: other hosts are behind it. It serves all overlay networks with its UDP port.
	PortTunnel
	// PortMacvlan is no port of a switch: the vNIC is a macvlan device of a NIC.
	PortMacvlan
)

// Port is a port of a switch and the vNIC at its other end.
type Port struct {
	ID       PortID
	Kind     PortKind
	Network  hcn.GUID
	Switch   uint32
	Endpoint hcn.GUID // "" for the network's own ports
	// VLAN that the port is an access port of; 0: none. Ports of different VLANs do not meet.
	VLAN uint16
	// Name is the endpoint's name, Names all that the resolver answers for it
	// (lower case, no trailing dot, without domain).
	Name  string
	Names []string
	// Upstreams of its own, which are asked instead of the network's for what is
	// not ours.
	Upstreams []netip.AddrPort
	// Device is the switch side, in the host's namespace: bhp…
	Device string
	// Alias is the interface alias that marks the device as ours.
	Alias string
	// AltName is a further name for the switch side (policy PortName), or "".
	AltName string
	// MAC of the vNIC, and the addresses it may use: the source guard admits no
	// others, its link-local address included.
	MAC       MAC
	Addrs     []netip.Addr
	LinkLocal netip.Addr
	// VNIC is the other end.
	VNIC VNIC
	// Forwards are the host's ports published to this endpoint.
	Forwards []Forward
	// Outbound says how the outside sees what the endpoint sends, where that is not simply
	// by the address of the host.
	Outbound []Outbound
	// Turns say what goes to the host instead of the LAN.
	Turns []Turn
	// Hops say who gets what is sent to some prefixes on an overlay.
	Hops []Hop
	// Detours send flows that leave the compartment to a proxy.
	Detours []Detour
	// Redirects lead flows to a side-car inside the compartment.
	Redirects []Redirect
	// Policy is what the switch decides at this port.
	Policy Policy
	// ConfirmBy is when the endpoint is detached unless somebody confirms it; zero: it stays.
	ConfirmBy time.Time
	// KnownOn are the network's own vNICs, the host's and the resolver's, that
	// hold a permanent neighbour entry for each of Addrs (see Neighbour). Of the host's
	// own port it is its vNIC, when that has neighbours which are no ports.
	KnownOn []Interface
	// UDPPort of a tunnel, and the NICs that its packets may come in by. Below is the path of the compartment that its socket is in:
	// with one, nothing comes or goes by the NICs.
	UDPPort   uint16
	Underlays []string
	Below     string
}

// Interface is a network interface by its place and name.
type Interface struct {
	Namespace string // path, "" for the host's own namespace
	Device    string
}

// Neighbour is an address on the link and the MAC that has it. Such entries are
// permanent: the kernel neither asks for them, nor ages them, nor counts them
// against net.ipv4.neigh.default.gc_thresh3, which all namespaces of a host share.
type Neighbour struct {
	Addr netip.Addr
	MAC  MAC
}

// VNIC is the interface in a compartment (or in the host) at a port's far end.
// It is born there, in the same message that creates the pair.
type VNIC struct {
	// Namespace path, "" for the host's own namespace.
	Namespace string
	Device    string // eth0, bhh…, bhr…
	Alias     string
	MAC       MAC
	MTU       int
	// Segments is how large a TCP segment may be that has not been cut into packets yet.
	Segments Segments
	// Lower is the NIC under a macvlan device.
	Lower string
	// Adopted: the namespace is another runtime's, with settings of its own.
	Adopted bool
	// Parked: the device is in the host's namespace and has nothing but its MAC and MTU, until the runtime moves it.
	Parked bool
	// Addrs to assign, with the prefix length the interface gets.
	Addrs []netip.Prefix
	// LinkLocal address to assign (/64), fixed so that no duplicate address
	// detection has to pass before the interface works.
	LinkLocal netip.Addr
	Routes    []Route
	// Neighbours that are known from the start: the gateway.
	Neighbours []Neighbour
}

// Home is the namespace that the device is in, "" for the host's own.
func (v *VNIC) Home() string {
	if v.Parked {
		return ""
	}
	return v.Namespace
}

// Segments is the size of the largest TCP segment that a device hands over or puts together before it is cut into packets
// of the MTU, for each family. 0 is the kernel's default, DefaultSegment; more is called BIG TCP.
type Segments struct {
	IP4, IP6 int
}

const (
	// DefaultSegment is what a device takes unless it is told otherwise (GSO_LEGACY_MAX_SIZE).
	DefaultSegment = 65536
	// MaxSegment is the most that we ask for. The kernel takes more; beyond this nothing is gained.
	MaxSegment = 192 << 10
)

// Route in a compartment. Dst unmasked bits are zero.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // invalid: on-link
	OnLink bool       // Via is reachable on the link although no address covers it
	Metric int        // 0: the kernel's default
}

// Scope says on which of the host's addresses a published port answers.
type Scope uint8

// The scopes of a published port.
const (
	// ScopeAddress: the single address in Forward.Bind. A loopback address there
	// means that only the host itself reaches it.
	ScopeAddress Scope = iota + 1
	// ScopeAll: every address of the host, loopback included.
	ScopeAll
	// ScopeLAN: every address of the host except loopback.
	ScopeLAN
)

// Acquaintance is what the interfaces of KnownOn know of a port.
func (p *Port) Acquaintance() []Neighbour {
	if p.Kind == PortHost {
		return p.VNIC.Neighbours
	}
	out := make([]Neighbour, len(p.Addrs))
	for i, a := range p.Addrs {
		out[i] = Neighbour{Addr: a, MAC: p.MAC}
	}
	return out
}

// Forward publishes one port of the host to an endpoint, in one family.
type Forward struct {
	Protocol uint8 // 6 TCP, 17 UDP
	Scope    Scope
	Bind     netip.Addr // valid with ScopeAddress
	Port     uint16     // on the host
	To       netip.AddrPort
	// Hidden says that the container sees the host instead of the client, which it would answer past the host.
	Hidden bool
	// Held says that the container's own runtime has the socket which holds the port on the host.
	Held bool
}

// Is4 tells the family of the forward.
func (f Forward) Is4() bool { return f.To.Addr().Is4() }

// MAC is an Ethernet address.
type MAC [6]byte

// ObjectError ties an error to the object that it is about, so that the engine
// can tell the one caller and go on with the others. Appliers join several with
// errors.Join.
type ObjectError struct {
	Kind string // "namespace", "network" or "port"
	ID   string
	Err  error
}

func (e *ObjectError) Error() string { return e.Kind + " " + e.ID + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *ObjectError) Unwrap() error { return e.Err }

// Drift is one difference between kernel and plan that somebody else made and
// an applier repaired.
type Drift struct {
	Object string // what was wrong: "link bhp…", "table inet bulkhead"
	ID     string // the port, network or namespace it belongs to
	Found  string // "missing", "down", "program detached", …
	By     string // whose doing it may be, as the kernel tells it of rulesets: "nft (pid 4711)"
}

// Change is what an object was and what it becomes; nil means absent.
type Change[T any] struct{ Old, New *T }

// Delta lists what differs between two plans.
type Delta struct {
	Host       bool
	Namespaces map[hcn.GUID]Change[Namespace]
	Switches   map[hcn.GUID]Change[Switch]
	Ports      map[PortID]Change[Port]
	Remotes    map[hcn.GUID]Change[Remote]
	Balancers  map[hcn.GUID]Change[Balancer]
	Secure     bool
}

// Empty tells whether there is nothing to do.
func (d *Delta) Empty() bool {
	return !d.Host && !d.Secure && len(d.Namespaces) == 0 && len(d.Switches) == 0 && len(d.Ports) == 0 && len(d.Remotes) == 0 && len(d.Balancers) == 0
}
