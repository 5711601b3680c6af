package hcn

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seed adds every document of testdata.
func seed(f *testing.F) {
	f.Helper()
	files, err := filepath.Glob("testdata/docs/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	// Once as deep as may be, once too deep by a level, and what only looks deep.
	f.Add([]byte(nested(MaxDepth - 1)))
	f.Add([]byte(nested(MaxDepth)))
	f.Add([]byte(`{"Name":"` + strings.Repeat(`[{\"`, MaxDepth) + `"}`))
}

// nested is a document with this many levels inside the outermost.
func nested(levels int) string {
	return `{"AdditionalParams":` + strings.Repeat(`{"a":`, levels-1) + `{}` + strings.Repeat(`}`, levels-1) + `,"SchemaVersion":{"Major":2},"Name":"deep"}`
}

// TestDepth: what is too deep is refused wherever it comes in, and by name.
func TestDepth(t *testing.T) {
	for _, levels := range []int{MaxDepth, 9998, 9999, 100_000} {
		_, err := Decode[HostComputeNetwork]([]byte(nested(levels)))
		if CodeOf(err) != ErrInvalidJSON || !strings.Contains(err.Error(), `member "AdditionalParams" nests deeper than 64 levels`) {
			t.Errorf("%d levels: %v", levels, err)
		}
		if _, err := ParseFilter(strings.Repeat(`{"Name":`, levels+1) + `1` + strings.Repeat(`}`, levels+1)); CodeOf(err) != ErrInvalidJSON {
			t.Errorf("a filter of %d levels: %v", levels, err)
		}
		if got := UnknownMembers[HostComputeNetwork]([]byte(nested(levels))); got != nil {
			t.Errorf("%d levels were looked into: %v", levels, got)
		}
	}
	for _, doc := range []string{nested(MaxDepth - 1), `{"Name":"` + strings.Repeat(`[`, 1000) + `\"{"}`, `{"Owner":"a\\","Name":"{"}`} {
		if _, err := Decode[HostComputeNetwork]([]byte(doc)); err != nil {
			t.Errorf("%.60s: %v", doc, err)
		}
	}
}

// stable checks that what was decoded, written and decoded again is written the same, and that a clone is written the same.
func stable[T any](t *testing.T, v *T, clone func(*T) *T) {
	t.Helper()
	first, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	again, err := Decode[T](first)
	if err != nil {
		t.Fatalf("read back %s: %v", first, err)
	}
	second, err := json.Marshal(again)
	if err != nil {
		t.Fatalf("write again: %v", err)
	}
	if string(first) != string(second) {
		t.Fatalf("not stable:\n%s\n%s", first, second)
	}
	copied, err := json.Marshal(clone(v))
	if err != nil || string(copied) != string(first) {
		t.Fatalf("the clone differs: %v\n%s\n%s", err, first, copied)
	}
}

// ourError fails unless an error is one of ours with a code that has a name.
func ourError(t *testing.T, err error) {
	t.Helper()
	if err != nil && CodeOf(err) == ErrUnspecified {
		t.Fatalf("an error without a code: %v", err)
	}
}

func FuzzNetwork(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		UnknownMembers[HostComputeNetwork](b)
		if v1, err := Decode[HNSNetwork](b); err == nil {
			n, err := NetworkFromV1(v1)
			ourError(t, err)
			if err == nil {
				ourError(t, n.validateSchema())
			}
		}
		n, err := Decode[HostComputeNetwork](b)
		ourError(t, err)
		if err != nil {
			return
		}
		stable(t, n, (*HostComputeNetwork).Clone)
		ourError(t, n.validateSchema())
		ourError(t, n.Validate())
		n.Defaults(NewGUID)
		NetworkToV1(n)
		stable(t, n, (*HostComputeNetwork).Clone)
	})
}

func FuzzEndpoint(f *testing.F) {
	seed(f)
	network := HostComputeNetwork{Ipams: []Ipam{{Subnets: []Subnet{{
		IpAddressPrefix: "172.20.0.0/24", Routes: []Route{{NextHop: "172.20.0.1", DestinationPrefix: "0.0.0.0/0"}},
	}}}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		UnknownMembers[HostComputeEndpoint](b)
		if v1, err := Decode[HNSEndpoint](b); err == nil {
			e, err := EndpointFromV1(v1)
			ourError(t, err)
			if err == nil {
				ourError(t, e.validateSchema())
			}
		}
		e, err := Decode[HostComputeEndpoint](b)
		ourError(t, err)
		if err != nil {
			return
		}
		stable(t, e, (*HostComputeEndpoint).Clone)
		ourError(t, e.ValidateFor(&network))
		if e.Validate() == nil {
			if _, err := e.PortMappings(); err != nil {
				t.Fatalf("a valid endpoint does not decode: %v", err)
			}
		}
		e.Defaults(&network)
		EndpointToV1(e, &network)
		stable(t, e, (*HostComputeEndpoint).Clone)
	})
}

func FuzzNamespace(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Decode[HostComputeNamespace](b)
		ourError(t, err)
		if err != nil {
			return
		}
		stable(t, n, (*HostComputeNamespace).Clone)
		ourError(t, n.Validate())
		NamespaceFromV1(NamespaceToV1(n))
	})
}

