package plan

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"strconv"

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
