package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const containerIDLen = 64

// containerRow is the stored form of a container.
type containerRow struct {
	Doc api.Container
	Seq uint64
	// Want says that the container should be running: `start` sets it, `stop`
	// clears it, and a restart policy decides for it when the process ends.
	Want bool
	// Stopped says that a user stopped it: unless-stopped leaves it alone after
	// a restart of the daemon or the host.
	Stopped bool
	// Stopping is what a stop that is under way was asked for: it goes on after a
	// restart of the daemon as it began.
	Stopping *stopping
	// Removing says that it is on its way out, whatever cuts the way short.
	Removing bool
	// Endpoints it brought along and takes with it, in order of attachment.
	Endpoints []hcn.GUID
	// Shares names the container whose compartment it uses, "" for its own.
	Shares string
	// In is the namespace, made by a client of HCN, that its VM is in; "": one comes and goes with it.
	In hcn.GUID `json:",omitempty"`
}

func newContainerID() string {
	var b [containerIDLen / 2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// find resolves a reference: an ID, a name, or an unambiguous start of an ID.
func (s *state) find(ref string) (*containerRow, error) {
	if c := s.containers[ref]; c != nil {
		return c, nil
	}
	if id, ok := s.ctrNames[ref]; ok {
		return s.containers[id], nil
	}
	var found *containerRow
	for id, c := range s.containers {
		if ref != "" && strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, api.Errorf(api.KindConflict, "container %q: several IDs start so", ref).Hint("give more of the ID, or the name")
			}
			found = c
		}
	}
	if found == nil {
		return nil, api.Errorf(api.KindNotFound, "container %q does not exist", ref).Hint("bulkhead ps -a")
	}
	return found, nil
}

// Containers lists all containers, oldest first.
func (e *Engine) Containers() []api.Container {
	e.mu.RLock()
	defer e.mu.RUnlock()
	rows := slices.SortedFunc(maps.Values(e.st.containers), func(a, b *containerRow) int { return cmp.Compare(a.Seq, b.Seq) })
	out := make([]api.Container, len(rows))
	for i, c := range rows {
		out[i] = e.st.containerDoc(c)
	}
	return out
}

// Container is the document of one container.
func (e *Engine) Container(ref string) (api.Container, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	c, err := e.st.find(ref)
	if err != nil {
		return api.Container{}, err
	}
	doc := e.st.containerDoc(c)
	for i := range doc.Endpoints {
		doc.Endpoints[i].Leases = e.leaseDocs(e.st.endpoints[doc.Endpoints[i].ID])
	}
	return doc, nil
}

func (s *state) containerDoc(c *containerRow) api.Container {
	doc := c.Doc
	doc.Endpoints, doc.VirtualMachineID = nil, s.machineOf(c)
	for _, id := range s.inCompartment(c) {
		if ep := s.endpoints[id]; ep != nil {
			doc.Endpoints = append(doc.Endpoints, s.endpointSummary(ep))
		}
	}
	return doc
}

// endpointSummary is an endpoint as its container shows it.
func (s *state) endpointSummary(ep *plan.Endpoint) api.ContainerEndpoint {
	sum := api.ContainerEndpoint{ID: ep.Doc.ID, MAC: ep.MAC.String(), Ports: portTexts(ep)}
	n := s.networks[ep.Doc.HostComputeNetwork]
	if n != nil {
		sum.Network = n.Doc.Name
	}
	if ep.Attach != nil {
		sum.Interface = ep.Attach.Interface
	}
	if unapproved(ep) {
		sum.Addresses, sum.Undone = []string{}, cmp.Or(ep.Trial.Why, "its attachment was not confirmed")
		return sum
	}
	for _, a := range ep.Addrs {
		sum.Addresses = append(sum.Addresses, a.String())
	}
	for _, via := range plan.Gateways(ep, n) {
		sum.Gateways = append(sum.Gateways, via.String())
	}
	return sum
}

// portTexts writes published ports as people read them.
func portTexts(ep *plan.Endpoint) []string {
	mappings, err := ep.Doc.PortMappings()
	if err != nil {
		return nil
	}
	var out []string
	for _, m := range mappings {
		where := "all"
		if a, ok := m.Addr(); ok {
			where = a.String()
			if a.Is6() {
				where = "[" + where + "]"
			}
		} else if m.Scope == hcn.ScopeLAN {
			where = "lan"
		}
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", where, m.ExternalPort, m.InternalPort, protoText(m.Protocol)))
	}
	return out
}

func protoText(p hcn.Protocol) string {
	switch p {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	default:
		return itoa(int(p))
	}
}

// CreateContainer makes a container: its name, addresses, MACs and ports are its
// own from here on. It does not start it.
func (e *Engine) CreateContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error) {
	return e.createContainer(ctx, spec, func(*txn, *containerRow) error { return nil })
}

