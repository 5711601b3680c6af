package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Containers of other runtimes come with a network namespace, and want an
// interface in it. The endpoint of such an attachment has an ID that follows from
// who asked for what, so that asking twice, also with a crash in between, gives
// one; and it ends with the host's run, as the container does. The compartment is
// the runtime's namespace: it goes with the last endpoint in it.

const (
	maxOwner   = 128
	maxForeign = 256 // bytes of an ID, a name or a path
	maxLabels  = 64
	// maxInterface bytes has an interface's name (IFNAMSIZ, less the NUL).
	maxInterface = 15
	maxLabel     = 4096 // bytes of one label
	// maxSets of ranges, and maxRanges in each; maxDNS servers, domains and options together.
	maxSets, maxRanges, maxDNS = 16, 64, 64
)

func checkAttachment(s *api.AttachmentSpec) error {
	bad := func(field, format string, args ...any) error {
		return api.Errorf(api.KindInvalid, "%s: "+format, append([]any{field}, args...)...)
	}
	for _, f := range []struct {
		name, value string
		most        int
		needed      bool
	}{
		{"owner", s.Owner, maxOwner, true},
		{"container", s.Container, maxForeign, true},
		{"netns", s.Netns, maxForeign, !s.Handover},
		{"network", s.Network, maxForeign, true},
		{"interface", s.Interface, maxInterface, false},
		{"runtime", s.Runtime, maxOwner, false},
		{"name", s.Name, maxForeign, false},
	} {
		switch {
		case f.needed && f.value == "":
			return bad(f.name, "it is missing")
		case len(f.value) > f.most:
			return bad(f.name, "%.40q… has %d bytes: at most %d", f.value, len(f.value), f.most)
		case strings.ContainsFunc(f.value, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return bad(f.name, "%.80q has control characters", f.value)
		}
	}
	if s.Netns != "" && !filepath.IsAbs(s.Netns) {
		return bad("netns", "%.80q is no absolute path", s.Netns)
	}
	if len(s.Labels) > maxLabels {
		return bad("labels", "%d are too many: at most %d", len(s.Labels), maxLabels)
	}
	for k, v := range s.Labels {
		if len(k)+len(v) > maxLabel {
			return bad("labels", "%.40q is too long: at most %d bytes", k, maxLabel)
		}
	}
	if len(s.Publish) > 1024 {
		return bad("publish", "at most 1024 published ports to a container")
	}
	if len(s.Ranges) > maxSets {
		return bad("ranges", "%d sets are too many: at most %d", len(s.Ranges), maxSets)
	}
	for i, set := range s.Ranges {
		if len(set) > maxRanges {
			return bad("ranges", "set %d has %d ranges: at most %d", i, len(set), maxRanges)
		}
	}
	if n := len(s.DNS.ServerList) + len(s.DNS.Search) + len(s.DNS.Options); n > maxDNS {
		return bad("dns", "%d servers, domains and options are too many: at most %d", n, maxDNS)
	}
	return checkDNS(&s.DNS)
}

// Attach gives a container of another runtime its place on a network. One that
// has it already keeps it.
func (e *Engine) Attach(ctx context.Context, s api.AttachmentSpec) (api.Attachment, error) {
	if err := checkAttachment(&s); err != nil {
		return api.Attachment{}, err
	}
	if s.Handover {
		return e.handOver(ctx, s)
	}
	if e.opt.Netns == nil {
		return api.Attachment{}, api.Errorf(api.KindUnsupported, "netns: this daemon has no kernel to attach containers in")
	}
	inode, err := e.netnsAt(s.Netns)
	if err != nil {
		return api.Attachment{}, api.Errorf(api.KindInvalid, "netns: %w", err)
	}
	id := api.AttachmentKey{Container: s.Container, Interface: s.Interface}.ID(s.Owner)
	var before, row *plan.Endpoint
	create := func(t *txn) error {
		before = t.st.endpoints[id]
		ns, err := t.adopt(plan.Adopted{Path: s.Netns, Inode: inode})
		if err != nil {
			return err
		}
		switch {
		case before == nil:
			err = t.newAttachment(id, &s)
		case before.Foreign == nil:
			err = api.Errorf(api.KindConflict, "endpoint %s has the ID that this attachment is to have, and is none", id).Hint("bulkhead endpoint rm %s", id)
		default:
			err = t.sameAttachment(before, &s, ns)
		}
		if err != nil {
			return err
		}
		row, err = t.attach(id, ns)
		return err
	}
	err = e.vacant(ctx, func(t *txn) ([]*plan.Endpoint, error) { err := create(t); return []*plan.Endpoint{row}, err })
	if err != nil {
		return api.Attachment{}, asAPI(err)
	}
	rev, err := e.commitOr(ctx, create)
	if err != nil {
		return api.Attachment{}, asAPI(err)
	}
	if err := e.applied(ctx, rev, namespaceObject(row.Attach.Namespace), portObject(id)); err != nil {
		return api.Attachment{}, e.attachFailed(ctx, &s, before, row, err)
	}
	if before == nil || before.Attach == nil {
		if err := e.announce(ctx, id); err != nil {
			return api.Attachment{}, e.attachFailed(ctx, &s, before, row, err)
		}
		if err := e.awaitLeases(ctx, id); err != nil {
			return api.Attachment{}, e.attachFailed(ctx, &s, before, row, err)
		}
	}
	return e.Attachment(id)
}

// attachFailed leaves an endpoint as it was before.
func (e *Engine) attachFailed(ctx context.Context, s *api.AttachmentSpec, before, row *plan.Endpoint, err error) error {
	switch {
	case before == nil:
		e.undo(ctx, "endpoint", string(row.Doc.ID), func(t *txn) { t.dropEndpoint(row.Doc.ID) })
	case before.Attach == nil:
		e.undo(ctx, "endpoint", string(row.Doc.ID), func(t *txn) { t.detachIf(row) })
	}
	return api.Errorf(whyCut(err), "attach container %.40s to network %s: %w", s.Container, s.Network, err)
}

// adopt finds the compartment that a network namespace is, or makes it one.
func (t *txn) adopt(a plan.Adopted) (hcn.GUID, error) {
	for id, ns := range t.st.namespaces {
		if ns.Adopted != nil && ns.Adopted.Inode == a.Inode && !ns.Vanished {
			return id, nil
		}
	}
	row, err := t.newNamespace("", hcn.HostComputeNamespace{Type: hcn.NamespaceTypeHost, SchemaVersion: hcn.V2()})
	if err != nil {
		return "", err
	}
	adopted := *row
	adopted.Implicit, adopted.Adopted = true, &a
	t.putNamespace(row.Doc.ID, &adopted)
	return row.Doc.ID, nil
}

func (t *txn) newAttachment(id hcn.GUID, s *api.AttachmentSpec) error {
	n, err := t.st.findNetwork(s.Network)
	if err != nil {
		return err
	}
	at := s.NetworkAttachment
	picked, err := t.pickInRanges(n, s.Ranges, at.Addresses)
	if err != nil {
		return err
	}
	at.Addresses = slices.Concat(at.Addresses, picked)
	doc, err := networkedEndpoint(n, at, s.DNS.ServerList)
	if err != nil {
		return err
	}
	doc.ID, doc.Name, doc.Owner = id, cmp.Or(s.Name, fmt.Sprintf("%.63s", s.Container)), fmt.Sprintf("%.64s", s.Owner)
	if err := addPublished(&doc, s.Publish, has6(&n.Doc)); err != nil {
		return err
	}
	doc.Policies = append(doc.Policies, s.Policies...)
	row, err := t.newEndpoint(id, n.Doc.ID, doc, t.e.facts.BootID)
	if err != nil {
		return err
	}
	foreign := *row
	foreign.Foreign = &plan.Foreign{
		Owner: s.Owner, Container: s.Container, Interface: s.Interface, Netns: s.Netns, Runtime: s.Runtime, Name: s.Name,
		Labels: maps.Clone(s.Labels), DNS: s.DNS, HoldsPorts: s.PortsHeld, Handover: s.Handover,
	}
	t.putEndpoint(id, &foreign)
	return nil
}

// pickInRanges takes an address of each set of ranges, none of them twice, and none that the endpoint has already.
func (t *txn) pickInRanges(n *plan.Network, sets [][]api.AddressRange, has []string) (picked []string, err error) {
	mine := slices.Clone(has)
	for i, set := range sets {
		in := map[*hcn.Subnet][]ipam.Range{}
		for j, r := range set {
			subnet, within, err := addressRange(&n.Doc, r)
			if err != nil {
				return nil, api.Errorf(api.KindInvalid, "ranges[%d][%d]: %w", i, j, err)
			}
			in[subnet] = append(in[subnet], within)
		}
		var a netip.Addr
		err := error(api.Errorf(api.KindInvalid, "ranges[%d]: it is empty", i))
		for _, subnet := range n.Doc.AllSubnets() {
			if len(in[subnet]) == 0 {
				continue
			}
			if a, err = t.pickAddr(n, subnet, "", without(in[subnet], mine)); err == nil {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("ranges[%d]: %w", i, err)
		}
		picked, mine = append(picked, a.String()), append(mine, a.String())
	}
	return picked, nil
}

// without cuts addresses out of ranges.
func without(ranges []ipam.Range, addrs []string) []ipam.Range {
	var b netipx.IPSetBuilder
	for _, r := range ranges {
		b.AddRange(r)
	}
	for _, text := range addrs {
		if a, err := netip.ParseAddr(text); err == nil { // refused later if it is none
			b.Remove(a)
		}
	}
	set, err := b.IPSet()
	if err != nil {
		return ranges // the builder fails on ranges that are none, and these were checked
	}
	return append([]ipam.Range{}, set.Ranges()...) // not nil: that would be the whole subnet
}

// addressRange finds the subnet of a network that a range is in.
func addressRange(n *hcn.HostComputeNetwork, r api.AddressRange) (*hcn.Subnet, ipam.Range, error) {
	want, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return nil, ipam.Range{}, fmt.Errorf("subnet: %.80q is no prefix", r.Subnet)
	}
	for _, s := range n.AllSubnets() {
		p, err := s.Prefix()
		if err != nil || !p.Contains(want.Addr()) || p.Bits() > want.Bits() {
			continue
		}
		within := netipx.RangeOfPrefix(want)
		for _, end := range []struct {
			name, text string
			set        func(netip.Addr)
		}{
			{"first", r.First, func(a netip.Addr) { within = netipx.IPRangeFrom(a, within.To()) }},
			{"last", r.Last, func(a netip.Addr) { within = netipx.IPRangeFrom(within.From(), a) }},
		} {
			if end.text == "" {
				continue
			}
			a, err := netip.ParseAddr(end.text)
			if err != nil || !want.Contains(a) {
				return nil, within, fmt.Errorf("%s: %.80q is no address of %s", end.name, end.text, want)
			}
			end.set(a)
		}
		if !within.IsValid() {
			return nil, within, fmt.Errorf("first: %s is after last, %s", r.First, r.Last)
		}
		return s, within, nil
	}
	return nil, ipam.Range{}, fmt.Errorf("subnet: network %q has no subnet that %s is in", n.Name, want)
}

// sameAttachment refuses to take an attachment for another that has its name.
func (t *txn) sameAttachment(had *plan.Endpoint, s *api.AttachmentSpec, ns hcn.GUID) error {
	n, err := t.st.findNetwork(s.Network)
	if err != nil {
		return err
	}
	if had.Doc.HostComputeNetwork != n.Doc.ID {
		other := t.st.networks[had.Doc.HostComputeNetwork]
		return api.Errorf(api.KindConflict, "container %.40s: its interface %q of %q is on network %q, and not on %q", s.Container, s.Interface, s.Owner, networkName(other), n.Doc.Name).
			Hint("detach it there first")
	}
	if had.Attach != nil && had.Attach.Namespace != ns {
		return api.Errorf(api.KindConflict, "container %.40s: its interface %q is in another network namespace, %s", s.Container, s.Interface, had.Foreign.Netns).
			Hint("detach it there first")
	}
	return nil
}

func networkName(n *plan.Network) string {
	if n == nil {
		return ""
	}
	return n.Doc.Name
}

// Detach takes an attachment away: its addresses and ports are free. One that is
// not there is an error of kind "not found".
func (e *Engine) Detach(ctx context.Context, id hcn.GUID) error {
	rev, err := e.commitOr(ctx, func(t *txn) error {
		if ep := t.st.endpoints[id]; ep == nil || ep.Foreign == nil {
			return noAttachment(id)
		}
		t.dropEndpoint(id)
		return nil
	})
	if err == nil {
		err = e.cutOff(ctx, rev)
	}
	return asAPI(err)
}

func noAttachment(id hcn.GUID) error {
	return api.Errorf(api.KindNotFound, "no attachment has the ID %s", id).Hint("bulkhead ps")
}

// CollectAttachments detaches what an owner does not know any more, and tells how
// much that was.
func (e *Engine) CollectAttachments(ctx context.Context, gc api.AttachmentGC) (gone []hcn.GUID, err error) {
	if gc.Owner == "" {
		return nil, api.Errorf(api.KindInvalid, "owner: it is missing: nobody's attachments are everybody's")
	}
	keep := map[hcn.GUID]bool{}
	for _, k := range gc.Keep {
		keep[k.ID(gc.Owner)] = true
	}
	rev, err := e.commitOr(ctx, func(t *txn) error {
		gone = nil
		for id, ep := range t.st.endpoints {
			if ep.Foreign != nil && ep.Foreign.Owner == gc.Owner && !keep[id] {
				gone = append(gone, id)
			}
		}
		slices.Sort(gone)
		for _, id := range gone {
			t.dropEndpoint(id)
		}
		return nil
	})
	if err == nil {
		err = e.cutOff(ctx, rev)
	}
	return gone, asAPI(err)
}

// Attachments lists those of an owner, or of all, oldest first.
func (e *Engine) Attachments(owner string) []api.Attachment {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var rows []*plan.Endpoint
	for _, ep := range e.st.endpoints {
		if ep.Foreign != nil && (owner == "" || ep.Foreign.Owner == owner) {
			rows = append(rows, ep)
		}
	}
	slices.SortFunc(rows, func(a, b *plan.Endpoint) int { return cmp.Compare(a.Seq, b.Seq) })
	out := make([]api.Attachment, len(rows))
	for i, ep := range rows {
		out[i] = e.attachmentDoc(ep)
	}
	return out
}

// Attachment is one of them.
func (e *Engine) Attachment(id hcn.GUID) (api.Attachment, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep := e.st.endpoints[id]
	if ep == nil || ep.Foreign == nil {
		return api.Attachment{}, noAttachment(id)
	}
	return e.attachmentDoc(ep), nil
}

// CheckAttachment tells what is wrong with an attachment, if anything is.
func (e *Engine) CheckAttachment(id hcn.GUID) (api.Attachment, error) {
	a, err := e.Attachment(id)
	if err != nil {
		return a, err
	}
	if a.Namespace == "" {
		return a, api.Errorf(api.KindConflict, "attachment %s: its network namespace %s has vanished", id, a.Netns).Hint("detach it")
	}
	if ns := e.adoptedAt(a.Namespace); ns != nil && ns.Inode == 0 {
		return a, api.Errorf(api.KindConflict, "attachment %s: its interface waits to be moved into %s", id, a.Netns)
	}
	if inode, err := e.netnsAt(a.Netns); err != nil {
		return a, api.Errorf(api.KindConflict, "attachment %s: %w", id, err).Hint("detach it")
	} else if ns := e.adoptedAt(a.Namespace); ns == nil || ns.Inode != inode {
		return a, api.Errorf(api.KindConflict, "attachment %s: another network namespace is at %s now", id, a.Netns).Hint("detach it")
	}
	if err := e.status.failing()[portObject(id)]; err != nil {
		return a, api.Errorf(api.KindConflict, "attachment %s: %w", id, err).Hint("it is tried again; see the daemon's log")
	}
	return a, nil
}

// netnsAt is the number of another runtime's network namespace. Compartments that we made are refused, whatever they are called
// there: their endpoints are told by their own names.
func (e *Engine) netnsAt(path string) (uint64, error) {
	inode, compartment, err := e.opt.Netns(path)
	if err != nil || compartment == "" {
		return inode, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if compartment == plan.NamespacePath(plan.ResolverNamespace) {
		return 0, fmt.Errorf("%s is the compartment of our resolver: name that of a container", path)
	}
	if compartment == plan.NamespacePath(plan.SecureNamespace) {
		return 0, fmt.Errorf("%s is the compartment of encrypted networks: name that of a container", path)
	}
	for id, ns := range e.st.namespaces {
		if plan.NamespacePath(id) == compartment && ns.Adopted == nil {
			return 0, fmt.Errorf("%s is a compartment of ours: name its HCN namespace %s instead", path, id)
		}
	}
	return inode, nil
}

func (e *Engine) adoptedAt(namespace hcn.GUID) *plan.Adopted {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if ns := e.st.namespaces[namespace]; ns != nil {
		return ns.Adopted
	}
	return nil
}

// attachmentDoc shows an attachment. Locked: e.mu.
func (e *Engine) attachmentDoc(ep *plan.Endpoint) api.Attachment {
	f := ep.Foreign
	out := api.Attachment{
		ID: ep.Doc.ID, Owner: f.Owner, Container: f.Container, Runtime: f.Runtime, Name: f.Name, Labels: f.Labels, Netns: f.Netns,
		Endpoint: e.st.endpointSummary(ep),
	}
	if ep.Attach == nil {
		return out
	}
	out.Namespace = ep.Attach.Namespace
	if p := e.view.port(plan.EndpointPortID(ep.Doc.ID)); p != nil {
		out.HostInterface, out.MTU = p.Device, p.VNIC.MTU
		for _, r := range p.VNIC.Routes {
			via := ""
			if r.Via.IsValid() {
				via = r.Via.String()
			}
			out.Routes = append(out.Routes, api.AttachmentRoute{Destination: r.Dst.String(), Gateway: via})
		}
	}
	as := &containerRow{Endpoints: []hcn.GUID{ep.Doc.ID}}
	out.DNS = ep.Doc.Clone().Dns
	out.DNS.ServerList = e.st.resolvers(as, f.DNS.ServerList, e.facts.Resolvers)
	out.DNS.Domain = cmp.Or(f.DNS.Domain, out.DNS.Domain)
	if len(f.DNS.Search) > 0 {
		out.DNS.Search = f.DNS.Search
	}
	if len(f.DNS.Options) > 0 {
		out.DNS.Options = f.DNS.Options
	}
	return out
}
