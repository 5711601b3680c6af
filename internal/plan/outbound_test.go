package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// outboundEndpoint has 10.1.0.5 and fd00:1::5 and these OutBoundNAT settings.
func outboundEndpoint(settings ...string) *Endpoint {
	e := &Endpoint{Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd00:1::5/64")}}
	for _, s := range settings {
		e.Doc.Policies = append(e.Doc.Policies, hcn.EndpointPolicy{Type: hcn.OutBoundNAT, Settings: json.RawMessage(s)})
	}
	return e
}

func TestOutbounds(t *testing.T) {
	for _, tc := range []struct {
		name     string
		settings []string
		want     string
	}{
		{"plain", []string{`{}`}, ""},
		{"exceptions", []string{`{"Exceptions":["10.0.0.0/8","10.1.0.0/16","192.0.2.7"]}`}, `
outbound 10.1.0.5 to 10.0.0.0/8,192.0.2.7 keeps its address
outbound 10.1.0.5 to others as the host`},
		{"version 1's names", []string{`{"ExceptionList":["10.0.0.0/8"],"VIP":"192.0.2.1"}`}, `
outbound 10.1.0.5 to 10.0.0.0/8 keeps its address
outbound 10.1.0.5 to others as 192.0.2.1`},
		{"destinations", []string{`{"Destinations":["10.1.0.5"]}`}, `
outbound 10.1.0.5 to 10.1.0.5 as the host
outbound 10.1.0.5 to others keeps its address`},
		{"each form", []string{`{"Exceptions":["10.0.0.0/8"]}`, `{"Destinations":["10.1.0.5"]}`}, `
outbound 10.1.0.5 to 10.1.0.5 as the host
outbound 10.1.0.5 to 10.0.0.0/8 keeps its address
outbound 10.1.0.5 to others as the host`},
		{"destinations but", []string{`{"Destinations":["192.0.2.0/24"],"Exceptions":["192.0.2.128/25"]}`}, `
outbound 10.1.0.5 to 192.0.2.0/25 as the host
outbound 10.1.0.5 to others keeps its address`},
		{"by family", []string{`{"VirtualIP":"192.0.2.1"}`, `{"Flags":2,"Exceptions":["fd00::/8"]}`}, `
outbound 10.1.0.5 to others as 192.0.2.1
outbound fd00:1::5 to fd00::/8 keeps its address
outbound fd00:1::5 to others as the host`},
		{"plain and destinations", []string{`{}`, `{"Destinations":["192.0.2.0/24"],"VirtualIP":"192.0.2.1"}`}, `
outbound 10.1.0.5 to 192.0.2.0/24 as 192.0.2.1
outbound 10.1.0.5 to others as the host`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			for _, o := range Outbounds(outboundEndpoint(tc.settings...)) {
				o.text(&b)
			}
			if got := strings.TrimSpace(strings.ReplaceAll(b.String(), "\n    ", "\n")); got != strings.TrimSpace(tc.want) {
				t.Errorf("got\n%s\nwant%s", got, tc.want)
			}
		})
	}
}

// TestOutboundModel holds the compiled form against the policies read one by one, and the chosen against each other.
func TestOutboundModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		small := rapid.Custom(func(rt *rapid.T) string { // prefixes of 10.0.0.0/28
			return fmt.Sprintf("10.0.0.%d/%d", rapid.IntRange(0, 15).Draw(rt, "host"), rapid.IntRange(28, 32).Draw(rt, "bits"))
		})
		list := rapid.SliceOfN(small, 0, 4)
		var all []hcn.OutboundNatPolicySetting
		if rapid.Bool().Draw(rt, "general") {
			all = append(all, hcn.OutboundNatPolicySetting{Exceptions: list.Draw(rt, "exceptions")})
		}
		for range rapid.IntRange(0, 3).Draw(rt, "chosen") {
			all = append(all, hcn.OutboundNatPolicySetting{Destinations: rapid.SliceOfN(small, 1, 4).Draw(rt, "destinations"), Exceptions: list.Draw(rt, "but")})
		}
		var settings []string
		for i := range all {
			if !all[i].Plain() {
				all[i].VirtualIP = fmt.Sprintf("192.0.2.%d", i+1)
			}
			b, err := json.Marshal(all[i])
			if err != nil {
				rt.Fatal(err)
			}
			settings = append(settings, string(b))
		}
		out := Outbounds(outboundEndpoint(settings...))
		for i := range 16 {
			dst := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			want, hidden := model(all, dst)
			got, kept := netip.Addr{}, false
			if len(out) > 0 {
				if out[0].Source.Is6() {
					continue
				}
				got, kept = out[0].Translate(dst)
			} else {
				hidden = true // the network's own way
			}
			if kept == hidden || got != want {
				rt.Fatalf("to %s: as %v kept %t, want %v kept %t; %+v of %v", dst, got, kept, want, !hidden, out, settings)
			}
			in := 0
			for _, o := range out[:min(1, len(out))] {
				for _, h := range o.Chosen {
					for _, p := range h.Destinations {
						if p.Contains(dst) {
							in++
						}
					}
				}
			}
			if in > 1 {
				rt.Fatalf("%s is in %d prefixes: %+v", dst, in, out)
			}
		}
	})
}

// model reads the policies as their description says: one with destinations first.
func model(all []hcn.OutboundNatPolicySetting, dst netip.Addr) (as netip.Addr, hidden bool) {
	for _, general := range []bool{false, true} {
		for _, s := range all {
			if s.General() == general && (general || contains(s.DestinationsOf(true), dst)) && !contains(s.ExceptionsOf(true), dst) {
				as, _ = s.Addr()
				return as, true
			}
		}
	}
	return netip.Addr{}, false
}
