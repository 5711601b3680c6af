package netdev

import (
	"errors"
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
	// Index is the NIC's. One that comes back is as we left it; another of its name is as its maker did.
	Index int `json:"index,omitempty"`
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

// of tells whether a note is of a NIC with that index. Older notes do not say.
func (t tuning) of(index int) bool { return t.Index == 0 || t.Index == index }

// tune has NICs do what their networks need.
func (ps *pass) tune(p *plan.Plan) error {
	want := ps.n.demandsOf(p)
	var errs []error
	for _, nic := range slices.Sorted(maps.Keys(want)) {
		errs = append(errs, ps.tuneOne(nic, want[nic]))
	}
	return errors.Join(errs...)
}

func (ps *pass) tuneOne(nic string, d demand) error {
	l, ok, err := ps.hostLink(nic)
	if err != nil || !ok {
		return err
	}
	all, err := ps.n.tuned()
	if err != nil {
		return err
	}
	have, err := ps.n.offloads(nic)
	if err != nil {
		return err
	}
	noted := all[nic]
	if !noted.of(l.index) {
		noted = tuning{}
	}
	next := tuning{l.index, noted.AllMulti, slices.Clone(noted.Off)}
	groups := l.flags&unix.IFF_ALLMULTI == 0
	if groups {
		if next.AllMulti {
			ps.found(string(d.owner), "link "+nic, "allmulticast off")
		}
		next.AllMulti = true
	}
	var off []string
	for _, f := range d.off {
		if o := have[f]; !o.on || o.fixed || o.stubborn() {
			continue
		}
		off = append(off, f)
		if slices.Contains(next.Off, f) {
			ps.found(string(d.owner), "link "+nic, "%s on", f)
		} else {
			next.Off = append(next.Off, f)
		}
	}
	if err := ps.noteTuning(nic, next, all[nic]); err != nil {
		return err
	}
	if groups {
		err = ps.setGroups(string(d.owner), nic, l.index, true)
	}
	return errors.Join(err, ps.setOffloads(string(d.owner), nic, off, false))
}

// untune undoes what was written down and is not needed.
func (ps *pass) untune(p *plan.Plan) error {
	noted, err := ps.n.tuned()
	if err != nil || len(noted) == 0 {
		return err
	}
	want := ps.n.demandsOf(p)
	var errs []error
	for _, nic := range slices.Sorted(maps.Keys(noted)) {
		var d *demand
		if w, needed := want[nic]; needed {
			d = &w
		}
		errs = append(errs, ps.untuneOne(nic, noted[nic], d))
	}
	return errors.Join(errs...)
}

// untuneOne undoes what was written down of a NIC but for what is needed, which may be nothing. One that is away may come back
// as it was.
func (ps *pass) untuneOne(nic string, was tuning, need *demand) error {
	l, ok, err := ps.hostLink(nic)
	if err != nil || !ok {
		return err
	}
	if !was.of(l.index) {
		return ps.noteTuning(nic, tuning{}, was)
	}
	keep := tuning{Index: l.index, AllMulti: was.AllMulti && need != nil}
	var on []string
	for _, f := range was.Off {
		if need != nil && slices.Contains(need.off, f) {
			keep.Off = append(keep.Off, f)
		} else {
			on = append(on, f)
		}
	}
	if err := ps.setOffloads("", nic, on, true); err != nil {
		return err
	}
	if was.AllMulti && !keep.AllMulti && l.flags&unix.IFF_ALLMULTI != 0 {
		if err := ps.setGroups("", nic, l.index, false); err != nil {
			return err
		}
	}
	return ps.noteTuning(nic, keep, was)
}

// forgetAbsent drops the notes of NICs that are not there: whoever resets does not wait for them.
func (n *Netdev) forgetAbsent() error {
	return n.home.do(func() error {
		links, err := n.host.listLinks()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		return n.updateRecord(func(r *record) {
			maps.DeleteFunc(r.NICs, func(nic string, t tuning) bool { return !t.present(nic, links) })
		})
	})
}

func (t tuning) present(nic string, links []link) bool {
	return slices.ContainsFunc(links, func(l link) bool { return l.name == nic && t.of(l.index) })
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
	if !now.AllMulti && len(now.Off) == 0 {
		now = tuning{}
	}
	if ps.dry != nil || now.Index == was.Index && now.AllMulti == was.AllMulti && slices.Equal(now.Off, was.Off) {
		return nil
	}
	return ps.n.home.do(func() error {
		return ps.n.updateRecord(func(r *record) {
			if now.Index == 0 {
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

// tuningNotes lists what is written down of NICs that are there, and serves none of the demands on them.
func (r record) tuningNotes(links []link, want map[string]demand) (out []leftover) {
	for _, nic := range slices.Sorted(maps.Keys(r.NICs)) {
		if !r.NICs[nic].present(nic, links) {
			continue
		}
		d, needed := want[nic]
		if r.NICs[nic].AllMulti && !needed {
			undo := plan.Write{Object: "link " + nic, Sign: plan.Changes, Text: "allmulticast off"}
			out = append(out, leftover{"allmulticast of " + nic, undo})
		}
		for _, f := range r.NICs[nic].Off {
			if !slices.Contains(d.off, f) {
				undo := plan.Write{Object: "link " + nic, Sign: plan.Changes, Text: "offload " + f + " on"}
				out = append(out, leftover{"offload of " + nic + ": " + f, undo})
			}
		}
	}
	return out
}
