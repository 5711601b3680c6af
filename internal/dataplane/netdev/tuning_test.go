package netdev

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// A feature that the NICs of this test can do without; none of them has LRO.
const someOffload = "tx-checksum-ip-generic"

// onNIC is a plan with a network on a NIC, and with a port in a VLAN if there is one.
func onNIC(nic string) *plan.Plan {
	return &plan.Plan{
		Switches: map[hcn.GUID]*plan.Switch{network: {Network: network, Mode: plan.ModeL2Bridge, Uplink: nic, UplinkPort: plan.UplinkPortID(network)}},
		Ports:    map[plan.PortID]*plan.Port{},
	}
}

func tuningHost(t *testing.T) (*testhost.Host, *Netdev) {
	h, n := open(t)
	n.harmful = []string{someOffload}
	h.Run(t, "bash", "-c", "ip link add nic0 type veth peer name far0; ip link add nic1 type veth peer name far1; ip link set nic1 allmulticast on; for l in nic0 nic1 far0 far1; do ip link set $l up; done")
	return h, n
}

// tunedTo checks what the kernel has: whether a NIC takes all group frames, and whether its offload is on.
func tunedTo(t *testing.T, n *Netdev, nic string, groups, on bool) {
	t.Helper()
	l, ok, err := n.host.linkByName(nic)
	if err != nil || !ok {
		t.Fatalf("%s: %v", nic, err)
	}
	have, err := n.offloads(nic)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.flags&0x200 != 0; got != groups {
		t.Errorf("%s takes all group frames: %v, want %v", nic, got, groups)
	}
	if got := have[someOffload].on; got != on {
		t.Errorf("%s: %s is on: %v, want %v", nic, someOffload, got, on)
	}
}

func leftovers(t *testing.T, n *Netdev) string {
	t.Helper()
	list, err := n.Leftovers(t.Context(), &plan.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, "\n")
}

// TestTuning: a NIC with a network on it takes all group frames and does without harmful offloads, what is changed back is
// repaired, and it is as it was afterwards.
func TestTuning(t *testing.T) {
	t.Parallel()
	_, n := tuningHost(t)
	tunedTo(t, n, "nic0", false, true)
	p := onNIC("nic0")
	steps, err := n.Devices().Preview(t.Context(), p, delta(&plan.Plan{}, p))
	if err != nil || !slices.ContainsFunc(steps, func(w plan.Write) bool { return w.Object == "link nic0" && w.Text == "allmulticast on" }) ||
		!slices.ContainsFunc(steps, func(w plan.Write) bool { return w.Object == "link nic0" && w.Text == someOffload+" off" }) {
		t.Errorf("preview: %v, %v", steps, err)
	}
	tunedTo(t, n, "nic0", false, true)
	apply(t, n, &plan.Plan{}, p)
	tunedTo(t, n, "nic0", true, false)
	if got := leftovers(t, n); !strings.Contains(got, "allmulticast of nic0") || !strings.Contains(got, "offload of nic0: "+someOffload) {
		t.Errorf("written down: %s", got)
	}
	if got, err := n.Leftovers(t.Context(), p); err != nil || len(got) > 0 {
		t.Errorf("in use, and taken for left over: %v, %v", got, err)
	}
	quiet(t, n, p)
	ps := n.newPass(t.Context(), false)
	l, _, _ := n.host.linkByName("nic0")
	if err := ps.setGroups("", "nic0", l.index, false); err != nil {
		t.Fatal(err)
	}
	if err := n.setOffloads("nic0", []string{someOffload}, true); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "nic0", false, true)
	drift, err := resync(t, n, p)
	if err != nil || len(drift) != 2 {
		t.Errorf("drift %v, %v", drift, err)
	}
	tunedTo(t, n, "nic0", true, false)
	apply(t, n, p, &plan.Plan{})
	tunedTo(t, n, "nic0", false, true)
	if got := leftovers(t, n); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestTuningUndone: what a daemon that died has changed is undone by the next one, and by Reset; what somebody else wanted stays.
func TestTuningUndone(t *testing.T) {
	t.Parallel()
	h, n := tuningHost(t)
	apply(t, n, &plan.Plan{}, onNIC("nic0"))
	apply(t, n, onNIC("nic0"), onNIC("nic1"))
	tunedTo(t, n, "nic0", false, true)
	tunedTo(t, n, "nic1", true, false)
	next := openIn(t, h)
	if _, err := resync(t, next, &plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "nic1", true, true)
	apply(t, n, &plan.Plan{}, onNIC("nic0"))
	if err := openIn(t, h).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "nic0", false, true)
	apply(t, n, &plan.Plan{}, onNIC("nic0"))
	h.Run(t, "ip", "link", "del", "nic0")
	if err := openIn(t, h).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t, n); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestTuningVLAN: the filter of VLANs is off while a port is in one.
func TestTuningVLAN(t *testing.T) {
	t.Parallel()
	_, n := open(t)
	p := onNIC("nic0")
	if d := n.demandsOf(p)["nic0"]; slices.Contains(d.off, vlanFilter) || !slices.Contains(d.off, lro) {
		t.Errorf("without VLAN: %v", d.off)
	}
	p.Ports["a"] = &plan.Port{ID: "a", Kind: plan.PortContainer, Network: network, VLAN: 100}
	if d := n.demandsOf(p)["nic0"]; !slices.Contains(d.off, vlanFilter) || !slices.Contains(d.off, lro) {
		t.Errorf("with a VLAN: %v", d.off)
	}
	if !tuningChanges(delta(onNIC("nic0"), p)) || tuningChanges(delta(&plan.Plan{}, &plan.Plan{})) {
		t.Error("a port in a VLAN is no change")
	}
}

