package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/durable"
)

// network is what one of Docker's is here.
type network struct {
	ID hcn.GUID
	// Made says that it was made for Docker, and goes with Docker's.
	Made bool
}

// networks keeps them, by Docker's IDs, in a file.
type networks struct {
	mu   sync.Mutex
	path string
	byID map[string]network
}

func openNetworks(path string) (*networks, error) {
	n := &networks{path: path, byID: map[string]network{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n.byID)
	}
	if err != nil {
		return nil, fmt.Errorf("read Docker's networks in %s: %w", path, err)
	}
	return n, nil
}

func (n *networks) find(id string) (network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if nw, ok := n.byID[id]; ok {
		return nw, nil
	}
	return network{}, fmt.Errorf("network %.64q of Docker's is not known here any more: remove it with `docker network rm`, and create it again", id)
}

// set keeps a network, or with nil forgets it. What cannot be written is as it was.
func (n *networks) set(id string, nw *network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := maps.Clone(n.byID)
	if nw == nil {
		delete(next, id)
	} else {
		next[id] = *nw
	}
	b, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(n.path), 0o700)
	}
	if err == nil {
		err = durable.WriteFile(n.path, b)
	}
	if err != nil {
		return fmt.Errorf("keep Docker's networks: %w", err)
	}
	n.byID = next
	return nil
}

// forget has a network be none of Docker's any more.
func (n *networks) forget(id hcn.GUID) error {
	n.mu.Lock()
	docker := ""
	for k, nw := range n.byID {
		if nw.ID == id {
			docker = k
		}
	}
	n.mu.Unlock()
	if docker == "" {
		return nil
	}
	return n.set(docker, nil)
}

// networkID is what one that is made for Docker is called.
func networkID(docker string) hcn.GUID { return hcn.DerivedGUID("docker network", docker) }

// createNetwork makes a network for Docker, or shares one that is there.
func (d *Driver) createNetwork(ctx context.Context, in *createNetwork) (any, error) {
	if in.NetworkID == "" || len(in.NetworkID) > 128 {
		return nil, errors.New("NetworkID: it is missing or too long")
	}
	opts := map[string]json.RawMessage{}
	if raw := in.Options[optGeneric]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &opts); err != nil {
			return nil, fmt.Errorf("option %s: %w", optGeneric, err)
		}
	}
	if err := checkOptions(opts, optNetwork, optType, optUplink, optPolicies); err != nil {
		return nil, err
	}
	doc, err := networkDocument(in, opts)
	if err != nil {
		return nil, err
	}
	if name := text(opts[optNetwork]); name != "" {
		shared, err := d.share(ctx, name, doc)
		if err != nil {
			return nil, err
		}
		if shared != nil {
			return nil, d.networks.set(in.NetworkID, &network{ID: shared.ID})
		}
	}
	doc.ID = networkID(in.NetworkID)
	d.orphans.claim(doc.ID)
	// Asked again, with a crash in between, it is there.
	if _, err := d.Daemon.Network(ctx, doc.ID); err != nil {
		if _, err := d.Daemon.CreateNetwork(ctx, doc); err != nil {
			return nil, fmt.Errorf("create network %s: %w", doc.Name, err)
		}
	}
	if err := d.networks.set(in.NetworkID, &network{ID: doc.ID, Made: true}); err != nil {
		return nil, errors.Join(err, d.Daemon.DeleteNetwork(ctx, doc.ID)) // Docker does not ask for that of one that failed
	}
	d.pools.used(doc.AllSubnets())
	return nil, nil //nolint:nilnil // there is nothing to say
}

// share finds a network by name or ID that is to be Docker's too. Its subnets have to be those that Docker believes in.
func (d *Driver) share(ctx context.Context, name string, want *hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error) {
	shared, err := d.named(ctx, name)
	if err != nil || shared == nil {
		return nil, err
	}
	for _, s := range want.AllSubnets() {
		found := false
		for _, has := range shared.AllSubnets() {
			found = found || has.IpAddressPrefix == s.IpAddressPrefix
		}
		if !found {
			return nil, fmt.Errorf("network %q has no subnet %s: create Docker's with --subnet as `bulkhead network inspect %s` shows them", name, s.IpAddressPrefix, name)
		}
	}
	return shared, nil
}

