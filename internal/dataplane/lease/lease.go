// Package lease gets addresses for endpoints from others: from the DHCP servers and the routers of the network that an
// endpoint's vNIC is on.
//
// For each endpoint there is a session, which looks at the vNIC from inside its compartment through one packet socket,
// and up to three machines on it:
//
//	DHCPv4   RFC 2131: discover, request, probe (RFC 5227), bound, renew, rebind; again after a restart, decline, release
//	Router   RFC 4861, 4862: prefixes, routes, MTU and resolvers of router advertisements
//	DHCPv6   RFC 8415: solicit, request, confirm, renew, rebind, decline, release; begun when a router says "managed"
//
// Nothing is configured here. A machine publishes what it has as a Lease, calls Config.Wake, and the caller, who reads
// States, makes addresses and routes of it: through the plan, so that the source guard, the vNIC and IpConfigurations
// agree. For the same reason the kernel's own autoconfiguration stays off in compartments (accept_ra=0): it would
// choose addresses that the source guard does not know. Whether there is DHCPv6 (the M and O flags) is read from the
// advertisements that are heard in the compartment.
//
// Whoever answers is a stranger. What comes in is filtered in the kernel, checked against what was asked, bounded in
// number and rate, and a lease is taken only if every part of it makes sense (check.go, check6.go). A process with
// CAP_NET_ADMIN in the compartment can still put frames before the vNIC and lie to us, so that Config.Admit must know
// which addresses an endpoint cannot have, whoever offers them: those of other endpoints, of gateways and of the host.
//
// # How the engine plugs it in
//
// The engine sees an interface of its own with Sync, States and Close; cmd makes the Client, with netdev's Enter for
// Sockets and the engine's wake for Wake.
//
//   - The leases of an endpoint are kept in its row, beside Addrs: as rows are what Compile reads, a lease becomes
//     addresses and routes of the port's VNIC, addresses of the source guard, MTU, resolvers, and IpConfigurations.
//     A port without addresses is compiled, too: the guard lets pass what DHCP needs.
//   - Woken, the loop compares States with the rows and commits what differs in more than times; times are committed when
//     they have moved by a quarter of the lease, and at shutdown. Phase, Problem and Others are shown as they are now.
//   - After a pass that has made or taken away vNICs it calls Sync with all wants. A stopped container's endpoint is Parked, and
//     takes its lease up again when it starts.
//   - The leases of an endpoint that is deleted go into a row of their own, in the same transaction, until GiveBack has told
//     their servers: by the NIC, for neither port nor compartment need be there any more. So a crash loses none, and an
//     endpoint that is deleted long after its container has stopped is told of like any other.
//   - At its start it calls Sync with the leases of the rows as Stored: the addresses were in the plan all the time, and stay
//     while they are asked for again.
//   - Admit looks the address up among the endpoints, gateways and host addresses of the network's LAN.
package lease