// RunContainer makes a container and starts it. One that does not start is there, unless it is to be removed at its end.
func (e *Engine) RunContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error) {
	made, err := e.createContainer(ctx, spec, func(t *txn, c *containerRow) error {
		if rehearsing(ctx) == nil {
			return nil // the start has steps of its own
		}
		row := *c
		err := t.enterCompartment(&row, byUser)
		t.putContainer(row.Doc.ID, &row)
		return err
	})
	if err != nil {
		return made, err
	}
	return made, e.StartContainer(ctx, made.ID)
}

// createContainer makes a container; also is part of the change.
func (e *Engine) createContainer(ctx context.Context, spec api.ContainerSpec, also func(*txn, *containerRow) error) (api.ContainerCreated, error) {
	if spec.Isolation == "" && spec.Host == nil && !strings.Contains(spec.NetworkMode, ":") { // the compartment decides
		spec.Isolation = e.opt.Isolation
	}
	vmOf, err := e.joinVM(&spec)
	if err != nil {
		return api.ContainerCreated{}, err
	}
	if err := checkSpec(&spec); err != nil {
		return api.ContainerCreated{}, err
	}
	img, err := e.opt.Images.Inspect(spec.Image)
	if err != nil {
		return api.ContainerCreated{}, err
	}
	id := newContainerID()
	kernel, warnings, err := e.checkSandbox(ctx, id, vmOf, spec, img)
	if err != nil {
		return api.ContainerCreated{}, sandboxError("create container "+cmp.Or(spec.Name, "of image "+spec.Image), err)
	}
	// Unpacking now finds out what is wrong with the image before anything is
	// made for it.
	if rehearsing(ctx) == nil {
		if _, err := e.opt.Images.Layers(ctx, img.ID); err != nil {
			return api.ContainerCreated{}, err
		}
		e.opt.Step("create-container")
	}
	first, giveBack := hcn.GUID(""), func() {}
	if spec.NetworkMode == "" {
		first, giveBack = e.promised(ctx)
	}
	var row *containerRow
	create := func(t *txn) error {
		var err error
		if row, err = t.newContainer(id, first, spec, img); err == nil {
			row.Doc.GuestKernelID = kernel
			t.putContainer(id, row)
			err = also(t, row)
		}
		return err
	}
	err = e.vacant(ctx, func(t *txn) (eps []*plan.Endpoint, err error) {
		if err = create(t); err == nil {
			for _, id := range row.Endpoints {
				eps = append(eps, t.st.endpoints[id])
			}
		}
		return eps, err
	})
	if err == nil {
		_, err = e.commitOr(ctx, create)
	}
	if err != nil {
		giveBack()
		return api.ContainerCreated{}, asAPI(err)
	}
	e.event("container", "create", id, row.Doc.Name, map[string]string{"image": spec.Image})
	return api.ContainerCreated{ID: id, Name: row.Doc.Name, Warnings: warnings}, nil
}

// asAPI turns an HCN error into one of /v1, keeping its words.
func asAPI(err error) error {
	var h *hcn.Error
	if a := (*api.Error)(nil); errors.As(err, &a) || !errors.As(err, &h) {
		return err
	}
	kind := api.KindInternal
	switch h.HTTPStatus() {
	case 400:
		kind = api.KindInvalid
	case 404:
		kind = api.KindNotFound
	case 409:
		kind = api.KindConflict
	case 501:
		kind = api.KindUnsupported
	case 503:
		kind = api.KindUnavailable
	}
	return api.Errorf(kind, "%w", err)
}

