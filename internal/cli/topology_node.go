package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// node describes the endpoints that one compartment has on one network.
func (t topology) node(n hcn.HostComputeNetwork, endpoints []hcn.HostComputeEndpoint, l lines) node {
	slices.SortFunc(endpoints, func(a, b hcn.HostComputeEndpoint) int {
		return cmp.Or(cmp.Compare(t.interfaceOf(a), t.interfaceOf(b)), cmp.Compare(a.ID, b.ID))
	})
	ns := endpoints[0].HostComputeNamespace
	residents := t.residents(endpoints[0])
	name := cmp.Or(endpoints[0].Name, "endpoint "+shortID(string(endpoints[0].ID)))
	if len(residents) > 0 {
		names := make([]string, len(residents))
		for i, c := range residents {
			names[i] = c.Name
		}
		name = strings.Join(names, " + ")
	}
	out := node{title: noteRow{{name, bold}}, rows: []noteRow{{{t.compartment(ns), plain}}}}
	if len(residents) > 0 {
		out.title = append(out.title, statusCell(residents[0]))
	}
	for _, e := range endpoints {
		out.rows = append(out.rows, t.vnic(e, l)...)
	}
	if also := t.otherNetworks(n, ns); len(also) > 0 {
		out.rows = append(out.rows, noteRow{{"also on " + strings.Join(also, ", "), dim}})
	}
	return out
}

// compartment names a compartment by its number, which is short, and by the
// begin of its GUID, which finds it in /run/netns.
func (t topology) compartment(ns hcn.GUID) string {
	if ns.IsZero() {
		return "not attached"
	}
	head, _, _ := strings.Cut(ns.Lower(), "-")
	for _, n := range t.namespaces {
		if n.ID == ns && n.NamespaceId != 0 {
			return fmt.Sprintf("compartment %d hns-%s", n.NamespaceId, head)
		}
	}
	return "compartment hns-" + head
}

// vnic describes one endpoint: interface and MAC, addresses, published ports.
func (t topology) vnic(e hcn.HostComputeEndpoint, l lines) []noteRow {
	name := cmp.Or(t.interfaceOf(e), "vNIC")
	rows := []noteRow{{{name, bold}, {" " + l.dot + " " + string(e.MacAddress), plain}}}
	for _, ip := range e.IpConfigurations {
		text := ip.IpAddress
		if ip.PrefixLength != 0 {
			text += fmt.Sprintf("/%d", ip.PrefixLength)
		}
		rows = append(rows, noteRow{{text, cyan}})
	}
	for _, p := range t.published {
		if p.Endpoint != e.ID {
			continue
		}
		port := p.Target
		if a, err := netip.ParseAddrPort(p.Target); err == nil {
			port = fmt.Sprint(a.Port())
		}
		text := fmt.Sprintf("%s %d %s %s/%s", p.Expose, p.HostPort, l.arrow, port, p.Protocol)
		row := noteRow{{text, yellow}}
		if !slices.ContainsFunc(rows, func(r noteRow) bool { return slices.Equal(r, row) }) {
			rows = append(rows, row)
		}
	}
	return rows
}

// interfaceOf is the name of an endpoint's vNIC in its compartment, as far as it
// is known.
func (t topology) interfaceOf(e hcn.HostComputeEndpoint) string {
	for _, c := range t.containers {
		for _, ce := range c.Endpoints {
			if ce.ID == e.ID {
				return ce.Interface
			}
		}
	}
	for _, p := range e.Policies {
		if s, err := p.Decode(); err == nil {
			if name, ok := s.(hcn.InterfaceNameSetting); ok {
				return name.Name
			}
		}
	}
	return ""
}

func (t topology) containerOf(e hcn.HostComputeEndpoint) (api.Container, bool) {
	for _, c := range t.containers {
		if slices.ContainsFunc(c.Endpoints, func(ce api.ContainerEndpoint) bool { return ce.ID == e.ID }) {
			return c, true
		}
	}
	return api.Container{}, false
}

// residents are the containers in an endpoint's compartment, the one that brought
// the endpoint along first.
func (t topology) residents(e hcn.HostComputeEndpoint) []api.Container {
	var out []api.Container
	owner, owned := t.containerOf(e)
	if owned {
		out = append(out, owner)
	}
	if e.HostComputeNamespace.IsZero() {
		return out
	}
	for _, c := range t.containers {
		if c.Namespace == e.HostComputeNamespace && (!owned || c.ID != owner.ID) {
			out = append(out, c)
		}
	}
	return out
}

// otherNetworks are the further networks of a compartment.
func (t topology) otherNetworks(n hcn.HostComputeNetwork, ns hcn.GUID) []string {
	if ns.IsZero() {
		return nil
	}
	var out []string
	for _, e := range t.endpoints {
		if e.HostComputeNamespace != ns || e.HostComputeNetwork == n.ID {
			continue
		}
		for _, other := range t.networks {
			if other.ID == e.HostComputeNetwork && !slices.Contains(out, other.Name) {
				out = append(out, other.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// unconnected are the containers that have no vNIC.
func (t topology) unconnected() []node {
	var out []node
	for _, c := range t.containers {
		shared := slices.ContainsFunc(t.endpoints, func(e hcn.HostComputeEndpoint) bool {
			return !c.Namespace.IsZero() && e.HostComputeNamespace == c.Namespace
		})
		if len(c.Endpoints) > 0 || shared {
			continue
		}
		out = append(out, node{
			title: noteRow{{c.Name, bold}, statusCell(c)}, rows: []noteRow{{{t.compartment(c.Namespace), plain}}},
		})
	}
	return out
}

func (t topology) drawUnconnected(c *canvas, nodes []node, y int) int {
	c.text(switchColumn, y, c.width-switchColumn-3, "on no network", dim)
	size := 0
	for _, n := range nodes {
		size = max(size, n.title.width()+8, n.rows[0].width()+4)
	}
	room := c.width - 2 - firstBox
	size = min(size, room)
	perRow := max(1, (room+2)/(size+2))
	y++
	for group := range slices.Chunk(nodes, perRow) {
		for i, n := range group {
			x := firstBox + i*(size+2)
			c.box(x, y, x+size-1, y+2, n.title)
			drawRow(c, x+2, y+1, size-4, n.rows[0])
		}
		y += 3
	}
	return y
}

func statusCell(c api.Container) cell {
	if c.State.Paused {
		return cell{" paused", statusStyle(api.StatusStopping)}
	}
	return cell{" " + c.State.Status, statusStyle(c.State.Status)}
}

// statusStyle is the colour of a container's status.
func statusStyle(status string) style {
	switch status {
	case api.StatusRunning:
		return green
	case api.StatusFailed, api.StatusRemoving:
		return red
	case api.StatusStarting, api.StatusStopping, api.StatusRestarting:
		return yellow
	}
	return dim
}
