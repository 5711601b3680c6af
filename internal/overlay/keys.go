package overlay

import (
	"cmp"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/durable"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Keys of WireGuard, for networks that are encrypted. Each host makes its own; the private part never leaves it, and the public one is in
// the host's record. Keys have generations, and the newest that any host has is the cluster's: whoever sees one that is newer than its own
// makes itself one of that generation. While keys are changed a host has two, and uses the old one with those that have no new one yet.

// HostKey is a public key of a host.
type HostKey struct {
	Generation uint32   `json:"generation"`
	Public     plan.Key `json:"public"`
	Port       uint16   `json:"port"` // UDP, at the host's addresses
}

// SecurePort is the first of the two UDP ports of WireGuard: keys of even and of odd generations have one each.
const SecurePort = 2392

// checkKeys says what is wrong with the keys of a host: at most two, of generations in order.
func checkKeys(keys []HostKey) error {
	if len(keys) > 2 {
		return fmt.Errorf("%d keys, must be at most 2", len(keys))
	}
	for i, k := range keys {
		switch {
		case k.Generation == 0 || k.Generation > maxGeneration || k.Port == 0 || k.Public == plan.Key{}:
			return errors.New("keys: no generation, no port, or no key")
		case i > 0 && k.Generation != keys[0].Generation+1:
			return errors.New("keys: the generations do not follow one another")
		}
	}
	return nil
}

// maxGeneration leaves room: no cluster changes its keys that often.
const maxGeneration = 1 << 30

// Key is a host's key of a generation, nil if it has none.
func (h *Host) Key(generation uint32) *HostKey {
	for i := range h.Keys {
		if h.Keys[i].Generation == generation {
			return &h.Keys[i]
		}
	}
	return nil
}

// Generation of the newest key of a host, 0 without one.
func (h *Host) Generation() (g uint32) {
	for i := range h.Keys {
		g = max(g, h.Keys[i].Generation)
	}
	return g
}

// InnerAddr is a host's address inside WireGuard: of a unique local prefix of the cluster's.
func InnerAddr(cluster, host hcn.GUID) netip.Addr {
	c := sha256.Sum256([]byte("bulkhead wireguard cluster " + cluster.Lower()))
	h := sha256.Sum256([]byte("bulkhead wireguard host " + host.Lower()))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], c[:])
	copy(a[8:], h[:8])
	return netip.AddrFrom16(a)
}

// Keyring are the private keys of this host, in a file that root alone can read.
type Keyring struct {
	path string
	keys []ownKey // by generation, the oldest first
}

type ownKey struct {
	Generation uint32 `json:"generation"`
	Private    []byte `json:"private"`
}

// fileKeys is in the directory of the membership, and goes with it.
const fileKeys = "wireguard.json"

// Keyring opens the keys of the membership. Ones that cannot be read are none: the others are told new ones.
func (c *Cluster) Keyring() (*Keyring, error) { return openKeyring(filepath.Join(c.opt.Dir, fileKeys)) }

func openKeyring(path string) (*Keyring, error) {
	k := &Keyring{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, fmt.Errorf("read this host's keys of WireGuard: %w", err)
	}
	var all []ownKey
	if err = json.Unmarshal(b, &all); err == nil {
		for _, o := range all {
			if len(o.Private) != len(plan.Secret{}) || o.Generation == 0 || o.Generation > maxGeneration {
				err = errors.New("a key in it is none")
			}
		}
	}
	if err != nil {
		return k, fmt.Errorf("this host's keys of WireGuard in %s are damaged, and new ones are made: %w", path, err)
	}
	slices.SortFunc(all, func(a, b ownKey) int { return cmp.Compare(a.Generation, b.Generation) })
	k.keys = all
	return k, nil
}

// Generations that the ring has keys of, the oldest first.
func (k *Keyring) Generations() (out []uint32) {
	for _, o := range k.keys {
		out = append(out, o.Generation)
	}
	return out
}

// Keep makes the ring have keys of exactly these generations: missing ones are made, others are forgotten. It reports whether that
// changed it.
func (k *Keyring) Keep(generations ...uint32) (bool, error) {
	if slices.Equal(k.Generations(), generations) {
		return false, nil
	}
	var next []ownKey
	for _, g := range generations {
		i := slices.IndexFunc(k.keys, func(o ownKey) bool { return o.Generation == g })
		if i >= 0 {
			next = append(next, k.keys[i])
			continue
		}
		var private plan.Secret
		if _, err := rand.Read(private[:]); err != nil {
			return false, fmt.Errorf("make a key of WireGuard: %w", err)
		}
		private[0] &= 248 // as WireGuard and the kernel show them (RFC 7748, section 5)
		private[31] = private[31]&127 | 64
		next = append(next, ownKey{g, private[:]})
	}
	b, err := json.Marshal(next)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(k.path), 0o700); err != nil {
		return false, fmt.Errorf("keep this host's keys of WireGuard: %w", err)
	}
	if err := durable.WriteFile(k.path, b); err != nil { // born with mode 0600
		return false, fmt.Errorf("keep this host's keys of WireGuard: %w", err)
	}
	k.keys = next
	return true, nil
}

// Private is the key of a generation.
func (k *Keyring) Private(generation uint32) (plan.Secret, bool) {
	for _, o := range k.keys {
		if o.Generation == generation {
			return plan.Secret(o.Private), true
		}
	}
	return plan.Secret{}, false
}

// Public are the keys as they are published.
func (k *Keyring) Public() ([]HostKey, error) {
	var out []HostKey
	for _, o := range k.keys {
		p, err := ecdh.X25519().NewPrivateKey(o.Private)
		if err != nil {
			return nil, fmt.Errorf("this host's key of WireGuard: %w", err)
		}
		out = append(out, HostKey{Generation: o.Generation, Public: plan.Key(p.PublicKey().Bytes()), Port: PortOf(o.Generation)})
	}
	return out, nil
}

// PortOf is the UDP port of a generation.
func PortOf(generation uint32) uint16 { return SecurePort + uint16(generation%2) }

// ClusterID is the cluster that the host is in, "" for none.
func (c *Cluster) ClusterID() hcn.GUID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil {
		return ""
	}
	return c.cfg.Cluster
}