// newContainer makes a container; first is the ID of its first endpoint, or none.
func (t *txn) newContainer(id string, first hcn.GUID, spec api.ContainerSpec, img api.Image) (*containerRow, error) {
	if spec.Name == "" {
		spec.Name = t.freeName()
	}
	if other, ok := t.st.ctrNames[spec.Name]; ok {
		return nil, api.Errorf(api.KindConflict, "the name %q belongs to container %.12s", spec.Name, other).Hint("bulkhead rm %s, or choose another name", spec.Name)
	}
	row := &containerRow{Seq: t.nextSeq(), Doc: api.Container{
		ID: id, Name: spec.Name, Created: time.Now().UTC(), Spec: spec, ImageID: img.ID,
		State: api.ContainerState{Status: api.StatusCreated},
	}}
	if ref, ok := strings.CutPrefix(spec.NetworkMode, "container:"); ok {
		other, err := t.st.find(ref)
		if err != nil {
			return nil, err
		}
		if other.Doc.Spec.Isolation != spec.Isolation {
			return nil, api.Errorf(api.KindConflict, "networkMode: container %s has %s isolation now", other.Doc.Name, other.Doc.Spec.Isolation).Hint("try again")
		}
		row.Shares = other.Doc.ID
	}
	if ref, ok := strings.CutPrefix(spec.NetworkMode, "namespace:"); ok {
		ns, err := t.st.guestNamespace(ref)
		if err == nil {
			err = t.occupied(ns.Doc.ID, id)
		}
		if err != nil {
			return nil, err
		}
		row.In = ns.Doc.ID
	}
	if spec.NetworkMode == "" {
		nets := spec.Networks
		if len(nets) == 0 {
			nets = []api.NetworkAttachment{{Network: DefaultNetworkName}}
		}
		for i, a := range nets {
			ep, err := t.containerEndpoint(first, row, a, i == 0)
			first = ""
			if err != nil {
				return nil, err
			}
			if twice := slices.ContainsFunc(row.Endpoints, func(id hcn.GUID) bool {
				return t.st.endpoints[id].Doc.HostComputeNetwork == ep.Doc.HostComputeNetwork
			}); twice {
				return nil, api.Errorf(api.KindInvalid, "networks[%d]: network %s is named twice", i, a.Network).Hint("a container has one endpoint on a network: name it once")
			}
			row.Endpoints = append(row.Endpoints, ep.Doc.ID)
		}
	}
	if err := t.checkSlots(row); err != nil {
		return nil, err
	}
	t.putContainer(id, row)
	return row, nil
}

// containerEndpoint makes the endpoint by which a container is on a network. The
// first one carries the published ports.
func (t *txn) containerEndpoint(id hcn.GUID, c *containerRow, a api.NetworkAttachment, first bool) (*plan.Endpoint, error) {
	n, err := t.st.findNetwork(a.Network)
	if err != nil {
		return nil, err
	}
	doc, err := networkedEndpoint(n, a, c.Doc.Spec.DNS.ServerList)
	if err != nil {
		return nil, err
	}
	doc.Name, doc.Owner = c.Doc.Name, "bulkhead"
	if first {
		if err := addPublished(&doc, c.Doc.Spec.Publish, has6(&n.Doc)); err != nil {
			return nil, err
		}
	}
	return t.newEndpoint(id, n.Doc.ID, doc, "")
}

// networkedEndpoint is the document of an endpoint that a container gets on a network, with name servers of its own or not.
func networkedEndpoint(n *plan.Network, a api.NetworkAttachment, servers []string) (hcn.HostComputeEndpoint, error) {
	doc := hcn.HostComputeEndpoint{HostComputeNetwork: n.Doc.ID, MacAddress: hcn.MAC(a.MAC), SchemaVersion: hcn.V2()}
	if len(servers) > 0 {
		doc.Dns = n.Doc.Clone().Dns
		doc.Dns.ServerList = slices.Clone(servers)
	}
	if err := containerAddresses(&doc, n, a.Addresses); err != nil {
		return doc, err
	}
	if len(a.Aliases) > 0 {
		doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.Aliases, hcn.AliasesSetting{Names: a.Aliases}))
	}
	if a.Interface != "" {
		doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.InterfaceName, hcn.InterfaceNameSetting{Name: a.Interface}))
	}
	if a.GatewayPriority != 0 {
		doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.GatewayPriority, hcn.GatewayPrioritySetting{Priority: a.GatewayPriority}))
	}
	if a.Isolated {
		doc.Flags |= hcn.DisableInterComputeCommunication
	}
	if a.DNSFirst {
		doc.Flags |= hcn.OverrideDNSServerOrder
	}
	doc.Policies = append(doc.Policies, hcn.RatePolicies(a.RateOut, a.RateIn)...)
	return doc, nil
}

// addPublished adds ports that users want to an endpoint's document.
func addPublished(doc *hcn.HostComputeEndpoint, ports []api.PublishedPort, v6 bool) error {
	for i, p := range ports {
		policies, err := publishPolicies(p, v6)
		if err != nil {
			return fmt.Errorf("publish[%d]: %w", i, err)
		}
		doc.Policies = append(doc.Policies, policies...)
	}
	return nil
}

func has6(n *hcn.HostComputeNetwork) bool { return subnetOf(n, false) != nil }

func subnetOf(n *hcn.HostComputeNetwork, v4 bool) *hcn.Subnet {
	for _, s := range n.AllSubnets() {
		if p, err := s.Prefix(); err == nil && p.Addr().Is4() == v4 {
			return s
		}
	}
	return nil
}

// containerAddresses takes the addresses a user gave; a family without one gets
// one of the network's.
func containerAddresses(doc *hcn.HostComputeEndpoint, n *plan.Network, given []string) error {
	if len(given) == 0 {
		return nil
	}
	have := map[bool]bool{}
	for _, g := range given {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return api.Errorf(api.KindInvalid, "address %.80q on network %q: %w", g, n.Doc.Name, err)
		}
		have[a.Is4()] = true
		doc.IpConfigurations = append(doc.IpConfigurations, hcn.IpConfig{IpAddress: a.String()})
	}
	for _, v4 := range []bool{true, false} {
		if n.Doc.Dhcp() {
			break // the LAN's server gives an endpoint all of its addresses, or none
		}
		if s := subnetOf(&n.Doc, v4); s != nil && !have[v4] {
			doc.IpConfigurations = append(doc.IpConfigurations, hcn.IpConfig{IpSubnetId: s.ID})
		}
	}
	return nil
}

