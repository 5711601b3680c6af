package vswitch

import (
	"bytes"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// discover is what a DHCP client asks of all servers in the name of a MAC.
func discover(t *testing.T, from, of th.MAC, with ...th.Layer) []byte {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(of)
	if err != nil {
		t.Fatal(err)
	}
	m.SetUnicast()
	m.TransactionID = dhcpv4.TransactionID{1, 2, 3, 4}
	if len(with) == 0 {
		with = []th.Layer{v4(addr("0.0.0.0"), addr("255.255.255.255")), udp(68, 67)}
	}
	return th.Frame(append(append([]th.Layer{eth(from, th.Broadcast())}, with...), th.Text(m.ToBytes()))...)
}

// TestDHCPForItself: a container on a LAN asks for an address in its own name only.
func TestDHCPForItself(t *testing.T) {
	for _, mode := range []plan.Mode{plan.ModeTransparent, plan.ModeL2Bridge} {
		n := newOneMAC(t, AttachAuto, mode, false)
		ma, other := hw(n.a.MAC), th.MAC{2, 0xde, 0xad, 0xbe, 0xef, 1}
		all, server, mine := addr("255.255.255.255"), addr("10.9.0.2"), n.a.Addrs[0]
		for _, c := range []struct {
			name  string
			frame []byte
			want  Outcome
		}{
			{"its own", discover(t, ma, ma), Replicated},
			{"another's", discover(t, ma, other), Dropped},
			{"another's, from another port", discover(t, ma, other, v4(mine, all), udp(1068, 67)), Dropped},
			{"another's, of one server", discover(t, ma, other, v4(mine, server), udp(68, 67)), Dropped},
			{"another's, with options of IP", discover(t, ma, other, th.IPv4{Src: mine, Dst: all, Options: []byte{1, 1, 1, 1}}, udp(68, 67)), Dropped},
			{"in fragments", discover(t, ma, ma, th.IPv4{Src: mine, Dst: all, MoreFragments: true, ID: 7}, udp(68, 67)), Dropped},
		} {
			if got := n.run(n.a.ID, c.frame); got.Outcome != c.want || got.Outcome == Dropped && got.Reason != ReasonSourceMAC {
				t.Errorf("%s, %s: %s %s", mode, c.name, got.Outcome, got.Reason)
			}
		}
	}
}

// TestOneMACDHCP: behind the NIC's MAC a client is answered by broadcast, for its own is none that the LAN knows.
func TestOneMACDHCP(t *testing.T) {
	n := newOneMAC(t, AttachAuto, plan.ModeL2Bridge, false)
	ma, nic := hw(n.a.MAC), hw(n.nic.MAC)
	head := []th.Layer{v4(addr("0.0.0.0"), addr("255.255.255.255")), udp(68, 67)}
	bare := []th.Layer{head[0], th.UDP{SrcPort: 68, DstPort: 67, NoChecksum: true}}
	const flags = 10
	for _, with := range [][]th.Layer{head, bare} {
		seen := n.peer.Capture("eth0", "udp")
		asked := discover(t, ma, ma, with...)
		n.hostA.SendFrame("eth0", asked)
		message := append([]byte(nil), asked[14+20+8:]...)
		message[flags] |= 0x80
		want := th.Frame(eth(nic, th.Broadcast()), with[0], with[1], th.Text(message))
		if got := seen.Wait("255.255.255.255").Data; !bytes.Equal(got, want) {
			t.Errorf("on the wire\n%x, want\n%x", got, want)
		}
	}
}
