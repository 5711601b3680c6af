package vswitch

import (
	"bytes"
	"testing"

	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestARP(t *testing.T) {
	r := newRunLab(t)
	none := addr("0.0.0.0")
	r.check(t, []frameCase{
		{"for nobody", r.a.ID, th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetIP: addr("10.1.0.99")}), dropped(ReasonUnknownAddress)},
		{"for an address of another switch", r.a.ID, th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetIP: r.c.Addrs[0]}), dropped(ReasonUnknownAddress)},
		{"probe for its own address", r.a.ID, th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: none, TargetIP: r.a4}), dropped(ReasonDAD)},
		{"announcement by the owner", r.a.ID, th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetIP: r.a4}), replicated(2)},
		{"announcement by another", r.a.ID, th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.b4, TargetIP: r.b4}), dropped(ReasonARPSpoof)},
		{"sender MAC of b", r.a.ID, th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.mb, SenderIP: r.a4, TargetIP: r.b4}), dropped(ReasonARPSpoof)},
		{"reply for the gateway", r.a.ID, th.Frame(eth(r.ma, r.mb), th.ARP{Reply: true, SenderMAC: r.ma, SenderIP: gateway4(1), TargetMAC: r.mb, TargetIP: r.b4}), dropped(ReasonARPSpoof)},
		{"reply from nowhere", r.a.ID, th.Frame(eth(r.ma, r.mb), th.ARP{Reply: true, SenderMAC: r.ma, SenderIP: none, TargetMAC: r.mb, TargetIP: r.b4}), dropped(ReasonARPSpoof)},
		{"honest reply", r.a.ID, th.Frame(eth(r.ma, r.mb), th.ARP{Reply: true, SenderMAC: r.ma, SenderIP: r.a4, TargetMAC: r.mb, TargetIP: r.b4}), delivered(r.b.ID)},
	})
	answers := []struct {
		name      string
		ask, want []byte
	}{
		{
			"for b", th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetIP: r.b4}),
			th.Frame(eth(r.mb, r.ma), th.ARP{Reply: true, SenderMAC: r.mb, SenderIP: r.b4, TargetMAC: r.ma, TargetIP: r.a4}),
		}, {
			"for b, unicast", th.Frame(eth(r.ma, r.mb), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetMAC: r.mb, TargetIP: r.b4}),
			th.Frame(eth(r.mb, r.ma), th.ARP{Reply: true, SenderMAC: r.mb, SenderIP: r.b4, TargetMAC: r.ma, TargetIP: r.a4}),
		}, {
			"for the gateway", th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetIP: gateway4(1)}),
			th.Frame(eth(r.mg, r.ma), th.ARP{Reply: true, SenderMAC: r.mg, SenderIP: gateway4(1), TargetMAC: r.ma, TargetIP: r.a4}),
		}, {
			"probe for b's address", th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: none, TargetIP: r.b4}),
			th.Frame(eth(r.mb, r.ma), th.ARP{Reply: true, SenderMAC: r.mb, SenderIP: r.b4, TargetMAC: r.ma, TargetIP: none}),
		},
	}
	for _, c := range answers {
		t.Run(c.name, func(t *testing.T) {
			got := r.run(r.a.ID, c.ask)
			if got.Outcome != Answered || !bytes.Equal(got.Frame, c.want) {
				t.Errorf("%s\n got %s: %s\nwant %s", th.Describe(c.ask), got.Outcome, th.Describe(got.Frame), th.Describe(c.want))
			}
		})
	}
}