// findNetwork resolves a name or a GUID.
func (s *state) findNetwork(ref string) (*plan.Network, error) {
	if id, ok := s.netNames[ref]; ok {
		return s.networks[id], nil
	}
	if id, err := hcn.ParseGUID(ref); err == nil && s.networks[id] != nil {
		return s.networks[id], nil
	}
	return nil, api.Errorf(api.KindNotFound, "network %.80q does not exist", ref).Hint("bulkhead network ls, or bulkhead network create %.80s", ref)
}

// publishPolicies turns a user's wish into port mappings: the default exposes a
// port to the host itself, and nothing wider is ever assumed.
func publishPolicies(p api.PublishedPort, v6 bool) ([]hcn.EndpointPolicy, error) {
	m := hcn.PortMappingPolicySetting{}
	switch p.Protocol {
	case "", "tcp":
		m.Protocol = 6
	case "udp":
		m.Protocol = 17
	default:
		return nil, api.Errorf(api.KindInvalid, "protocol %.20q is not tcp or udp", p.Protocol).Hint("write 8080:80, 8080:80/tcp or 8080:80/udp")
	}
	var binds []hcn.PortMappingPolicySetting
	switch p.Expose {
	case "", "loopback":
		m.VIP = "127.0.0.1"
		binds = append(binds, m)
		if v6 {
			m.VIP = "::1"
			binds = append(binds, m)
		}
	case "all":
		binds = append(binds, m)
	case "lan":
		m.Scope = hcn.ScopeLAN
		binds = append(binds, m)
	default:
		a, err := netip.ParseAddr(p.Expose)
		if err != nil {
			return nil, api.Errorf(api.KindInvalid, "expose %.80q is not loopback, lan, all or an address", p.Expose).
				Hint("use loopback for this host alone, lan for its networks, or an address of this host")
		}
		if m.VIP = a.Unmap().String(); a.IsUnspecified() {
			m.VIP = ""
		}
		binds = append(binds, m)
	}
	count := max(int(p.Count), 1)
	if p.ContainerPort == 0 {
		return nil, api.Errorf(api.KindInvalid, "containerPort is missing").Hint("write HOSTPORT:CONTAINERPORT, as in 8080:80")
	}
	if int(p.ContainerPort)+count > 1<<16 || p.HostPort != 0 && int(p.HostPort)+count > 1<<16 {
		return nil, api.Errorf(api.KindInvalid, "the range of %d ports from %d goes beyond 65535", count, max(p.ContainerPort, p.HostPort)).Hint("begin lower, or publish fewer")
	}
	var out []hcn.EndpointPolicy
	for i := range count {
		for _, b := range binds {
			b.InternalPort = p.ContainerPort + uint16(i)
			if p.HostPort != 0 {
				b.ExternalPort = p.HostPort + uint16(i)
			}
			out = append(out, b.Policy())
		}
	}
	return out, nil
}

// freeName makes a name nobody has: two words, as the field does it.
func (t *txn) freeName() string {
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		name := nameFirst[int(b[0])%len(nameFirst)] + "-" + nameSecond[int(b[1])%len(nameSecond)]
		if _, ok := t.st.ctrNames[name]; !ok {
			return name
		}
		name += "-" + hex.EncodeToString(b[2:])
		if _, ok := t.st.ctrNames[name]; !ok {
			return name
		}
	}
}

// Parts of ships and what they are like.
var (
	nameFirst = []string{
		"brave", "bright", "calm", "clever", "deep", "eager", "fair", "firm", "fleet", "grand", "keen", "level",
		"light", "lucid", "merry", "mighty", "neat", "noble", "patient", "proud", "quick", "quiet", "ready", "sharp",
		"sober", "solid", "steady", "stout", "swift", "tidy", "true", "vivid",
	}
	nameSecond = []string{
		"anchor", "ballast", "beam", "bilge", "bow", "bowsprit", "bridge", "capstan", "cleat", "deck", "fender", "forecastle",
		"galley", "hatch", "hawser", "helm", "hull", "jib", "keel", "lantern", "mast", "oar", "porthole", "prow",
		"rigging", "rudder", "sail", "sextant", "spar", "stern", "tiller", "windlass",
	}
)

func hostnameOf(id string, s *api.ContainerSpec) string {
	if s.Hostname != "" {
		return s.Hostname
	}
	return id[:12]
}
