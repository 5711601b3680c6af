package engine

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// PullImage brings an image from its registry.
func (e *Engine) PullImage(ctx context.Context, r api.PullRequest, progress func(api.ImageProgress)) (api.Image, error) {
	img, err := e.opt.Images.Pull(ctx, r, progress)
	e.opt.Meter.Pull(err)
	if err == nil {
		e.event("image", "pull", img.ID, r.Reference, nil)
	}
	return e.counted(img), err
}

// PushImage sends an image to its registry.
func (e *Engine) PushImage(ctx context.Context, r api.PullRequest, progress func(api.ImageProgress)) error {
	err := e.opt.Images.Push(ctx, r, progress)
	if err == nil {
		e.event("image", "push", "", r.Reference, nil)
	}
	return err
}

// ImportImage makes an image of a root file system in a tar archive.
func (e *Engine) ImportImage(ctx context.Context, r io.Reader, reference string, cfg api.ImageConfig) (api.Image, error) {
	img, err := e.opt.Images.Import(ctx, r, reference, cfg)
	if err == nil {
		e.event("image", "import", img.ID, reference, nil)
	}
	return e.counted(img), err
}

// Images lists the local images.
func (e *Engine) Images() ([]api.Image, error) {
	all, err := e.opt.Images.List()
	for i := range all {
		all[i] = e.counted(all[i])
	}
	return all, err
}

// Image is one local image.
func (e *Engine) Image(ref string) (api.Image, error) {
	img, err := e.opt.Images.Inspect(ref)
	return e.counted(img), err
}

func (e *Engine) counted(img api.Image) api.Image {
	e.mu.RLock()
	defer e.mu.RUnlock()
	img.Containers = 0
	for _, c := range e.st.containers {
		if c.Doc.ImageID == img.ID || c.Doc.GuestKernelID == img.ID {
			img.Containers++
		}
	}
	return img
}

// TagImage gives an image a further name.
func (e *Engine) TagImage(_ context.Context, ref, newRef string) error {
	return e.opt.Images.Tag(ref, newRef)
}