func TestNeighbourDiscovery(t *testing.T) {
	r := newRunLab(t)
	none, all := addr("::"), addr("ff02::1")
	sol := th.SolicitedNode(r.b6)
	multicast := th.MulticastMAC(sol)
	ns := th.NS{Target: r.b6, SourceMAC: r.ma}
	r.check(t, []frameCase{
		{"for nobody", r.a.ID, th.Frame(eth(r.ma, multicast), v6(r.a6, sol), th.NS{Target: addr("fd00:1::99"), SourceMAC: r.ma}), dropped(ReasonUnknownAddress)},
		{"for an address of another switch", r.a.ID, th.Frame(eth(r.ma, multicast), v6(r.a6, sol), th.NS{Target: r.c.Addrs[1], SourceMAC: r.ma}), dropped(ReasonUnknownAddress)},
		{"its own address (DAD)", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(th.SolicitedNode(r.a6))), v6(none, th.SolicitedNode(r.a6)), th.NS{Target: r.a6}), dropped(ReasonDAD)},
		{"source of b", r.a.ID, th.Frame(eth(r.ma, multicast), v6(r.b6, sol), ns), dropped(ReasonSourceAddress)},
		{"option with b's MAC", r.a.ID, th.Frame(eth(r.ma, multicast), v6(r.a6, sol), th.NS{Target: gateway6(1), SourceMAC: r.mb}), dropped(ReasonNDSpoof)},
		{"from beyond the link", r.a.ID, th.Frame(eth(r.ma, multicast), th.IPv6{Src: r.a6, Dst: sol, HopLimit: 64}, ns), dropped(ReasonNDInvalid)},
		{"multicast target", r.a.ID, th.Frame(eth(r.ma, multicast), v6(r.a6, sol), th.NS{Target: all, SourceMAC: r.ma}), dropped(ReasonNDInvalid)},
		{"mapped target", r.a.ID, th.Frame(eth(r.ma, multicast), v6(r.a6, sol), th.NS{Target: addr("::ffff:10.1.0.11"), SourceMAC: r.ma}), dropped(ReasonNDInvalid)},
		{"option of length zero", r.a.ID, set(th.Frame(eth(r.ma, multicast), v6(r.a6, sol), ns), 79, 0), dropped(ReasonNDInvalid)},
		{"in a fragment", r.a.ID, extend(th.Frame(eth(r.ma, multicast), v6(r.a6, sol), ns), fragment(0, true)), dropped(ReasonFragment)},
		{"advertisement of its own address", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), th.NA{Target: r.a6, TargetMAC: r.ma, Solicited: true}), delivered(r.b.ID)},
		{"unsolicited, to all", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(all)), v6(r.a6, all), th.NA{Target: r.a6, TargetMAC: r.ma, Override: true}), replicated(2)},
		{"advertisement of the gateway", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), th.NA{Target: gateway6(1), TargetMAC: r.ma, Override: true}), dropped(ReasonNDSpoof)},
		{"advertisement with b's MAC", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), th.NA{Target: r.a6, TargetMAC: r.mb, Override: true}), dropped(ReasonNDSpoof)},
	})
	answers := []struct {
		name      string
		ask, want []byte
	}{
		{
			"for b", th.Frame(eth(r.ma, multicast), v6(r.a6, sol), ns),
			th.Frame(eth(r.mb, r.ma), v6(r.b6, r.a6), th.NA{Target: r.b6, TargetMAC: r.mb, Solicited: true, Override: true}),
		}, {
			"for b, unicast and without option", th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), th.NS{Target: r.b6}),
			th.Frame(eth(r.mb, r.ma), v6(r.b6, r.a6), th.NA{Target: r.b6, TargetMAC: r.mb, Solicited: true, Override: true}),
		}, {
			"for b's link-local", th.Frame(eth(r.ma, multicast), v6(r.a.LinkLocal, sol), th.NS{Target: r.b.LinkLocal, SourceMAC: r.ma}),
			th.Frame(eth(r.mb, r.ma), v6(r.b.LinkLocal, r.a.LinkLocal), th.NA{Target: r.b.LinkLocal, TargetMAC: r.mb, Solicited: true, Override: true}),
		}, {
			"for the gateway", th.Frame(eth(r.ma, multicast), v6(r.a6, sol), th.NS{Target: gateway6(1), SourceMAC: r.ma}),
			th.Frame(eth(r.mg, r.ma), v6(gateway6(1), r.a6), th.NA{Target: gateway6(1), TargetMAC: r.mg, Router: true, Solicited: true, Override: true}),
		}, {
			"b's address, by one that has none yet (DAD)", th.Frame(eth(r.ma, multicast), v6(none, sol), th.NS{Target: r.b6}),
			th.Frame(eth(r.mb, th.MulticastMAC(all)), v6(r.b6, all), th.NA{Target: r.b6, TargetMAC: r.mb, Override: true}),
		}, {
			"with an option more", extend(th.Frame(eth(r.ma, multicast), v6(r.a6, sol), ns, th.Raw{14, 1, 1, 2, 3, 4, 5, 6}), destOptions()),
			th.Frame(eth(r.mb, r.ma), v6(r.b6, r.a6), th.NA{Target: r.b6, TargetMAC: r.mb, Solicited: true, Override: true}),
		},
	}
	for _, c := range answers {
		t.Run(c.name, func(t *testing.T) {
			got := r.run(r.a.ID, c.ask)
			if got.Outcome != Answered || !bytes.Equal(got.Frame, c.want) {
				t.Errorf("%s\n got %s (%s): %s\nwant %s", th.Describe(c.ask), got.Outcome, got.Reason, th.Describe(got.Frame), th.Describe(c.want))
			}
		})
	}
}