func FuzzLoadBalancer(f *testing.F) {
	seed(f)
	f.Add([]byte(`{"References":["/endpoints/c0ffee00-0000-4000-8000-000000000001"],"Policies":[{"Type":"ELB","Protocol":6,"InternalPort":80,"VIPs":["10.96.0.1"]}]}`))
	for _, wide := range []*HostComputeLoadBalancer{wideBalancer(64, 64, 1), wideBalancer(64, 65, 1), wideBalancer(16, 16, 257)} {
		b, err := json.Marshal(wide)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := Decode[HNSPolicyList](b); err == nil {
			l, err := LoadBalancerFromV1(v)
			ourError(t, err)
			if err == nil {
				LoadBalancerToV1(l)
			}
		}
		l, err := Decode[HostComputeLoadBalancer](b)
		ourError(t, err)
		if err != nil {
			return
		}
		stable(t, l, (*HostComputeLoadBalancer).Clone)
		ourError(t, l.Validate())
		if l.Validate() != nil {
			return
		}
		if l.Defaults(); l.Validate() != nil {
			t.Fatalf("with defaults it is not valid: %v", l.Validate())
		}
		if len(l.VIPs()) != len(l.FrontendVIPs) {
			t.Fatalf("%d virtual addresses of %q", len(l.VIPs()), l.FrontendVIPs)
		}
		if n := len(l.VIPs()) * len(l.PortMappings); n > maxServices || n*len(l.HostComputeEndpoints) > maxServed {
			t.Fatalf("%d services of %d back ends are valid", n, len(l.HostComputeEndpoints))
		}
	})
}

func FuzzModify(f *testing.F) {
	seed(f)
	f.Add([]byte(`{"ResourceType":"Policy","RequestType":"Update","Settings":{"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}]}}`))
	f.Add([]byte(`{"ResourceType":"Subnet","RequestType":"Add","Settings":{"Subnets":[` + subnet4 + `]}}`))
	f.Add([]byte(`{"ResourceType":"Port","RequestType":"Add","Settings":{"PortId":"c0ffee00-0000-4000-8000-000000000001","VirtualMachineId":"{C0FFEE00-0000-8000-8000-000000000002}","VirtualNicName":"a--b"}}`))
	f.Add([]byte(`{"ResourceType":"State","RequestType":"Update","Settings":{"State":"Synchronized"}}`))
	f.Add([]byte(`{"ResourceType":"Endpoint","RequestType":"Add","Settings":{"EndpointId":"c0ffee00-0000-4000-8000-000000000001"}}`))
	network := HostComputeNetwork{ID: NewGUID()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := Decode[ModifyNetworkSettingRequest](b); err == nil {
			n, err := r.Apply(&network, NewGUID)
			ourError(t, err)
			if err == nil && n.Validate() != nil {
				t.Fatalf("the result is not valid: %v", n.Validate())
			}
		}
		if r, err := Decode[ModifyEndpointSettingRequest](b); err == nil {
			e, err := r.Apply(&HostComputeEndpoint{}, &network)
			ourError(t, err)
			if err == nil && e.ValidateFor(&network) != nil {
				t.Fatalf("the result is not valid: %v", e.ValidateFor(&network))
			}
		}
		if r, err := Decode[ModifyNamespaceSettingRequest](b); err == nil {
			_, err := r.Resource()
			ourError(t, err)
		}
		if r, err := Decode[ModifyGuestServiceSettingRequest](b); err == nil {
			ourError(t, r.Validate())
		}
	})
}

func FuzzGuestNetworkService(f *testing.F) {
	seed(f)
	f.Add([]byte(`{"VirtualMachineId":"c0ffee00-0000-8000-8000-000000000002","Flags":"IsFlowsteered|2","State":3,"MirroredInterfaces":[{}]}`))
	f.Add([]byte(`{"VirtualMachineId":"{C0FFEE00-0000-8000-8000-000000000002}","State":"rehydrating","GnsRpcServerInformation":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		UnknownMembers[GuestNetworkService](b)
		g, err := Decode[GuestNetworkService](b)
		ourError(t, err)
		if err != nil {
			return
		}
		stable(t, g, (*GuestNetworkService).Clone)
		ourError(t, g.Validate())
		if g.Validate() == nil && (g.VirtualMachineId.IsZero() || g.Flags != 0 || g.MirrorHostNetworking) {
			t.Fatalf("valid without effect: %+v", g)
		}
	})
}

func FuzzQuery(f *testing.F) {
	f.Add(`{"Filter":"{\"Name\":\"nat\"}"}`)
	f.Add(`{"SchemaVersion":{"Major":2},"Flags":1,"Filter":{"IpAddress":"10.0.0.1","Flags":"1|2"}}`)
	f.Fuzz(func(t *testing.T, s string) {
		q, err := ParseQuery(s)
		ourError(t, err)
		if err != nil {
			return
		}
		filter, err := q.Parse()
		ourError(t, err)
		if err != nil {
			return
		}
		filter.MatchNetwork(&HostComputeNetwork{Name: "nat"})
		filter.MatchEndpoint(&HostComputeEndpoint{IpConfigurations: []IpConfig{{IpAddress: "10.0.0.1"}}})
		filter.MatchNamespace(&HostComputeNamespace{})
		filter.MatchLoadBalancer(&HostComputeLoadBalancer{})
		filter.MatchRoute(&HostComputeRoute{})
		filter.MatchGuestNetworkService(&GuestNetworkService{})
	})
}
