package hcn

import (
	"reflect"
	"strings"
	"testing"
)

// TestMisfit: what is wrong with a document is told by its path and in the words of JSON.
func TestMisfit(t *testing.T) {
	network := func(b []byte) error { _, err := Decode[HostComputeNetwork](b); return err }
	endpoint := func(b []byte) error { _, err := Decode[HostComputeEndpoint](b); return err }
	for _, tc := range []struct {
		decode    func([]byte) error
		doc, want string
	}{
		{network, `{"Name":7}`, "Name: a number stands where a string is wanted"},
		{network, `{"Name":"x","Ipams":{}}`, "Ipams: an object stands where a list is wanted"},
		{network, `{"Ipams":[{},{"Subnets":[{"Flags":[]}]}]}`, "Ipams[1].Subnets[0].Flags must be a number or names"},
		{network, `{"Ipams":[{"Type":"Magic"}]}`, `Ipams[0].Type "Magic" is not known`},
		{network, `{"Ipams":[{"Subnets":[{"ID":"nat"}]}]}`, `Ipams[0].Subnets[0].ID: "nat" is not a GUID`},
		{network, `{"ipams":[{"subnets":[{"routes":[{"metric":70000}]}]}]}`, "Ipams[0].Subnets[0].Routes[0].Metric: number 70000 stands where a whole number from 0 to 65535 is wanted"},
		{network, `{"Policies":[{"Type":"SetPolicy"},7]}`, `Policies[1]: a policy is {"Type":name,"Settings":object}: a number stands where an object is wanted`},
		{network, `{"Policies":[{"Type":7}]}`, "Policies[0].Type: "},
		{network, `{"Flags":"Fast"}`, `Flags: "Fast" is not a flag`},
		{network, `{"Type":"Infrared"}`, `Type "Infrared" is not known`},
		{network, `{"SchemaVersion":"2"}`, "SchemaVersion"},
		{endpoint, `{"HostComputeNetwork":"back"}`, `HostComputeNetwork: "back" is not a GUID`},
		{endpoint, `{"IpConfigurations":[{"PrefixLength":"24"}]}`, "IpConfigurations[0].PrefixLength: a string stands where a whole number from 0 to 255 is wanted"},
		{endpoint, `{"MacAddress":7}`, "MacAddress"},
		{endpoint, `{"Name":true}`, "Name: true or false stands where a string is wanted"},
		{endpoint, `{"Dns":{"Search":"example"}}`, "Dns.Search: a string stands where a list is wanted"},
	} {
		err := tc.decode([]byte(tc.doc))
		if err == nil || !strings.HasPrefix(AsError(err).Detail, tc.want) {
			t.Errorf("%s\n got %v\nwant … %s", tc.doc, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), "hcn.") || strings.Contains(err.Error(), "Go ") || strings.Contains(err.Error(), "json:")) {
			t.Errorf("%s: %v names what is ours", tc.doc, err)
		}
	}
}

func TestPathOfMisfit(t *testing.T) {
	type inner struct {
		Words []string `json:"words"`
	}
	type outer struct {
		Port  uint16  `json:"port"`
		Inner []inner `json:"inner"`
	}
	for doc, want := range map[string]string{
		`{"port":"x"}`:                      "port",
		`{"inner":[{},{"words":["a",1]}]}`:  "inner[1].words[1]",
		`{"inner":7,"port":1}`:              "inner",
		`{"port":1}`:                        "",
		`[]`:                                "",
		`{"unknown":1}`:                     "",
		`{"port":"x","port":1}`:             "",
		`{"port":1,"inner":[{"words":"a"}]`: "",
	} {
		if got := PathOfMisfit(reflect.TypeFor[outer](), []byte(doc)); got != want {
			t.Errorf("%s: %q, want %q", doc, got, want)
		}
	}
}

// TestModifyPaths: an error names the place in the request, whatever the place in the document that comes of it.
func TestModifyPaths(t *testing.T) {
	n := natNetwork(t, NAT)
	for _, tc := range []struct{ doc, want string }{
		{
			`{"ResourceType":"Subnet","RequestType":"Add","Settings":{"Subnets":[
			{"IpAddressPrefix":"10.99.0.0/24","Routes":[{"NextHop":"10.99.0.1","DestinationPrefix":"0.0.0.0/0"}]},{"IpAddressPrefix":"10.98.0.0/24"}]}}`,
			"Settings.Subnets[1]",
		},
		{`{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"VSwitchExtension","Settings":{"ExtensionID":"c0ffee00-0000-4000-8000-000000000001"}},
			{"Type":"HostRoute","Settings":{}}]}}`, "Settings.Policies[1]"},
		{
			`{"ResourceType":"IPSubnet","RequestType":"Add","Settings":{"SubnetId":"` + string(n.AllSubnets()[0].ID) + `","IpSubnets":[{"IpAddressPrefix":"192.0.2.0/28"}]}}`,
			"Settings.IpSubnets[0]",
		},
		{`{"ResourceType":"DNS","RequestType":"Update","Settings":{"ServerList":["here"]}}`, "Settings.ServerList[0]"},
		{`{"ResourceType":"Policy","RequestType":"Remove","Settings":{"Policies":[{"Type":"HostRoute","Settings":{}}]}}`, "Settings.Policies[0]"},
	} {
		r, err := Decode[ModifyNetworkSettingRequest]([]byte(tc.doc))
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Apply(n, NewGUID)
		if err == nil || !strings.HasPrefix(AsError(err).Detail, tc.want) {
			t.Errorf("%s\n got %v\nwant … %s", tc.doc, err, tc.want)
		}
	}
}

// TestModifyShowsOwn: what the request makes wrong may be a policy that was there before.
func TestModifyShowsOwn(t *testing.T) {
	list := []EndpointPolicy{NewEndpointPolicy(L2Driver, EmptySetting{}), NewEndpointPolicy(QOS, QosPolicySetting{})}
	name := policyPaths(list, list[1:], "endpoint")
	for before, want := range map[string]string{
		"Policies[1].Settings.X: no":                    "Settings.Policies[0].Settings.X: no",
		"Policies[0]: no":                               "with this request the endpoint's own Policies[0]: no",
		"Ipams[0].Subnets[1].Policies[0]: no":           "Ipams[0].Subnets[1].Policies[0]: no",
		"nothing of that, although it says Policies[0]": "nothing of that, although it says Policies[0]",
	} {
		if got := AsError(inRequest(Errorf(ErrInvalidPolicy, "%s", before), name)).Detail; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
