package plan

import (
	"errors"
	"net/netip"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Intent is everything users asked for, with the choices made for it. The rows
// are what the store keeps.
type Intent struct {
	Networks   map[hcn.GUID]*Network
	Endpoints  map[hcn.GUID]*Endpoint
	Namespaces map[hcn.GUID]*NamespaceRow
	// Routes are the SDN routes of each endpoint. They stand behind its policies SDNRoute, oldest first.
	Routes map[hcn.GUID]map[hcn.GUID]*SDNRoute
	// Remotes are what a control plane knows of endpoints on other hosts. They are facts, and stored nowhere.
	Remotes map[hcn.GUID]*Remote
	// Balancers by ID. ByBackend has them by the endpoints in their documents; nil: nobody keeps that.
	Balancers map[hcn.GUID]*LoadBalancer
	ByBackend map[hcn.GUID]map[hcn.GUID]*LoadBalancer
	// Shared are load balancers of other hosts of the cluster: facts, as Remotes are. SharedBy has them by back ends, and Frontends this
	// host's own load balancers by services, if ByBackend is kept.
	Shared    map[hcn.GUID]*LoadBalancer
	SharedBy  map[hcn.GUID]map[hcn.GUID]*LoadBalancer
	Frontends map[Frontend]hcn.GUID
	// BySource has this host's load balancers by their SourceVIP, and Holders endpoints by network and address; nil: nobody keeps that.
	BySource map[netip.Addr]map[hcn.GUID]*LoadBalancer
	Holders  map[hcn.GUID]map[netip.Addr]hcn.GUID
	// Secure are the keys that a control plane tells; nil until it does. Only Devices and Problem count.
	Secure *Secure
}

// Network is the stored form of a network: the document as it is shown, and
// what was chosen once and kept.
type Network struct {
	Doc hcn.HostComputeNetwork
	// Seq orders objects by creation.
	Seq uint64
	// Switch is the number of its switch in the BPF maps.
	Switch uint32
	// GatewayMAC of the host port, the same for the life of the network.
	GatewayMAC MAC
	// Uplink is the NIC of a network on a LAN, or under an overlay.
	Uplink string `json:",omitempty"`
	// NIC tells that NIC by more than its name, which others may change.
	NIC *NICMark `json:",omitempty"`
	// Cluster says that the network is one of a cluster, and the same on all its hosts. Blocks are the parts of its prefixes whose
	// addresses are this host's to give.
	Cluster bool `json:",omitempty"`
	// Shared tells which form of the cluster's document the row was made of.
	Shared string `json:",omitempty"`
	// SharedAt is the cluster's revision of that document. It counts while the daemon runs: what it is told later is later.
	SharedAt int64          `json:"-"`
	Blocks   []netip.Prefix `json:",omitempty"`
	// Inner is this host's address inside WireGuard, of an encrypted network.
	Inner netip.Addr `json:",omitzero"`
	// Confirm is set while the network waits for somebody to say that the host can be reached.
	Confirm *Confirmation `json:",omitempty"`
}

// NICMark tells a NIC under whatever name. The GUID is good for ever, where the NIC was made with a MAC; index and MAC are for one run of
// the host.
type NICMark struct {
	GUID  hcn.GUID `json:",omitempty"`
	Index int      `json:",omitempty"`
	MAC   MAC      `json:",omitzero"`
	Boot  string   `json:",omitempty"`
}

// Mark is that of a NIC.
func (f *Facts) Mark(nic *NIC) NICMark { return NICMark{nic.GUID, nic.Index, nic.MAC, f.BootID} }

// NICOf is the NIC that a network was made on: that of its name, or if there is none of that name, the one that has another by now.
func (f *Facts) NICOf(n *Network) *NIC {
	if nic := f.NIC(n.Uplink); nic != nil || n.NIC == nil {
		return nic
	}
	for i := range f.NICs {
		nic := &f.NICs[i]
		same := nic.Index == n.NIC.Index && nic.MAC == n.NIC.MAC && n.NIC.Boot == f.BootID
		if same || !n.NIC.GUID.IsZero() && nic.GUID == n.NIC.GUID {
			return nic
		}
	}
	return nil
}

// Confirmation is what a network, or an endpoint's attachment to one, waits for.
type Confirmation struct {
	// By is when it is undone without it.
	By time.Time
	// Why it was undone; "" while it is not.
	Why string `json:",omitempty"`
}

// Watch is what an attachment that brings a MAC to the wire is held against: who answered by the NIC before.
type Watch struct {
	Who []netip.Addr
	At  time.Time
}

// Endpoint is the stored form of an endpoint.
type Endpoint struct {
	Doc hcn.HostComputeEndpoint
	Seq uint64
	// MAC and Addrs as chosen; Doc shows the same as text.
	MAC   MAC
	Addrs []netip.Prefix
	// Leased says that the LAN gives the addresses: Addrs are those of Leases, in which it is kept what was given.
	Leased bool                  `json:",omitempty"`
	Leases map[LeaseSource]Lease `json:",omitempty"`
	// OneMAC says that its network has one MAC on the wire.
	OneMAC bool `json:",omitempty"`
	// NameServers are those that its creator named. The document shows the
	// network's when there are none, and then they follow the network.
	NameServers []netip.Addr `json:",omitempty"`
	// Attach is nil while the endpoint is in no namespace.
	Attach *Attachment
	// Trial is what the last attachment waited for, and nobody gave, while there is none: another one waits for it as long as there is
	// time. Once that is over, only a user attaches the endpoint again.
	Trial *Confirmation `json:",omitempty"`
	// Before is the Watch of the last attachment, if that ended while it was watched.
	Before *Watch `json:",omitempty"`
	// Detached says that the compartment vanished under the endpoint.
	Detached bool
	// Boot is the boot ID of the host run that the endpoint ends with; "" for one
	// that outlives it.
	Boot string `json:",omitempty"`
	// Foreign is the container of another runtime that has the endpoint.
	Foreign *Foreign `json:",omitempty"`
	// Port is what a client of HCN calls the endpoint's port of a VM; nil: it has made none.
	Port *VMPort `json:",omitempty"`
}

// VMPort is a switch port for a NIC of a VM. The endpoint is in the compartment of that VM whenever that runs.
type VMPort struct {
	ID hcn.GUID
	// Machine is the VM; "": whichever is in the endpoint's namespace.
	Machine hcn.GUID `json:",omitempty"`
	NIC     string   `json:",omitempty"` // as its client calls it
}

// SDNRoute is the stored form of a route at the ports of some endpoints.
type SDNRoute struct {
	Doc hcn.HostComputeRoute
	Seq uint64
}

// Foreign is a container that another runtime runs.
type Foreign struct {
	Owner, Container string // who keeps account of it, and its ID there
	Interface        string // as asked for
	Netns            string // as named by the runtime
	Runtime, Name    string
	Labels           map[string]string
	DNS              hcn.Dns // that its runtime asked for
	// Handover says that the runtime moves the vNIC into its namespace, and configures it.
	Handover bool `json:",omitempty"`
	// HoldsPorts says that the runtime binds the published ports on the host itself.
	HoldsPorts bool `json:",omitempty"`
}

// Adopted is a network namespace that somebody else made.
type Adopted struct {
	Path  string
	Inode uint64 // on nsfs: what is at the path later may be another; 0: nothing was seen there yet
}

// Attachment is an endpoint's place in a compartment.
type Attachment struct {
	Namespace hcn.GUID
	// Interface in the compartment (eth0), unique there.
	Interface string
	// Index counts the attachments of the namespace; it breaks ties of the
	// gateway priority.
	Index int
	// Confirm is set while the attachment waits for somebody to say that the host can be reached.
	Confirm *Confirmation `json:",omitempty"`
	// Watch is set until it is known that the attachment does not cut the host off.
	Watch *Watch `json:",omitempty"`
	// Parked says that the vNIC waits in the host's namespace, under the name Interface, for the runtime to move it.
	Parked bool `json:",omitempty"`
}

// NamespaceRow is the stored form of an HCN namespace.
type NamespaceRow struct {
	Doc     hcn.HostComputeNamespace
	Seq     uint64
	Number  uint32 // compartment number
	Sysctls map[string]string
	// Boot is the boot ID of the host run in which the namespace was made: it
	// vanishes with that run.
	Boot string
	// Made says that the compartment was there once. Only then does its absence
	// mean that it vanished; before, it is still to be made. It is written with
	// the next change, so a row may lag behind: that costs no more than making
	// again what a crash and somebody else removed together.
	Made bool `json:",omitempty"`
	// Vanished says that the compartment went away under us: it is not made
	// again, because what ran in it is gone too.
	Vanished bool
	// Implicit: the host's default namespace, made because an endpoint was to be
	// attached to the host and not because a client created it. It goes with the
	// last that is in it.
	Implicit bool `json:",omitempty"`
	// Adopted is the namespace of another runtime that the compartment is. It is kept by a mount of ours, and goes when that
	// runtime lets go of it.
	Adopted *Adopted `json:",omitempty"`
	// Kept says that a client made it for a VM to come, and that it stays when that leaves.
	Kept bool `json:",omitempty"`
	// Containers listed in the namespace, by container ID.
	Containers []string
}

// Facts are what the host says about itself.
type Facts struct {
	// BootID of this run of the host.
	BootID string
	// Uplink is the device of the default route, UplinkMTU its MTU (1500 when
	// there is no uplink).
	Uplink    string
	UplinkMTU int
	// Segments is the largest that this kernel can be told to make, zero where it knows no
	// setting; UplinkSegments is what the uplink takes.
	Segments, UplinkSegments Segments
	// HostAddrs are the host's addresses on devices that are not ours, with
	// their prefixes; Routes all destinations of its tables but the default;
	// Resolvers the name servers it uses. A network that is made must collide
	// with none of them.
	HostAddrs []netip.Prefix
	Routes    []netip.Prefix
	Resolvers []netip.Addr
	// NICs are the host's links that are not ours, loopback left out.
	NICs []NIC
}

// NIC is a link of the host that may be the uplink of a switch.
type NIC struct {
	Name  string
	Index int
	// GUID is its own for as long as it is this device: that of its burnt-in MAC, or without one of its name.
	GUID hcn.GUID
	MAC  MAC
	MTU  int
	// PathMTU is how large packets to the other hosts of a cluster may be, where a check has found that to be less; else 0.
	PathMTU  int
	Segments Segments
	Up       bool
	// Master is the device that it is a member of, "" for none. Team says that it is a bond or a team.
	Master string
	Team   bool
	// NoCarrier says that nobody is behind it.
	NoCarrier bool
	// Addrs are the host's addresses on it, without link-local ones of IPv6.
	Addrs []netip.Prefix
	// Unfit says why it cannot be an uplink; "" for one that can. OneMAC says why it can only be
	// that of a network whose containers have its own MAC on the wire.
	Unfit, OneMAC string
}

// NIC finds a link by its name; nil if there is none.
func (f *Facts) NIC(name string) *NIC {
	for i := range f.NICs {
		if f.NICs[i].Name == name && name != "" {
			return &f.NICs[i]
		}
	}
	return nil
}

// ErrNoHostAddress says that a port cannot be published on an address: it is none of the host's.
var ErrNoHostAddress = errors.New("no address of the host to publish on")