// imagesInUse lists the images that containers were made from.
func (e *Engine) imagesInUse() []string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []string
	for _, c := range e.st.containers {
		out = append(out, c.Doc.ImageID)
		if c.Doc.GuestKernelID != "" {
			out = append(out, c.Doc.GuestKernelID)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// RemoveImage removes a name of an image, and the image with its last one.
func (e *Engine) RemoveImage(_ context.Context, ref string, force bool) error {
	err := e.opt.Images.Remove(ref, force, e.imagesInUse())
	if err == nil {
		e.event("image", "remove", "", ref, nil)
	}
	return err
}

// PruneImages removes what no container uses and no name holds.
func (e *Engine) PruneImages(context.Context) ([]string, error) {
	return e.opt.Images.Prune(e.imagesInUse())
}

// Login checks credentials with a registry and keeps them.
func (e *Engine) Login(ctx context.Context, r api.LoginRequest) error {
	return e.opt.Images.Login(ctx, r)
}

// Logout forgets a registry's credentials.
func (e *Engine) Logout(_ context.Context, registry string) error {
	return e.opt.Images.Logout(registry)
}

// NICs lists the host's links that are not ours, as they are now.
func (e *Engine) NICs(ctx context.Context) []api.NIC {
	if err := e.refreshFacts(ctx); err != nil {
		e.log.Warn("list the NICs as they were", "error", err)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []api.NIC
	for i := range e.facts.NICs {
		n := &e.facts.NICs[i]
		row := api.NIC{Name: n.Name, ID: n.GUID, Index: n.Index, MAC: n.MAC.String(), MTU: n.MTU, State: "up", Problem: n.Unfit}
		switch {
		case !n.Up:
			row.State = "down"
		case n.NoCarrier:
			row.State = "no carrier"
		}
		if n.Unfit == "" && n.OneMAC != "" {
			row.Problem = n.OneMAC + ": for L2Bridge and L2Tunnel"
		}
		for _, a := range n.Addrs {
			row.Addresses = append(row.Addresses, a.String())
		}
		for _, net := range e.st.networks {
			if net.Uplink == n.Name {
				row.Networks = append(row.Networks, net.Doc.Name)
			}
		}
		slices.Sort(row.Networks)
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b api.NIC) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Addresses reports who has which address.
func (e *Engine) Addresses() []api.Address {
	e.mu.RLock()
	defer e.mu.RUnlock()
	owners := map[hcn.GUID]string{}
	for _, c := range e.st.containers {
		for _, id := range e.st.inCompartment(c) {
			owners[id] = c.Doc.Name
		}
	}
	var out []api.Address
	for id, n := range e.st.networks {
		for _, s := range n.Doc.AllSubnets() {
			if gw, ok := s.Gateway(); ok && n.Doc.Type != hcn.Private {
				row := api.Address{
					Address: gw.String(), Network: n.Doc.Name, NetworkID: id, Kind: "gateway",
					MAC: n.GatewayMAC.String(), State: "attached", Owner: n.Doc.Owner,
				}
				if plan.OnLAN(n.Doc.Type) { // a router of the LAN
					row.MAC, row.State = "", "outside"
				}
				out = append(out, row)
			}
		}
		for _, ep := range e.st.byNetwork[id] {
			state := "reserved"
			if ep.Attach != nil {
				state = "attached"
			}
			for _, a := range ep.Addrs {
				out = append(out, api.Address{
					Address: a.Addr().String(), Network: n.Doc.Name, NetworkID: id, Kind: "endpoint",
					Endpoint: ep.Doc.ID, Name: ep.Doc.Name, Container: owners[ep.Doc.ID],
					MAC: ep.MAC.String(), State: state, Owner: ep.Doc.Owner,
				})
			}
		}
	}
	for id, r := range e.st.remotes {
		n := e.st.networks[r.Network]
		if n == nil || e.st.endpoints[id] != nil {
			continue
		}
		row := api.Address{Network: n.Doc.Name, NetworkID: r.Network, Kind: "remote", Endpoint: id, MAC: r.MAC.String(), State: "on " + cmp.Or(r.Host, r.Provider.String())}
		if len(r.Names) > 0 {
			row.Name = r.Names[0]
		}
		for _, a := range r.Addrs {
			row.Address = a.String()
			out = append(out, row)
		}
	}
	slices.SortFunc(out, func(a, b api.Address) int {
		x, _ := netip.ParseAddr(a.Address)
		y, _ := netip.ParseAddr(b.Address)
		return cmp.Or(x.Compare(y), cmp.Compare(a.NetworkID, b.NetworkID))
	})
	return out
}

// Published reports every published port.
func (e *Engine) Published() []api.Published {
	e.mu.RLock()
	defer e.mu.RUnlock()
	owners := map[hcn.GUID]string{}
	for _, c := range e.st.containers {
		for _, id := range e.st.inCompartment(c) {
			owners[id] = c.Doc.Name
		}
	}
	var out []api.Published
	for id, ep := range e.st.endpoints {
		for _, f := range plan.Forwards(ep) {
			p := api.Published{
				Protocol: protoText(hcn.Protocol(f.Protocol)), HostPort: f.Port, Target: f.To.String(),
				Endpoint: id, Name: ep.Doc.Name, Container: owners[id], Active: ep.Attach != nil,
			}
			p.Expose = exposeOf(f)
			out = append(out, p)
		}
	}
	for id, b := range e.st.balancers {
		out = append(out, e.publishedBy(id, b)...)
	}
	slices.SortFunc(out, func(a, b api.Published) int {
		return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Target, b.Target), cmp.Compare(a.Expose, b.Expose))
	})
	return out
}

func exposeOf(f plan.Forward) string {
	switch {
	case f.Scope == plan.ScopeAll:
		return "all"
	case f.Scope == plan.ScopeLAN:
		return "lan"
	case f.Bind.IsLoopback():
		return "loopback"
	}
	return f.Bind.String()
}

// publishedBy are the ports of a load balancer that is for the outside as well.
func (e *Engine) publishedBy(id hcn.GUID, b *plan.LoadBalancer) []api.Published {
	var out []api.Published
	for _, f := range plan.BalancerForwards(b, e.st.networks[b.Network]) {
		var ends []string
		for _, ep := range e.view.backends(id, f) {
			ends = append(ends, ep.String())
		}
		out = append(out, api.Published{
			Protocol: protoText(hcn.Protocol(f.Protocol)), HostPort: f.Port, Target: strings.Join(ends, ","), Name: b.Doc.Name,
			Active: true, Expose: exposeOf(f), LoadBalancer: id,
		})
	}
	return out
}

// Doctor checks the host and ourselves.
func (e *Engine) Doctor(ctx context.Context) []api.Check {
	var out []api.Check
	if e.opt.Checks != nil {
		out = e.opt.Checks(ctx)
	}
	for k, err := range e.status.failing() {
		out = append(out, api.Check{
			Name: k.kind + " " + k.id, Status: "fail", Detail: err.Error() + "; it is tried again",
			Next: "look into the daemon's log",
		})
	}
	out = append(out, e.leftovers(ctx)...)
	if err := e.refreshFacts(ctx); err != nil {
		e.log.Warn("check the NICs as they were", "error", err)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	out = append(out, e.mtuCheck())
	out = append(out, e.asideChecks()...)
	out = append(out, e.leaseChecks()...)
	out = append(out, e.tunnelChecks()...)
	out = append(out, e.uplinkChecks()...)
	out = append(out, e.undoneChecks()...)
	used := usedByHost(&e.facts)
	for _, n := range e.st.networks {
		if !hostReaches(&n.Doc) || plan.OnLAN(n.Doc.Type) {
			continue
		}
		for _, s := range n.Doc.AllSubnets() {
			p, err := s.Prefix()
			if err != nil {
				continue
			}
			for _, u := range used {
				if p.Overlaps(u) {
					out = append(out, api.Check{
						Name: "network " + n.Doc.Name, Status: "warn",
						Detail: fmt.Sprintf("subnet %s overlaps %s, which the host uses: containers cannot reach what is there", p, u),
						Next:   "make a network with another subnet and move its containers there",
					})
				}
			}
		}
	}
	return append(out, e.vanishedChecks()...)
}

// vanishedChecks says what became of compartments that somebody took away. A container's own comes back with its next start.
func (e *Engine) vanishedChecks() (out []api.Check) {
	owners := map[hcn.GUID]string{}
	for _, c := range e.st.containers {
		if c.Doc.Namespace != "" && c.Shares == "" && c.In == "" {
			owners[c.Doc.Namespace] = c.Doc.Name
		}
	}
	for id, ns := range e.st.namespaces {
		if !ns.Vanished {
			continue
		}
		const what = "its compartment was removed by somebody else; its endpoints are detached"
		c := api.Check{Name: "namespace " + string(id), Status: "warn", Detail: what, Next: "bulkhead namespace rm " + string(id)}
		if owner := owners[id]; owner != "" {
			c.Detail, c.Next = what+", and container "+owner+" is without a network", "bulkhead restart "+owner
		}
		out = append(out, c)
	}
	return out
}

// mtuCheck is the doctor's line about the size of packets: the uplink's, and what containers send on each network. Locked: e.mu.
func (e *Engine) mtuCheck() api.Check {
	c := api.Check{Name: "MTU", Status: "ok", Detail: "there is no default route; networks that reach out are taken to carry " + itoa(e.facts.UplinkMTU)}
	if e.facts.Uplink != "" {
		c.Detail = fmt.Sprintf("the uplink %s carries packets of %d bytes", e.facts.Uplink, e.facts.UplinkMTU)
	}
	var nets []string
	for id, n := range e.st.networks {
		s := cmp.Or(n.Doc.Name, string(id)) + " " + itoa(plan.SwitchMTU(n, &e.facts))
		if n.Uplink != "" {
			s += " by " + n.Uplink
		}
		nets = append(nets, s)
	}
	slices.Sort(nets)
	if more := len(nets) - maxListed; more > 0 {
		nets = append(nets[:maxListed], fmt.Sprintf("%d more", more))
	}
	if len(nets) > 0 {
		c.Detail += "; containers send up to: " + strings.Join(nets, ", ")
	}
	return c
}

// maxListed bounds a list within a line.
const maxListed = 16

// leftoverWait is how long something may take to go after its row: devices are
// deleted in groups, in the background.
const leftoverWait = time.Second

// leftovers reports what is ours in the kernel, or on the disk, and belongs to
// nothing. What is just coming or going is not meant, so it takes two looks.
func (e *Engine) leftovers(ctx context.Context) []api.Check {
	const name = "leftovers"
	found, err := e.lookForLeftovers(ctx)
	if err == nil && len(found) > 0 {
		select {
		case <-time.After(leftoverWait):
		case <-ctx.Done():
		}
		var again []string
		if again, err = e.lookForLeftovers(ctx); err == nil {
			found = slices.DeleteFunc(found, func(s string) bool { return !slices.Contains(again, s) })
		}
	}
	switch {
	case err != nil:
		return []api.Check{{Name: name, Status: "warn", Detail: err.Error()}}
	case len(found) > 0:
		return []api.Check{{
			Name: name, Status: "warn", Detail: strings.Join(found, ", "),
			Next: "restart the daemon, which removes them, and look into its log if they stay",
		}}
	}
	return []api.Check{{Name: name, Status: "ok"}}
}

func (e *Engine) lookForLeftovers(ctx context.Context) ([]string, error) {
	ids, err := e.opt.Sandbox.List(ctx)
	if err != nil {
		return nil, err
	}
	e.mu.RLock()
	p := plan.Compile(e.st.intent(), &e.facts)
	var out []string
	for _, id := range ids {
		if e.st.containers[id] == nil && !e.st.isAside("container", id) {
			out = append(out, "sandbox "+id)
		}
	}
	e.mu.RUnlock()
	if e.opt.Leftovers == nil {
		return out, nil
	}
	kernel, err := e.opt.Leftovers(ctx, p)
	return append(out, kernel...), err
}

// Info says what this daemon is and holds.
func (e *Engine) Info() api.Info {
	info := e.opt.Info
	images, _ := e.opt.Images.List()
	e.mu.RLock()
	defer e.mu.RUnlock()
	info.HCN, info.Revision = e.HCNVersion(), e.st.rev
	info.Containers, info.Networks, info.Endpoints, info.Images = len(e.st.containers), len(e.st.networks), len(e.st.endpoints), len(images)
	for _, c := range e.st.containers {
		if c.Doc.State.Status == api.StatusRunning {
			info.Running++
		}
	}
	info.Uplink, info.UplinkMTU = e.facts.Uplink, e.facts.UplinkMTU
	return info
}
