package netdev

import (
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A NIC drops group frames that the host's own stack has not asked for. Containers on its LAN have addresses and groups of their
// own, and neighbour discovery asks for an address by a group. So such a NIC takes all group frames (what `ip link set NIC
// allmulticast on` does). Some of its offloads do harm there: what they make of received frames cannot be sent on, or frames of a
// VLAN that the kernel knows nothing of never get in. They are turned off. As with the unicast filter, what is changed is written
// down before, found missing as drift, and undone by what was written down.

const (
	// lro puts received segments together beyond recognition.
	lro = "rx-lro"
	// vlanFilter drops frames of VLANs that the kernel has no device for.
	vlanFilter = "rx-vlan-filter"
)

// tuning is what we changed of a NIC.
type tuning struct {
	// AllMulti: it takes all group frames.
	AllMulti bool `json:"all_multi,omitempty"`
	// Off are the offloads that were turned off, by their names in ethtool.
	Off []string `json:"off,omitempty"`
}

// demand is what the networks on a NIC need of it.
type demand struct {
	owner hcn.GUID // the network that it is for
	off   []string
}

// demandsOf are those of a plan, by NIC.
func (n *Netdev) demandsOf(p *plan.Plan) map[string]demand {
	out := map[string]demand{}
	for _, id := range slices.Sorted(maps.Keys(p.Switches)) {
		if sw := p.Switches[id]; sw.UplinkPort != "" {
			if _, ok := out[sw.Uplink]; !ok {
				out[sw.Uplink] = demand{id, slices.Clone(n.harmful)}
			}
		}
	}
	for _, port := range p.Ports {
		if port.VLAN == 0 {
			continue
		}
		sw := p.Switches[port.Network]
		if sw == nil {
			continue
		}
		if d, ok := out[sw.Uplink]; ok && !slices.Contains(d.off, vlanFilter) {
			d.off = append(d.off, vlanFilter)
			out[sw.Uplink] = d
		}
	}
	return out
}

// tuningChanges tells whether a change of the plan may concern NICs. Most changes do not: an endpoint comes or goes.
func tuningChanges(d *plan.Delta) bool {
	for _, c := range d.Switches {
		if c.Old != nil && c.Old.Uplink != "" || c.New != nil && c.New.Uplink != "" {
			return true
		}
	}
	for _, c := range d.Ports {
		if isUplink(c.Old) || isUplink(c.New) || c.Old != nil && c.Old.VLAN != 0 || c.New != nil && c.New.VLAN != 0 {
			return true
		}
	}
	return false
}

// tune has NICs do what their networks need.
func (ps *pass) tune(p *plan.Plan) error {
	want := ps.n.demandsOf(p)
	for _, nic := range slices.Sorted(maps.Keys(want)) {
		if err := ps.tuneOne(nic, want[nic]); err != nil {
			return err
		}
	}
	return nil
}

func (ps *pass) tuneOne(nic string, d demand) error {
	l, ok, err := ps.hostLink(nic)
	if err != nil || !ok {
		return err
	}
	noted, err := ps.n.tuned()
	if err != nil {
		return err
	}
	have, err := ps.n.offloads(nic)
	if err != nil {
		return err
	}
	next := tuning{noted[nic].AllMulti, slices.Clone(noted[nic].Off)}
	groups := l.flags&unix.IFF_ALLMULTI == 0
	if groups {
		if next.AllMulti {
			ps.found(string(d.owner), "link "+nic, "allmulticast off")
		}
		next.AllMulti = true
	}
	var off []string
	for _, f := range d.off {
		if !have[f].on || have[f].fixed {
			continue
		}
		off = append(off, f)
		if slices.Contains(next.Off, f) {
			ps.found(string(d.owner), "link "+nic, "%s on", f)
		} else {
			next.Off = append(next.Off, f)
		}
	}
	if err := ps.noteTuning(nic, next, noted[nic]); err != nil {
		return err
	}
	if groups {
		if err := ps.setGroups(string(d.owner), nic, l.index, true); err != nil {
			return err
		}
	}
	return ps.setOffloads(string(d.owner), nic, off, false)
}

// untune undoes what was written down and is not needed.
func (ps *pass) untune(p *plan.Plan) error {
	noted, err := ps.n.tuned()
	if err != nil || len(noted) == 0 {
		return err
	}
	want := ps.n.demandsOf(p)
	for _, nic := range slices.Sorted(maps.Keys(noted)) {
		was := noted[nic]
		d, needed := want[nic]
		keep := tuning{AllMulti: was.AllMulti && needed}
		var on []string
		for _, f := range was.Off {
			if needed && slices.Contains(d.off, f) {
				keep.Off = append(keep.Off, f)
			} else {
				on = append(on, f)
			}
		}
		l, ok, err := ps.hostLink(nic)
		if err != nil {
			return err
		}
		if ok { // what is gone has nothing to undo
			if err := ps.setOffloads("", nic, on, true); err != nil {
				return err
			}
			if was.AllMulti && !keep.AllMulti && l.flags&unix.IFF_ALLMULTI != 0 {
				if err := ps.setGroups("", nic, l.index, false); err != nil {
					return err
				}
			}
		}
		if err := ps.noteTuning(nic, keep, was); err != nil {
			return err
		}
	}
	return nil
}

// setGroups has a NIC take all group frames, or those that somebody asked for.
func (ps *pass) setGroups(owner, nic string, index int, all bool) error {
	word, flags := "off", uint32(0)
	if all {
		word, flags = "on", unix.IFF_ALLMULTI
	}
	if ps.dry != nil {
		ps.dry.add(owner, "link "+nic, plan.Changes, "allmulticast "+word)
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Change = int32(index), flags, unix.IFF_ALLMULTI
	req.AddData(head)
	return ps.n.host.write(write{
		doing: fmt.Sprintf("turn allmulticast of %s %s", nic, word), req: req, fine: []unix.Errno{unix.ENODEV},
	})
}

func (ps *pass) setOffloads(owner, nic string, names []string, on bool) error {
	word := "off"
	if on {
		word = "on"
	}
	if ps.dry != nil {
		for _, f := range names {
			ps.dry.add(owner, "link "+nic, plan.Changes, f+" "+word)
		}
		return nil
	}
	if len(names) == 0 {
		return nil
	}
	if err := ps.n.setOffloads(nic, names, on); err != nil {
		return fmt.Errorf("turn %v of %s %s: %w", names, nic, word, err)
	}
	return nil
}

// tuned is what was written down.
func (n *Netdev) tuned() (out map[string]tuning, err error) {
	err = n.home.do(func() error {
		n.settings.Lock()
		defer n.settings.Unlock()
		r, err := n.readRecord()
		out = r.NICs
		return err
	})
	return out, err
}

func (ps *pass) noteTuning(nic string, now, was tuning) error {
	if ps.dry != nil || now.AllMulti == was.AllMulti && slices.Equal(now.Off, was.Off) {
		return nil
	}
	return ps.n.home.do(func() error {
		return ps.n.updateRecord(func(r *record) {
			if !now.AllMulti && len(now.Off) == 0 {
				delete(r.NICs, nic)
				return
			}
			if r.NICs == nil {
				r.NICs = map[string]tuning{}
			}
			r.NICs[nic] = now
		})
	})
}

// tuningNotes lists what is written down, for a check after Reset.
func (r record) tuningNotes() []string {
	var out []string
	for _, nic := range slices.Sorted(maps.Keys(r.NICs)) {
		if r.NICs[nic].AllMulti {
			out = append(out, "allmulticast of "+nic)
		}
		for _, f := range r.NICs[nic].Off {
			out = append(out, "offload of "+nic+": "+f)
		}
	}
	return out
}
