package netdev

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// What was changed of NICs is written down by their names, and a NIC may get another name: the tools that name them do that, also while
// the daemon is away. So their indexes are written down too, which are theirs for as long as the host runs, and before anything is done
// by the notes of a name they are put under the name that the NIC has by now.

// nicPlace is where a NIC with notes is found.
type nicPlace struct {
	Index int    `json:"index"`
	Boot  string `json:"boot"`
}

// bootID tells one run of the host from another.
var bootID = sync.OnceValues(func() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
})

// noted are the names of the NICs that have notes.
func (r record) noted() map[string]bool {
	out := map[string]bool{}
	for nic := range r.Filters {
		out[nic] = true
	}
	for nic := range r.NICs {
		out[nic] = true
	}
	return out
}

// placeNotes writes down where the NICs with notes are. One that is away was where it was.
func (n *Netdev) placeNotes(r *record) error {
	noted := r.noted()
	maps.DeleteFunc(r.Places, func(nic string, _ nicPlace) bool { return !noted[nic] })
	if len(noted) == 0 {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	for nic := range noted {
		l, ok, err := n.host.linkByName(nic)
		if err != nil {
			return fmt.Errorf("find the NIC %s: %w", nic, err)
		}
		if !ok || l.name != nic { // an alternative name is not what notes are kept by
			continue
		}
		if r.Places == nil {
			r.Places = map[string]nicPlace{}
		}
		r.Places[nic] = nicPlace{l.index, boot}
	}
	return nil
}

// refind puts notes under the names that their NICs have now.
func (ps *pass) refind() error {
	if ps.dry != nil {
		return nil
	}
	return ps.n.home.do(func() error {
		ps.n.settings.Lock()
		defer ps.n.settings.Unlock()
		r, err := ps.n.readRecord()
		if err != nil || len(r.Places) == 0 {
			return err
		}
		now, err := ps.n.renamed(r.Places)
		if err != nil || len(now) == 0 {
			return err
		}
		for _, old := range slices.Sorted(maps.Keys(now)) {
			ps.n.log.WarnContext(ps.ctx, "a NIC has another name", "was", old, "is", now[old])
		}
		r.rename(now)
		return ps.n.writeRecord(r)
	})
}

// renamed are the NICs that have other names than their notes, by those.
func (n *Netdev) renamed(places map[string]nicPlace) (map[string]string, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	lost := map[int]string{}
	for nic, at := range places {
		if at.Boot != boot {
			continue
		}
		l, ok, err := n.host.linkByName(nic)
		if err != nil {
			return nil, fmt.Errorf("find the NIC %s: %w", nic, err)
		}
		if !ok || l.name != nic || l.index != at.Index {
			lost[at.Index] = nic
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	links, err := n.host.listLinks()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := map[string]string{}
	for _, l := range links {
		if nic, ok := lost[l.index]; ok && l.name != nic && !l.ours() && l.hwType == unix.ARPHRD_ETHER {
			out[nic] = l.name
		}
	}
	return out, nil
}

// rename moves notes to other names, all at once: two NICs may have changed theirs for each other's.
func (r *record) rename(now map[string]string) {
	r.Filters = rekey(r.Filters, now, func(a, b []string) []string {
		both := append(slices.Clone(a), b...)
		slices.Sort(both)
		return slices.Compact(both)
	})
	r.NICs = rekey(r.NICs, now, func(a, _ tuning) tuning { return a })
	r.Places = rekey(r.Places, now, func(a, _ nicPlace) nicPlace { return a })
}

// rekey gives a map with other keys; what comes under one that stays is merged into it, before what was there.
func rekey[V any](m map[string]V, now map[string]string, merge func(moved, there V) V) map[string]V {
	if len(m) == 0 {
		return m
	}
	out := map[string]V{}
	for key, v := range m {
		if _, moves := now[key]; !moves {
			out[key] = v
		}
	}
	for _, key := range slices.Sorted(maps.Keys(now)) {
		v, ok := m[key]
		if !ok {
			continue
		}
		if there, ok := out[now[key]]; ok {
			v = merge(v, there)
		}
		out[now[key]] = v
	}
	return out
}
