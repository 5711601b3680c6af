package netdev

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A NIC takes frames for its own MAC only. That it takes those for containers on its LAN as well is one entry of its
// unicast filter for each (what `bridge fdb add MAC dev NIC self` does); the kernel makes a NIC that cannot filter, or
// whose filter is full, promiscuous by itself. That is all that changes on a NIC, and it is written down before it is done, so that
// it is undone whatever happens in between.

// filter is an entry: a MAC that a NIC has to take.
type filter struct {
	nic string
	mac plan.MAC
}

// filtersOf are the entries that a plan needs, with the port that each is for.
func filtersOf(p *plan.Plan) map[filter]*plan.Port {
	out := map[filter]*plan.Port{}
	for _, port := range p.Ports {
		if port.Kind != plan.PortContainer {
			continue
		}
		if sw := p.Switches[port.Network]; sw != nil && sw.UplinkPort != "" && !sw.Mode.OneMAC() {
			out[filter{sw.Uplink, port.MAC}] = port
		}
	}
	return out
}

// filtersChange tells whether a change of the plan may concern them.
func filtersChange(p *plan.Plan, d *plan.Delta) bool {
	onLAN := func(network hcn.GUID) bool {
		now, c := p.Switches[network], d.Switches[network]
		return now != nil && now.Mode.OnLAN() || c.Old != nil && c.Old.Mode.OnLAN()
	}
	for id := range d.Switches {
		if onLAN(id) {
			return true
		}
	}
	for _, c := range d.Ports {
		if c.New != nil && onLAN(c.New.Network) || c.Old != nil && onLAN(c.Old.Network) {
			return true
		}
	}
	return false
}

func (r record) filters() map[filter]bool {
	out := map[filter]bool{}
	for nic, macs := range r.Filters {
		for _, text := range macs {
			if m, err := hcn.MAC(text).Bytes(); err == nil {
				out[filter{nic, m}] = true
			}
		}
	}
	return out
}

func (r *record) setFilters(all map[filter]bool) {
	r.Filters = nil
	for f := range all {
		if r.Filters == nil {
			r.Filters = map[string][]string{}
		}
		r.Filters[f.nic] = append(r.Filters[f.nic], f.mac.String())
	}
	for _, macs := range r.Filters {
		slices.Sort(macs)
	}
}

// recorded are the entries that were written down.
func (n *Netdev) recorded() (out map[filter]bool, err error) {
	err = n.home.do(func() error {
		n.settings.Lock()
		defer n.settings.Unlock()
		r, err := n.readRecord()
		out = r.filters()
		return err
	})
	return out, err
}

func (n *Netdev) record(all map[filter]bool) error {
	return n.home.do(func() error { return n.updateRecord(func(r *record) { r.setFilters(all) }) })
}

// addFilters makes the entries that are missing. One that is there and not written down is somebody else's, and stays
// theirs.
func (ps *pass) addFilters(p *plan.Plan) error {
	want := filtersOf(p)
	if len(want) == 0 {
		return nil
	}
	ours, err := ps.n.recorded()
	if err != nil {
		return err
	}
	have, err := ps.n.listFilters()
	if err != nil {
		return err
	}
	var missing []filter
	before := len(ours)
	for f, port := range want {
		if have[f] {
			continue
		}
		if ours[f] {
			ps.found(string(port.ID), "filter of "+f.nic, "%s missing", f.mac)
		}
		ours[f] = true
		missing = append(missing, f)
	}
	if len(ours) != before && ps.dry == nil {
		if err := ps.n.record(ours); err != nil {
			return err
		}
	}
	return ps.writeFilters(unix.RTM_NEWNEIGH, missing, want)
}

// dropFilters takes away what was written down and is not needed, then the note of it.
func (ps *pass) dropFilters(p *plan.Plan) error {
	ours, err := ps.n.recorded()
	if err != nil || len(ours) == 0 {
		return err
	}
	want := filtersOf(p)
	var gone []filter
	for f := range ours {
		if want[f] == nil {
			gone = append(gone, f)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := ps.writeFilters(unix.RTM_DELNEIGH, gone, nil); err != nil {
		return err
	}
	for _, f := range gone {
		delete(ours, f)
	}
	if ps.dry != nil {
		return nil
	}
	return ps.n.record(ours)
}

// writeFilters adds or deletes entries, which are for the ports of owners. A NIC that is gone has none.
func (ps *pass) writeFilters(kind int, all []filter, owners map[filter]*plan.Port) error {
	index := map[string]int{}
	for _, f := range all {
		if _, known := index[f.nic]; known {
			continue
		}
		l, ok, err := ps.hostLink(f.nic)
		if err != nil {
			return fmt.Errorf("find the NIC %s: %w", f.nic, err)
		}
		index[f.nic] = 0
		if ok {
			index[f.nic] = l.index
		}
	}
	var ws []write
	for _, f := range all {
		i := index[f.nic]
		if i == 0 {
			continue
		}
		w := changeFilter(kind, i, f)
		if ps.dry == nil {
			ws = append(ws, w)
			continue
		}
		owner := ""
		if p := owners[f]; p != nil {
			owner = string(p.ID)
		}
		ps.dry.note(owner, "link "+f.nic, w)
	}
	return ps.n.host.write(ws...)
}

func changeFilter(kind, index int, f filter) write {
	flags, doing := 0, "take "+f.mac.String()+" out of the unicast filter of "+f.nic
	fine := []unix.Errno{unix.ENOENT, unix.ENODEV}
	if kind == unix.RTM_NEWNEIGH {
		flags, doing = unix.NLM_F_CREATE|unix.NLM_F_EXCL, "put "+f.mac.String()+" into the unicast filter of "+f.nic
		fine = []unix.Errno{unix.EEXIST}
	}
	req := nl.NewNetlinkRequest(kind, flags)
	req.AddData(neighbourHead{family: unix.AF_BRIDGE, index: index, state: unix.NUD_PERMANENT, flags: unix.NTF_SELF})
	req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, f.mac[:]))
	return write{doing: doing, req: req, what: "unicast filter " + f.mac.String(), fine: fine}
}

// listFilters lists the entries of all links.
func (n *Netdev) listFilters() (map[filter]bool, error) {
	links, err := n.host.listLinks()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	msgs, err := n.host.dump(unix.RTM_GETNEIGH, neighbourHead{family: unix.AF_BRIDGE})
	if err != nil {
		return nil, fmt.Errorf("list unicast filters: %w", err)
	}
	out := map[filter]bool{}
	for _, e := range parseAll(msgs, parseNeighbour) {
		if e.flags&unix.NTF_SELF != 0 {
			out[filter{names[e.index], e.MAC}] = true
		}
	}
	return out, nil
}

// filterEvent tells that an entry was taken away. The kernel does not say by whom.
func filterEvent(m syscall.NetlinkMessage) bool {
	return m.Header.Type == unix.RTM_DELNEIGH && len(m.Data) >= unix.SizeofNdMsg &&
		m.Data[0] == unix.AF_BRIDGE && m.Data[10]&unix.NTF_SELF != 0
}

// filterNotes lists what is written down and serves nothing of a plan.
func (r record) filterNotes(p *plan.Plan) (out []leftover) {
	want := filtersOf(p)
	for f := range r.filters() {
		if want[f] == nil {
			undo := plan.Write{Object: "link " + f.nic, Sign: plan.Removes, Text: "unicast filter " + f.mac.String()}
			out = append(out, leftover{"unicast filter of " + f.nic + ": " + f.mac.String(), undo})
		}
	}
	return out
}