import (
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Source is where a lease is from.
type Source = plan.LeaseSource

// The sources.
const (
	DHCPv4 = plan.LeaseDHCPv4
	DHCPv6 = plan.LeaseDHCPv6
	Router = plan.LeaseRouter
)

// Key names a lease.
type Key struct {
	Endpoint hcn.GUID
	Source   Source
}

// Want is an endpoint that wants leases.
type Want struct {
	Endpoint hcn.GUID
	// Network and Name are for people.
	Network, Name string
	// Namespace is the path of the compartment, Device the vNIC in it; for GiveBack and Probe "" and the NIC, with the tag of
	// its frames.
	Namespace, Device string
	NIC               bool
	VLAN              uint16
	MAC               plan.MAC
	// LinkLocal is the vNIC's link-local address, from which IPv6 asks.
	LinkLocal netip.Addr
	// Hostname is sent to servers; one with dots is sent as a full name.
	Hostname string
	IPv4     bool
	IPv6     bool
	// Parked says that its vNIC is away for now, because its container is stopped: nothing is asked, and nothing given back.
	// Its leases are the caller's to keep, and to hand back as Stored.
	Parked bool
	// Within are the subnets that the network declares. If there are any, an address must be in one of them.
	Within []netip.Prefix
	// Stored are leases from before a restart. They are taken up when the endpoint is new to the client, and not looked
	// at later.
	Stored map[Source]Lease
}

// same says whether a running session serves a want: identity and place are what it was begun with.
func (w *Want) same(o *Want) bool {
	return w.Endpoint == o.Endpoint && w.Network == o.Network && w.Name == o.Name && w.Namespace == o.Namespace &&
		w.Device == o.Device && w.MAC == o.MAC && w.LinkLocal == o.LinkLocal && w.Hostname == o.Hostname &&
		w.IPv4 == o.IPv4 && w.IPv6 == o.IPv6 && w.Parked == o.Parked && slices.Equal(w.Within, o.Within)
}

// Lease is what a server or the routers gave, as the plan keeps it.
type Lease plan.Lease

// Address of a lease, with the prefix length that the vNIC gets.
type Address = plan.LeasedAddress

// Gateways are the next hops of default routes, the best first.
func (l *Lease) Gateways() (vias []netip.Addr) {
	for _, r := range l.Routes {
		if r.Dst.Bits() == 0 && r.Via.IsValid() {
			vias = append(vias, r.Via)
		}
	}
	return vias
}

// over says whether a lease has ended.
func (l *Lease) over(now time.Time) bool { return (*plan.Lease)(l).Over(now) }

// alike says whether two leases configure the same, whenever they end.
func (l *Lease) alike(o *Lease) bool { return (*plan.Lease)(l).Alike((*plan.Lease)(o)) }

// Phase is what a machine does.
type Phase string

// The phases.
const (
	Asking    Phase = "asking"    // for a lease
	Probing   Phase = "probing"   // whether somebody else uses the address
	Rebooting Phase = "rebooting" // asks whether a stored lease still holds
	Bound     Phase = "bound"
	Renewing  Phase = "renewing"  // asks the server that gave the lease
	Rebinding Phase = "rebinding" // asks any server
	Waiting   Phase = "waiting"   // before it asks again, or for a router to say that there is a DHCPv6 server
)

// State of one machine.
type State struct {
	Key   Key
	Phase Phase
	Since time.Time // of the phase
	Lease *Lease    // nil: none; not to be changed
	// Pending is what a server was asked for and may hold for us, until it is the Lease or is declined.
	Pending *Lease
	// Problem is what is wrong, for people; "" for nothing.
	Problem string
	// Others are servers that answered as well, and were not taken.
	Others []netip.Addr
}

// maxOthers bounds what a flood of servers can make us remember.
const maxOthers = 4

func (s *State) clone() State {
	c := *s
	c.Others = slices.Clone(s.Others)
	return c
}

// identity is who an endpoint is to servers, for as long as it lives: a DUID made of its GUID (RFC 6355), and an IAID.
type identity struct {
	uuid [16]byte
	iaid [4]byte
}

func identityOf(g hcn.GUID) (id identity) {
	// A GUID is checked at the door; what is left out of another spelling does no harm but to uniqueness.
	b, _ := hex.DecodeString(strings.ReplaceAll(string(g), "-", ""))
	copy(id.uuid[:], b)
	copy(id.iaid[:], b)
	return id
}

// duid as it is on the wire.
func (id identity) duid() []byte { return append([]byte{0, 4}, id.uuid[:]...) }

// clientID of DHCPv4: type 255, IAID, DUID (RFC 4361).
func (id identity) clientID() []byte {
	return slices.Concat([]byte{255}, id.iaid[:], id.duid())
}

// sortedKeys gives keys in a fixed order.
func sortedKeys[V any](m map[Key]V) []Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b Key) int {
		if c := strings.Compare(string(a.Endpoint), string(b.Endpoint)); c != 0 {
			return c
		}
		return strings.Compare(string(a.Source), string(b.Source))
	})
}
