package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// The picture, from outside to inside:
//
//	┌── host ────────────────────────────┐
//	│ uplink                             │
//	│ │                                  │   the spine: the way out
//	│ ├─NAT─┌─── network ────────────┐   │   a switch, its host port inside
//	│ │     └─┬──┬───────────┬───────┘   │   its other ports
//	│ │       │ ┌┴─ web ──┐ ┌┴─ db ──┐   │   compartments with their vNICs
//	│ │       │ └─────────┘ └────────┘   │
//	│ │       └──┬                       │   the trunk goes on to the next row
//	└────────────────────────────────────┘

// topology is everything that the picture shows.
type topology struct {
	info       api.Info
	networks   []hcn.HostComputeNetwork
	endpoints  []hcn.HostComputeEndpoint
	namespaces []hcn.HostComputeNamespace
	containers []api.Container
	published  []api.Published
}

// The columns of the picture.
const (
	spineColumn  = 2
	switchColumn = 8
	trunkColumn  = 10
	firstBox     = 13
	minWidth     = 48
	maxWidth     = 132
)

// node is a box below a switch: a compartment, or an endpoint that has none.
type node struct {
	title noteRow
	rows  []noteRow
}

// noteRow is a line in a node: a few words, each with a style.
type noteRow []cell

func (r noteRow) width() int {
	n := 0
	for _, c := range r {
		n += width(clean(c.text))
	}
	return n
}

// draw makes the picture.
func (t topology) draw(columns int, l lines) *canvas {
	c := newCanvas(min(max(columns, minWidth), maxWidth), l)
	y := t.drawHost(c)
	var exits []int // the rows where a switch meets the spine
	for _, n := range t.networks {
		y++
		if n.Type == hcn.NAT || n.Type == hcn.ICS {
			exits = append(exits, y+1)
		}
		y = t.drawNetwork(c, n, y)
	}
	if lone := t.unconnected(); len(lone) > 0 {
		y = t.drawUnconnected(c, lone, y+1)
	}
	c.box(0, 0, c.width-1, y, noteRow{{"host", bold}})
	if t.info.Uplink != "" {
		drawSpine(c, exits)
	}
	return c
}

func (t topology) drawHost(c *canvas) int {
	what := "no uplink: there is no default route"
	if t.info.Uplink != "" {
		what = fmt.Sprintf("uplink %s, MTU %d", t.info.Uplink, t.info.UplinkMTU)
	}
	if t.info.Kernel != "" {
		what += fmt.Sprintf(" %s Linux %s", c.lines.dot, t.info.Kernel)
	}
	c.text(2, 1, c.width-4, what, plain)
	return 2
}

// drawSpine joins the uplink with the switches that are drawn already.
func drawSpine(c *canvas, exits []int) {
	if len(exits) == 0 {
		return
	}
	end := exits[len(exits)-1]
	c.vertical(spineColumn, 2, end)
	for _, y := range exits {
		c.set(spineColumn, y, c.lines.right, plain)
		c.horizontal(spineColumn+1, switchColumn-1, y)
		c.text(spineColumn+2, y, 3, "NAT", dim)
		c.set(switchColumn, y, c.lines.left, plain)
	}
	c.set(spineColumn, end, c.lines.bottomLeft, plain)
}

// drawNetwork draws a switch and what is on its ports, and gives the row after it.
func (t topology) drawNetwork(c *canvas, n hcn.HostComputeNetwork, y int) int {
	right := c.width - 3
	nodes := t.nodes(n, c.lines)
	notes := switchNotes(n, len(nodes))
	bottom := y + len(notes) + 1
	c.box(switchColumn, y, right, bottom, noteRow{{"switch " + n.Name, bold}, {fmt.Sprintf(" (%s)", n.Type), plain}})
	for i, row := range notes {
		drawRow(c, switchColumn+2, y+1+i, right-switchColumn-3, row)
	}
	if len(nodes) == 0 {
		return bottom + 1
	}
	return drawNodes(c, nodes, bottom)
}

// uplinkOf is the NIC of a network on a LAN.
func uplinkOf(n hcn.HostComputeNetwork) string {
	s, err := hcn.NetworkSettingsOf[hcn.NetAdapterNamePolicySetting](n.Policies)
	if err != nil || len(s) == 0 {
		return "unknown"
	}
	return s[0].NetworkAdapterName
}

