package hcn

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadBalancerRefuses(t *testing.T) {
	const ports = `"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":80}]`
	for name, tc := range map[string]struct {
		doc  string
		code ErrorCode
		says string
	}{
		"both families":     {`{"FrontendVIPs":["10.96.0.1","fd00:96::1"],` + ports + `}`, 0, ""},
		"DSR":               {`{"FrontendVIPs":["10.96.0.1"],"Flags":1,` + ports + `}`, 0, ""},
		"no VIP":            {`{` + ports + `}`, 0, ""},
		"no VIP, routed":    {`{"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":2}]}`, 0, ""},
		"no VIP, internal":  {`{"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":1}]}`, ErrInvalidPolicy, "EnableInternalLoadBalancer"},
		"no VIP, kept":      {`{"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":8}]}`, ErrRequestUnsupported, "EnablePreserveDip"},
		"no VIP, proxied":   {`{"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":18}]}`, 0, ""}, // as kube-proxy asks for it
		"loopback":          {`{"FrontendVIPs":["127.0.0.1"],` + ports + `}`, ErrInvalidIP, "loopback"},
		"multicast":         {`{"FrontendVIPs":["ff02::1"],` + ports + `}`, ErrInvalidIP, "many"},
		"link-local":        {`{"FrontendVIPs":["fe80::1"],` + ports + `}`, ErrInvalidIP, "link-local"},
		"no address":        {`{"FrontendVIPs":["web"],` + ports + `}`, ErrInvalidIP, "FrontendVIPs[0]"},
		"twice":             {`{"FrontendVIPs":["10.96.0.1","10.96.0.1"],` + ports + `}`, ErrPortAlreadyExists, "twice"},
		"flag IPv6":         {`{"FrontendVIPs":["10.96.0.1"],"Flags":"IPv6",` + ports + `}`, ErrInvalidIP, "Flags say IPv6"},
		"source of many":    {`{"FrontendVIPs":["10.96.0.1"],"SourceVIP":"224.0.0.1",` + ports + `}`, ErrInvalidIP, "SourceVIP"},
		"the host's":        {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":2}]}`, 0, ""},
		"the outside's":     {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":16}]}`, 0, ""},
		"internal, host's":  {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":3}]}`, ErrInvalidPolicy, "LocalRoutedVip"},
		"kept, outside's":   {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":28}]}`, ErrRequestUnsupported, "VipExternalIp"},
		"kept":              {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":12}]}`, 0, ""},
		"kept and not kept": {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":80,"Flags":8}]}`, 0, ""},
		"SCTP":              {`{"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":132,"InternalPort":80}]}`, ErrInvalidPolicy, "Protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Decode[HostComputeLoadBalancer]([]byte(tc.doc))
			if err == nil {
				err = l.Validate()
			}
			checkErr(t, err, tc.code, tc.says)
		})
	}
}

// TestLoadBalancerIgnored: with EnablePreserveDip the back ends' port is that of the virtual address, and whoever gives another is told.
func TestLoadBalancerIgnored(t *testing.T) {
	l := &HostComputeLoadBalancer{PortMappings: []LoadBalancerPortMapping{
		{InternalPort: 8080, ExternalPort: 80}, {InternalPort: 80, Flags: EnablePreserveDip}, {InternalPort: 8080, ExternalPort: 80, Flags: EnablePreserveDip},
	}}
	want := []string{"PortMappings[2].InternalPort (EnablePreserveDip: back ends see port 80)"}
	if got := l.Ignored(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// wideBalancer has so many virtual addresses, ports and back ends.
func wideBalancer(vips, ports, ends int) *HostComputeLoadBalancer {
	l := &HostComputeLoadBalancer{SchemaVersion: V2()}
	for i := range vips {
		a := fmt.Sprintf("10.96.%d.%d", i>>8, i&255)
		if i%2 == 1 {
			a = fmt.Sprintf("fd00:96::%x", i)
		}
		l.FrontendVIPs = append(l.FrontendVIPs, a)
	}
	for i := range ports {
		l.PortMappings = append(l.PortMappings, LoadBalancerPortMapping{Protocol: ProtocolTCP, InternalPort: uint16(i + 1)})
	}
	for i := range ends {
		l.HostComputeEndpoints = append(l.HostComputeEndpoints, GUID(fmt.Sprintf("C0FFEE00-0000-4000-8000-%012X", i)))
	}
	return l
}

// TestLoadBalancerBounds: each list may be long, but not all of them together.
func TestLoadBalancerBounds(t *testing.T) {
	for _, tc := range []struct {
		vips, ports, ends int
		says              string
	}{
		{4096, 1, 16, ""},
		{1, 4096, 16, ""},
		{2, 8, 4096, ""},
		{4096, 2, 0, "PortMappings: 2 ports at 4096 FrontendVIPs are 8192 services, 4096 is the limit"},
		{4096, 4096, 4096, "PortMappings"},
		{2, 9, 4096, "HostComputeEndpoints: 4096 back ends of 18 services"},
	} {
		code := ErrorCode(0)
		if tc.says != "" {
			code = ErrInvalidParameter
		}
		checkErr(t, wideBalancer(tc.vips, tc.ports, tc.ends).Validate(), code, tc.says)
	}
}

// TestLoadBalancerV1 reads a policy list as clients of version 1 write it, and shows the same again.
func TestLoadBalancerV1(t *testing.T) {
	const list = `{"ID":"C0FFEE00-0000-4000-8000-000000000009","References":["/endpoints/c0ffee00-0000-4000-8000-000000000001"],
		"Policies":[{"Type":"ELB","Protocol":6,"InternalPort":8080,"ExternalPort":80,"SourceVIP":"10.0.0.9","VIPs":["10.96.0.10"],"ILB":true,"IsDSR":true},
		{"Type":"elb","Protocol":17,"InternalPort":53,"SourceVIP":"10.0.0.9","VIPs":["10.96.0.10"],"IsDSR":true}]}`
	v, err := Decode[HNSPolicyList]([]byte(list))
	if err != nil {
		t.Fatal(err)
	}
	l, err := LoadBalancerFromV1(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
	want := &HostComputeLoadBalancer{
		ID: "C0FFEE00-0000-4000-8000-000000000009", HostComputeEndpoints: []GUID{"C0FFEE00-0000-4000-8000-000000000001"},
		SourceVIP: "10.0.0.9", FrontendVIPs: []string{"10.96.0.10"}, Flags: EnableDirectServerReturn,
		PortMappings: []LoadBalancerPortMapping{
			{Protocol: ProtocolTCP, InternalPort: 8080, ExternalPort: 80, Flags: EnableInternalLoadBalancer},
			{Protocol: ProtocolUDP, InternalPort: 53},
		},
	}
	if d := cmp.Diff(want, l); d != "" {
		t.Error(d)
	}
	back, err := json.Marshal(LoadBalancerToV1(l))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode[HNSPolicyList](back)
	if err != nil {
		t.Fatal(err)
	}
	if l, err = LoadBalancerFromV1(again); err != nil || !cmp.Equal(want, l) {
		t.Errorf("there and back: %s, %v", back, err)
	}
	for name, tc := range map[string]struct {
		list string
		code ErrorCode
	}{
		"no policy":     {`{"References":[]}`, ErrInvalidPolicy},
		"a route":       {`{"Policies":[{"Type":"ROUTE","DestinationPrefix":"10.0.0.0/8","NextHop":"10.0.0.1"}]}`, ErrRequestUnsupported},
		"another type":  {`{"Policies":[{"Type":"ACL"}]}`, ErrInvalidPolicyType},
		"a network":     {`{"References":["/networks/c0ffee00-0000-4000-8000-000000000001"],"Policies":[{"Type":"ELB"}]}`, ErrInvalidJSONReference},
		"no reference":  {`{"References":["x"],"Policies":[{"Type":"ELB"}]}`, ErrInvalidJSONReference},
		"other VIPs":    {`{"Policies":[{"Type":"ELB","VIPs":["10.0.0.1"]},{"Type":"ELB","VIPs":["10.0.0.2"]}]}`, ErrInvalidPolicy},
		"no such value": {`{"Policies":[{"Type":"ELB","Protocol":"carrots"}]}`, ErrInvalidParameter},
	} {
		v, err := Decode[HNSPolicyList]([]byte(tc.list))
		if err == nil {
			_, err = LoadBalancerFromV1(v)
		}
		if err == nil || tc.code != ErrInvalidParameter && CodeOf(err) != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code.Name())
		}
	}
}
