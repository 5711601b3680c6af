package wireguard

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// silentAfter is when a host counts as silent: peers that reach each other shake hands every two minutes, for they keep the way alive.
const silentAfter = 4 * time.Minute

func newStatus(inKernel bool) plan.SecureStatus {
	return plan.SecureStatus{Kernel: inKernel, Devices: map[uint32]map[hcn.GUID]time.Time{}, Traffic: map[hcn.GUID]plan.SecureTraffic{}}
}

// report adds what a device has to the status.
func report(st *plan.SecureStatus, d *plan.SecureDevice, have *state) {
	st.Devices[d.Generation] = heard(d, have)
	for i := range d.Peers {
		h := have.peers[d.Peers[i].Key]
		t := st.Traffic[d.Peers[i].Host]
		t.Received, t.Sent = t.Received+h.received, t.Sent+h.sent
		if h.handshake.After(t.Handshake) {
			t.Handshake = h.handshake
		}
		st.Traffic[d.Peers[i].Host] = t
	}
}

// silent are the hosts that no device has shaken hands with of late.
func silent(s *plan.Secure, st *plan.SecureStatus, now time.Time) []string {
	names, heard := map[string]bool{}, map[string]bool{}
	for i := range s.Devices {
		d := &s.Devices[i]
		for j := range d.Peers {
			p := &d.Peers[j]
			names[p.Name] = true
			if at := st.Devices[d.Generation][p.Host]; now.Sub(at) < silentAfter {
				heard[p.Name] = true
			}
		}
	}
	maps.DeleteFunc(names, func(name string, _ bool) bool { return heard[name] })
	return slices.Sorted(maps.Keys(names))
}

// Preview says which devices an Update would make or remove.
func (a *Applier) Preview(_ context.Context, p *plan.Plan, d *plan.Delta) (out []plan.Write, err error) {
	if !d.Secure || p.Secure != nil && !p.Secure.Told {
		return nil, nil
	}
	up := map[string]bool{}
	for g := range a.Status().Devices {
		up[plan.SecureDeviceName(g)] = true
	}
	add := func(device string, sign plan.Sign, text string) {
		out = append(out, plan.Write{Owner: string(plan.SecureNamespace), Object: "WireGuard device " + device, Sign: sign, Text: text})
	}
	if p.Secure != nil {
		for i := range p.Secure.Devices {
			dev := &p.Secure.Devices[i]
			if !up[dev.Device] {
				add(dev.Device, plan.Adds, fmt.Sprintf("UDP port %d, %d peers, mtu %d", dev.Port, len(dev.Peers), p.Secure.MTU))
			}
			delete(up, dev.Device)
		}
	}
	for _, device := range slices.Sorted(maps.Keys(up)) {
		add(device, plan.Removes, "device")
	}
	return out, nil
}