// switchNotes are the lines in a switch: the host's own port, then the others.
func switchNotes(n hcn.HostComputeNetwork, ports int) []noteRow {
	var rows []noteRow
	gateways := gatewaysOf(n)
	switch {
	case onLAN(n.Type):
		return append(rows, noteRow{{"uplink     ", dim}, {uplinkOf(n), cyan}}, noteRow{{plural(ports, "container port"), dim}})
	case n.Type == hcn.Private || n.Flags&hcn.DisableHostPort != 0:
		rows = append(rows, noteRow{{"no host port: closed to the host", dim}})
	case len(gateways) == 0:
		rows = append(rows, noteRow{{"host port", dim}})
	}
	for i, g := range gateways {
		if n.Type == hcn.Private {
			break
		}
		label := "host port  "
		if i > 0 {
			label = "           "
		}
		rows = append(rows, noteRow{{label, dim}, {g, cyan}})
	}
	return append(rows, noteRow{{plural(ports, "container port"), dim}})
}

// gatewaysOf lists the gateway of each subnet, with the subnet's prefix length.
func gatewaysOf(n hcn.HostComputeNetwork) []string {
	var out []string
	for _, ipam := range n.Ipams {
		for _, s := range ipam.Subnets {
			_, bits, _ := strings.Cut(s.IpAddressPrefix, "/")
			for _, r := range s.Routes {
				if r.DestinationPrefix == "0.0.0.0/0" || r.DestinationPrefix == "::/0" {
					out = append(out, r.NextHop+"/"+bits)
				}
			}
		}
	}
	return out
}

// drawNodes hangs boxes below a switch, in as many rows as they need.
func drawNodes(c *canvas, nodes []node, edge int) int {
	room := c.width - 2 - firstBox
	size := 0
	for _, n := range nodes {
		size = max(size, n.title.width()+8)
		for _, r := range n.rows {
			size = max(size, r.width()+4)
		}
	}
	size = min(size, room)
	perRow := max(1, (room+2)/(size+2))
	y := edge
	for len(nodes) > 0 {
		row := nodes[:min(perRow, len(nodes))]
		nodes = nodes[len(row):]
		next := drawNodeRow(c, row, size, y)
		switch {
		case y == edge && len(nodes) > 0:
			c.set(trunkColumn, y, c.lines.down, plain)
		case y != edge && len(nodes) > 0:
			drawBranch(c, row, size, y, c.lines.right)
		case y != edge:
			drawBranch(c, row, size, y, c.lines.bottomLeft)
		}
		if len(nodes) > 0 {
			c.vertical(trunkColumn, y+1, next-1)
		}
		y = next
	}
	return y
}

// drawNodeRow draws boxes beside each other below the line at y, which is the
// lower edge of the switch or a branch of the trunk, and gives the row after them.
func drawNodeRow(c *canvas, row []node, size, y int) int {
	tall := 0
	for i, n := range row {
		x := firstBox + i*(size+2)
		tall = max(tall, len(n.rows))
		c.box(x, y+1, x+size-1, y+2+len(n.rows), n.title)
		c.set(x+2, y, c.lines.down, plain)
		c.set(x+2, y+1, c.lines.up, plain)
		for j, r := range n.rows {
			drawRow(c, x+2, y+2+j, size-4, r)
		}
	}
	return y + tall + 3
}

// drawBranch draws the line from the trunk over the boxes of a row.
func drawBranch(c *canvas, row []node, size, y int, begin rune) {
	end := firstBox + (len(row)-1)*(size+2) + 2
	c.horizontal(trunkColumn+1, end, y)
	c.set(trunkColumn, y, begin, plain)
	for i := range row {
		c.set(firstBox+i*(size+2)+2, y, c.lines.down, plain)
	}
	c.set(end, y, c.lines.topRight, plain)
}

// drawRow puts a row of at most room columns and gives the column after it.
func drawRow(c *canvas, x, y, room int, row noteRow) int {
	end := x + room
	for _, part := range row {
		x = c.text(x, y, end-x, part.text, part.style)
	}
	return x
}

// nodes are the compartments on a network, by name; endpoints that are in none
// stand for themselves.
func (t topology) nodes(n hcn.HostComputeNetwork, l lines) []node {
	byPlace := map[string][]hcn.HostComputeEndpoint{}
	for _, e := range t.endpoints {
		if e.HostComputeNetwork != n.ID || e.Flags&hcn.RemoteEndpoint != 0 {
			continue
		}
		place := string(e.HostComputeNamespace)
		if c, ok := t.containerOf(e); ok && place == "" {
			place = c.ID
		} else if place == "" {
			place = string(e.ID)
		}
		byPlace[place] = append(byPlace[place], e)
	}
	var out []node
	for _, endpoints := range byPlace {
		out = append(out, t.node(n, endpoints, l))
	}
	slices.SortFunc(out, func(a, b node) int { return cmp.Compare(a.title[0].text, b.title[0].text) })
	return out
}
