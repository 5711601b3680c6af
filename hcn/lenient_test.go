package hcn

import (
	"strings"
	"testing"
)

// TestWholeNumbers: JSON does not tell 80.0 from 80, so neither do policies.
func TestWholeNumbers(t *testing.T) {
	have, err := Decode[HostComputeEndpoint]([]byte(`{"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for settings, want := range map[string]ErrorCode{
		`{"Protocol":6,"InternalPort":80.0,"ExternalPort":8080}`:   0,
		`{"Protocol":6,"InternalPort":8e1,"ExternalPort":80.80e2}`: 0,
		`{"Protocol":6,"InternalPort":80.5,"ExternalPort":8080}`:   ErrPolicyNotFound,
		`{"Protocol":6,"InternalPort":81.0,"ExternalPort":8080}`:   ErrPolicyNotFound,
	} {
		r, err := Decode[ModifyEndpointSettingRequest]([]byte(`{"ResourceType":"Policy","RequestType":"Remove","Settings":{"Policies":[{"Type":"PortMapping","Settings":` + settings + `}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Apply(have, &HostComputeNetwork{Type: NAT})
		if err == nil && want != 0 || err != nil && CodeOf(err) != want {
			t.Errorf("%s: %v", settings, err)
		}
	}
}

func TestUnknownVersion(t *testing.T) {
	for version, v1 := range map[string]bool{`{}`: true, `{"SchemaVersion":{"Major":1}}`: true, `{"SchemaVersion":{"Major":2,"Minor":14}}`: false} {
		if got, err := IsV1([]byte(version)); err != nil || got != v1 {
			t.Errorf("%s: %v, %v", version, got, err)
		}
	}
	_, err := IsV1([]byte(`{"SchemaVersion":{"Major":3}}`))
	if CodeOf(err) != ErrRequestUnsupported || !strings.Contains(err.Error(), "use Major 2") {
		t.Errorf("a document of version 3: %v", err)
	}
	if _, err := ParseQuery(`{"SchemaVersion":{"Major":3}}`); CodeOf(err) != ErrRequestUnsupported {
		t.Errorf("a query for version 3: %v", err)
	}
}

// TestUnknownWord: what the client sent is quoted once.
func TestUnknownWord(t *testing.T) {
	_, err := Decode[ModifyNetworkSettingRequest]([]byte(`{"ResourceType":"Nope","RequestType":"Add"}`))
	if err == nil || !strings.Contains(err.Error(), `ResourceType "Nope" is not known`) {
		t.Error(err)
	}
}

func TestLayerIsUnknown(t *testing.T) {
	n, err := Decode[HostComputeNetwork]([]byte(`{"Type":"NAT","Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}],
		"Policies":[{"Type":"LayerConstraint","Settings":{"LayerId":"c0ffee00-0000-4000-8000-000000000001"}}],"SchemaVersion":{"Major":2}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Validate(); CodeOf(err) != ErrLayerNotFound || !strings.Contains(err.Error(), "LayerId") {
		t.Errorf("a layer that is not there: %v", err)
	}
}

// TestSwitchOfNIC: networks on one NIC show the same switch, others their own.
func TestSwitchOfNIC(t *testing.T) {
	on := func(kind NetworkType, nic string) *HostComputeNetwork {
		return &HostComputeNetwork{ID: NewGUID(), Type: kind, Policies: []NetworkPolicy{NewNetworkPolicy(NetAdapterName, NetAdapterNamePolicySetting{nic})}}
	}
	a, b, c := on(Transparent, "eth0"), on(L2Bridge, "eth0"), on(Transparent, "eth1")
	if a.SwitchGUID() != b.SwitchGUID() || a.SwitchGUID() == c.SwitchGUID() || a.SwitchGUID() == a.ID {
		t.Errorf("switches %s, %s, %s", a.SwitchGUID(), b.SwitchGUID(), c.SwitchGUID())
	}
	if id, err := ParseGUID(string(a.SwitchGUID())); err != nil || id != a.SwitchGUID() {
		t.Errorf("%s is no GUID: %v", a.SwitchGUID(), err)
	}
	if n := on(NAT, "eth0"); n.SwitchGUID() != n.ID {
		t.Errorf("a NAT network has the switch %s", n.SwitchGUID())
	}
}
