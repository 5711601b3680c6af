package plan

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Encrypted networks. Their VXLAN packets go from an inner address of this host to one of another, and such addresses are behind
// WireGuard devices in a compartment that has no other way out (internal/dataplane/wireguard). Their VXLAN device has its socket in there.

// Secure is the host's encrypted way to others.
type Secure struct {
	// Namespace is the path of the compartment, Addr the host's own address inside.
	Namespace string
	Addr      netip.Addr
	MTU       int
	// Devices by generation of keys, the oldest first: one, or two while keys are changed.
	Devices []SecureDevice
	// Told says that somebody has told the keys. Until then the devices stay as they are.
	Told bool
	// Problem is why nothing can be encrypted now, "" while it can: of what is told, and not of a plan.
	Problem string
}

// SecureStatus says how it is with it.
type SecureStatus struct {
	// Problem is why nothing is encrypted; "" when all is well, or there is nothing to do.
	Problem string
	// Devices are up, by generation, with the hosts that a handshake was made with.
	Devices map[uint32]map[hcn.GUID]time.Time
	// Silent are the hosts, by their names, with which none was made.
	Silent []string
	// Kernel says that the kernel encrypts, and not a process.
	Kernel bool
	// Traffic is what hosts and this one sent each other inside, by those devices.
	Traffic map[hcn.GUID]SecureTraffic
}

// SecureTraffic is what passed between two hosts since their devices were made, in bytes on the wire.
type SecureTraffic struct {
	Received, Sent uint64
	Handshake      time.Time // the last; zero: none yet
}

// Wants tells that a device is one of those.
func (s *Secure) Wants(device string) bool {
	return slices.ContainsFunc(s.Devices, func(d SecureDevice) bool { return d.Device == device })
}

// SecureDevice is a WireGuard device.
type SecureDevice struct {
	Generation uint32
	Device     string
	Private    Secret
	Port       uint16 // UDP, on the host
	Peers      []SecurePeer
}

// SecurePeer is another host with its key of the device's generation.
type SecurePeer struct {
	Host     hcn.GUID
	Name     string
	Key      Key
	Endpoint netip.AddrPort // in the underlay
	Addr     netip.Addr     // inside
}

// Key is a public key of WireGuard.
type Key [32]byte

func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText writes it as WireGuard's tools do.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads that form.
func (k *Key) UnmarshalText(b []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(b))
	if err != nil || len(raw) != len(k) {
		return errors.New("it is no key: 32 bytes in base64 are one")
	}
	copy(k[:], raw)
	return nil
}

// Secret is a private key. It does not print.
type Secret Key

func (Secret) String() string { return "(secret)" }

// GoString keeps it out of debug output.
func (Secret) GoString() string { return "(secret)" }

// MarshalText keeps it out of whatever is written as text.
func (Secret) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// SecureNamespace is the key of the WireGuard devices' compartment in Plan.Namespaces.
const SecureNamespace hcn.GUID = "wireguard"

// OwnNamespace tells that a compartment is no container's but ours: it is made again when it has vanished.
func OwnNamespace(id hcn.GUID) bool { return id == ResolverNamespace || id == SecureNamespace }

// SecureDeviceName is the WireGuard device of a generation of keys. Two can be in use at a time.
func SecureDeviceName(generation uint32) string {
	return SecurePrefix + strconv.Itoa(int(generation%2))
}

// WireGuard takes this much of the NIC's MTU: its header and tag, UDP, and IP.
const (
	secureOverhead4 = 32 + 8 + 20
	secureOverhead6 = 32 + 8 + 40
)

// Encrypted tells that what a network sends between hosts is to be encrypted.
func Encrypted(n *hcn.HostComputeNetwork) bool {
	return n.Type == hcn.Overlay && n.Encrypted()
}

// secureOverhead is what WireGuard takes of the NIC's MTU under a network; 0 if it is not encrypted.
func secureOverhead(n *Network, f *Facts) int {
	switch {
	case !Encrypted(&n.Doc):
		return 0
	case Provider(n, f).Is6():
		return secureOverhead6
	}
	return secureOverhead4
}

// SealedPortID names the VXLAN device of a UDP port that encrypted networks share.
func SealedPortID(port uint16) PortID { return TunnelPortID(port) + ":wireguard" }

// TunnelPortOf is the VXLAN device that a network needs.
func TunnelPortOf(n *hcn.HostComputeNetwork) PortID {
	if Encrypted(n) {
		return SealedPortID(VXLANPort(n))
	}
	return TunnelPortID(VXLANPort(n))
}

// seal makes an overlay's way the encrypted one: from the host's inner address, and no other.
func (o *Overlay) seal(n *Network, f *Facts) {
	o.Encrypted = true
	if nic := f.NIC(n.Uplink); nic != nil {
		for _, a := range nic.Addrs {
			o.Clear = append(o.Clear, a.Addr())
		}
		o.MTU -= secureOverhead(n, f)
	}
	if o.Provider.IsValid() {
		o.Provider = n.Inner // without one there is no way
	}
}

// recompileSecure makes the way that the encrypted networks need.
func (p *Plan) recompileSecure(in *Intent, d *Delta) {
	var want *Secure
	for _, s := range p.Switches {
		o := s.Overlay
		if o == nil || !o.Encrypted || !o.Provider.IsValid() {
			continue
		}
		if want == nil {
			want = &Secure{Namespace: NamespacePath(SecureNamespace), Addr: o.Provider, MTU: o.MTU}
		}
		want.MTU = min(want.MTU, o.MTU)
	}
	var ns *Namespace
	if want != nil {
		ns = &Namespace{ID: SecureNamespace, Path: want.Namespace}
		if in.Secure != nil {
			want.Devices, want.Told = in.Secure.Devices, true
		}
	}
	update(p.Namespaces, d.Namespaces, SecureNamespace, ns)
	one, changed := map[int]*Secure{}, map[int]Change[Secure]{}
	if p.Secure != nil {
		one[0] = p.Secure
	}
	update(one, changed, 0, want)
	if _, ok := changed[0]; ok {
		p.Secure, d.Secure = want, true
	}
}

func (s *Secure) text(b *strings.Builder) {
	fmt.Fprintf(b, "encryption %s addr %s mtu %d\n", s.Namespace, s.Addr, s.MTU)
	for i := range s.Devices {
		dev := &s.Devices[i]
		fmt.Fprintf(b, "    device %s port %d generation %d\n", dev.Device, dev.Port, dev.Generation)
		for _, peer := range dev.Peers {
			fmt.Fprintf(b, "        peer %s key %s endpoint %s addr %s\n", peer.Name, peer.Key, peer.Endpoint, peer.Addr)
		}
	}
}