// named finds a network by its name or ID, nil if there is none.
func (d *Driver) named(ctx context.Context, name string) (*hcn.HostComputeNetwork, error) {
	all, err := d.Daemon.Networks(ctx)
	if err != nil {
		return nil, err
	}
	id, _ := hcn.ParseGUID(name)
	for i := range all {
		if all[i].Name == name || id != "" && all[i].ID == id {
			return &all[i], nil
		}
	}
	return nil, nil //nolint:nilnil // there is none
}

func networkDocument(in *createNetwork, opts map[string]json.RawMessage) (*hcn.HostComputeNetwork, error) {
	doc := &hcn.HostComputeNetwork{
		Name: cmp.Or(text(opts[optNetwork]), fmt.Sprintf("docker-%.12s", in.NetworkID)), Owner: owner, SchemaVersion: hcn.V2(), Flags: hcn.EnablePersistent,
	}
	if text(in.Options[optInternal]) == "true" {
		doc.Type = hcn.Internal
	}
	if kind := text(opts[optType]); kind != "" {
		if err := doc.Type.UnmarshalText([]byte(kind)); err != nil {
			return nil, fmt.Errorf("option %s: %w", optType, err)
		}
	}
	if nic := text(opts[optUplink]); nic != "" {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.NetAdapterName, hcn.NetAdapterNamePolicySetting{NetworkAdapterName: nic}))
	}
	if raw := text(opts[optPolicies]); raw != "" {
		var more []hcn.NetworkPolicy
		if err := json.Unmarshal([]byte(raw), &more); err != nil {
			return nil, fmt.Errorf("option %s: it is no list of HCN policies: %w", optPolicies, err)
		}
		doc.Policies = append(doc.Policies, more...)
	}
	if mtu := text(opts[optMTU]); mtu != "" {
		return nil, fmt.Errorf("option %s: the MTU is the uplink's: give a container less with the option %s=[{\"Type\":\"InterfaceParameters\",…}] of its endpoint", optMTU, optPolicies)
	}
	var subnets []hcn.Subnet
	for _, data := range append(append([]poolData{}, in.IPv4Data...), in.IPv6Data...) {
		p, err := netip.ParsePrefix(data.Pool)
		if err != nil || len(subnets) > 16 {
			return nil, fmt.Errorf("pool %.80q is no prefix, or there are too many", data.Pool)
		}
		s := hcn.Subnet{IpAddressPrefix: p.Masked().String()}
		if gw, _, _ := strings.Cut(data.Gateway, "/"); gw != "" {
			all := "0.0.0.0/0"
			if p.Addr().Is6() {
				all = "::/0"
			}
			s.Routes = []hcn.Route{{NextHop: gw, DestinationPrefix: all}}
		}
		subnets = append(subnets, s)
	}
	if len(subnets) > 0 {
		doc.Ipams = []hcn.Ipam{{Subnets: subnets}}
	}
	return doc, nil
}

// deleteNetwork deletes what was made for Docker, and leaves what was shared.
func (d *Driver) deleteNetwork(ctx context.Context, in *endpointCall) (any, error) {
	nw, err := d.networks.find(in.NetworkID)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // it is gone
	}
	if nw.Made {
		if err := d.Daemon.DeleteNetwork(ctx, nw.ID); err != nil && !notFound(err) {
			return nil, fmt.Errorf("delete the network: %w", err)
		}
	}
	return nil, d.networks.set(in.NetworkID, nil)
}

func notFound(err error) bool {
	if api.IsKind(err, api.KindNotFound) {
		return true
	}
	e, ok := errors.AsType[*hcn.Error](err)
	return ok && e.HTTPStatus() == 404
}