// TestTuningAway: a NIC that is away when its network goes is put back when it comes again; another one of its name is left alone.
func TestTuningAway(t *testing.T) {
	t.Parallel()
	h, n := tuningHost(t)
	h.Run(t, "ip", "netns", "add", "far")
	apply(t, n, &plan.Plan{}, onNIC("nic0"))
	h.Run(t, "ip", "link", "set", "nic0", "netns", "far")
	apply(t, n, onNIC("nic0"), &plan.Plan{})
	if got := leftovers(t, n); got != "" {
		t.Errorf("what is away is left here: %s", got)
	}
	h.Run(t, "bash", "-c", "ip -n far link set nic0 netns $$ && ip link show nic0")
	tunedTo(t, n, "nic0", true, false)
	if _, err := resync(t, n, &plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "nic0", false, true)
	apply(t, n, &plan.Plan{}, onNIC("nic0"))
	h.Run(t, "bash", "-c", "ip link del nic0; ip link add nic0 type veth peer name far0; ip link set nic0 up allmulticast on; ip link set far0 up")
	if _, err := resync(t, n, &plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "nic0", true, true)
	if got := leftovers(t, n); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestTuningGoesOn: a NIC that cannot be tuned does not keep the others from it.
func TestTuningGoesOn(t *testing.T) {
	t.Parallel()
	_, n := tuningHost(t)
	p := onNIC("nic0")
	p.Switches["B"] = &plan.Switch{Network: "B", Mode: plan.ModeL2Bridge, Uplink: "longer.than.a.NIC.is.called", UplinkPort: plan.UplinkPortID("B")}
	ps := n.newPass(t.Context(), false)
	defer ps.close()
	if err := ps.tune(p); err == nil {
		t.Error("the kernel knows a NIC of a name that it does not allow")
	}
	tunedTo(t, n, "nic0", true, false)
}

// TestStubbornOffload: what a driver keeps on although it was asked not to is asked once, and is no drift.
func TestStubbornOffload(t *testing.T) {
	for o, want := range map[offload]bool{
		{on: true, wanted: true}: false, {on: true}: true, {}: false, {wanted: true}: false,
	} {
		if got := o.stubborn(); got != want {
			t.Errorf("%+v: stubborn %v", o, got)
		}
	}
}

// TestTuningRenamed: what was changed of a NIC is undone under the name that it has by now, also where two have changed names and by the
// next daemon; and not of another NIC that has its index after the host has started anew.
func TestTuningRenamed(t *testing.T) {
	t.Parallel()
	h, n := tuningHost(t)
	mac := plan.MAC{0, 0x15, 0x5d, 1, 2, 3}
	with := onNIC("nic0")
	with.Switches[network].Mode = plan.ModeTransparent
	with.Ports["a"] = &plan.Port{ID: "a", Kind: plan.PortContainer, Network: network, MAC: mac}
	taken := func(nic string) bool {
		have, err := n.listFilters()
		if err != nil {
			t.Fatal(err)
		}
		return have[filter{nic, mac}]
	}
	tuneOnly := func(on *Netdev) {
		ps := on.newPass(t.Context(), false)
		defer ps.close()
		if err := errors.Join(ps.addFilters(with), ps.tune(with)); err != nil {
			t.Fatal(err)
		}
	}
	tuneOnly(n)
	tunedTo(t, n, "nic0", true, false)
	// nic1 takes all group frames by the will of another.
	h.Run(t, "bash", "-c", "ip link set nic0 down; ip link set nic1 down; ip link set nic0 name x; ip link set nic1 name nic0; ip link set x name nic1; ip link set nic0 up; ip link set nic1 up")
	if !taken("nic1") {
		t.Fatal("the filter did not move with the NIC: this test shows nothing")
	}
	if _, err := resync(t, n, &plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "nic1", false, true)
	tunedTo(t, n, "nic0", true, true)
	if taken("nic1") {
		t.Error("the filter is left")
	}
	h.Run(t, "bash", "-c", "ip link set nic0 down; ip link set nic1 down; ip link set nic0 name x; ip link set nic1 name nic0; ip link set x name nic1; ip link set nic0 up; ip link set nic1 up")
	tuneOnly(n)
	h.Run(t, "bash", "-c", "ip link set nic0 down; ip link set nic0 name lan0; ip link set lan0 up")
	if err := openIn(t, h).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	tunedTo(t, n, "lan0", false, true)
	if taken("lan0") {
		t.Error("the filter is left after a reset")
	}
	if got := leftovers(t, n); got != "" {
		t.Errorf("left: %s", got)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	l, _, _ := n.host.linkByName("lan0")
	for of, want := range map[string]string{"another boot": "", boot: "lan0"} {
		now, err := n.renamed(map[string]nicPlace{"nic0": {l.index, of}})
		if err != nil || now["nic0"] != want {
			t.Errorf("noted in %s: renamed to %q, want %q (%v)", of, now["nic0"], want, err)
		}
	}
}
