package hcn

import (
	"fmt"
	"strings"
	"testing"
)

// checkErr wants no error for an empty code, else that code and a detail that holds every word of where.
func checkErr(t *testing.T, err error, code ErrorCode, where string) {
	t.Helper()
	if code == 0 {
		if err != nil {
			t.Errorf("got %v, want no error", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("got no error, want %s", code.Name())
	}
	if CodeOf(err) != code || !strings.Contains(err.Error(), where) {
		t.Errorf("got %s: %v\nwant %s with %q", CodeOf(err).Name(), err, code.Name(), where)
	}
	if !strings.HasPrefix(err.Error(), code.Text()) {
		t.Errorf("%v does not begin with the text of the table", err)
	}
}

const (
	subnet4 = `{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"0.0.0.0/0"}]}`
	subnet6 = `{"IpAddressPrefix":"fd00:1::/64","Routes":[{"NextHop":"fd00:1::1","DestinationPrefix":"::/0"}]}`
)

func withSubnet(s string) string { return `{"Ipams":[{"Subnets":[` + s + `]}]}` }

func prefix(p, gw string) string {
	dst := "0.0.0.0/0"
	if strings.Contains(p, ":") {
		dst = "::/0"
	}
	return fmt.Sprintf(`{"IpAddressPrefix":%q,"Routes":[{"NextHop":%q,"DestinationPrefix":%q}]}`, p, gw, dst)
}

func TestNetworkValidate(t *testing.T) {
	const p = "Ipams[0].Subnets[0]"
	for _, tc := range []struct {
		name, doc string
		code      ErrorCode
		where     string
	}{
		{"empty", `{}`, 0, ""},
		{"internal", `{"Type":"Internal","Ipams":[{"Subnets":[` + subnet4 + `,` + subnet6 + `]}]}`, 0, ""},
		{"private without gateway", `{"Type":"Private","Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24"}]}]}`, 0, ""},
		{"private keeps no gateway", `{"Type":"Private","Flags":1024,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24","Flags":1}]}]}`, 0, ""},
		{"all supported flags", `{"Flags":"EnableDnsProxy|EnablePersistent|IsolateVSwitch|DisableSharing"}`, 0, ""},
		{"name with slash", `{"Name":"a/b"}`, ErrInvalidNetwork, "Name"},
		{"name with newline", `{"Name":"a\nb"}`, ErrInvalidNetwork, "Name"},
		{"name with escape", `{"Name":"\u001b[2J"}`, ErrInvalidNetwork, "unprintable"},
		{"name with bidi override", `{"Name":"a\u202eb"}`, ErrInvalidNetwork, "unprintable"},
		{"name of dots", `{"Name":".."}`, ErrInvalidNetwork, "Name"},
		{"name too long", `{"Name":"` + strings.Repeat("x", 254) + `"}`, ErrInvalidNetwork, "253"},
		{"longest name", `{"Name":"` + strings.Repeat("x", 253) + `"}`, 0, ""},
		{"owner unprintable", `{"Owner":"\u0000"}`, ErrInvalidNetwork, "Owner"},
		{"unknown flag", `{"Flags":16384}`, ErrInvalidNetwork, "Flags"},
		{"both persistences", `{"Flags":24}`, ErrInvalidNetwork, "exclude each other"},
		{"mac range swapped", `{"MacPool":{"Ranges":[{"StartMacAddress":"00-15-5D-00-00-02","EndMacAddress":"00-15-5D-00-00-01"}]}}`, ErrInvalidNetwork, "MacPool.Ranges[0]"},
		{"mac range of groups", `{"MacPool":{"Ranges":[{"StartMacAddress":"01-15-5D-00-00-02","EndMacAddress":"01-15-5D-00-00-03"}]}}`, ErrInvalidNetwork, "StartMacAddress"},
		{"mac range over vendors", `{"MacPool":{"Ranges":[{"StartMacAddress":"00-15-5D-00-00-02","EndMacAddress":"02-15-5D-00-00-03"}]}}`, ErrInvalidNetwork, "first byte"},
		{"mac range half", `{"MacPool":{"Ranges":[{"StartMacAddress":"00-15-5D-00-00-02"}]}}`, ErrInvalidNetwork, "EndMacAddress"},
		{"dns server no address", `{"Dns":{"ServerList":["dns.example"]}}`, ErrInvalidNetwork, "Dns.ServerList[0]"},
		{"dns server zone", `{"Dns":{"ServerList":["fe80::1%eth0"]}}`, ErrInvalidNetwork, "zone"},
		{"dns search line break", `{"Dns":{"Search":["a\nnameserver 6.6.6.6"]}}`, ErrInvalidNetwork, "Dns.Search[0]"},
		{"dns option line break", `{"Dns":{"Options":["ndots:1\nx"]}}`, ErrInvalidNetwork, "Dns.Options[0]"},
		{"dns domain dash", `{"Dns":{"Domain":"-a.b"}}`, ErrInvalidNetwork, "Dns.Domain"},
		{"too many dns servers", `{"Dns":{"ServerList":[` + strings.Repeat(`"10.0.0.1",`, 32) + `"10.0.0.1"]}}`, ErrInvalidNetwork, "32 is the limit"},

		{"dhcp on nat", `{"Ipams":[{"Type":"Dhcp"}]}`, ErrInvalidNetwork, "Ipams[0].Type"},
		{"prefix missing", withSubnet(`{}`), ErrInvalidPrefix, p + ".IpAddressPrefix"},
		{"prefix nonsense", withSubnet(prefix("10.1/24", "10.1.0.1")), ErrInvalidPrefix, "10.1/24"},
		{"prefix host bits", withSubnet(prefix("10.1.0.1/24", "10.1.0.1")), ErrInvalidPrefix, "write 10.1.0.0/24"},
		{"prefix multicast", withSubnet(prefix("224.0.0.0/24", "224.0.0.1")), ErrInvalidPrefix, "not for hosts"},
		{"prefix class e", withSubnet(prefix("240.0.0.0/24", "240.0.0.1")), ErrInvalidPrefix, "not for hosts"},
		{"prefix loopback", withSubnet(prefix("127.0.0.0/24", "127.0.0.1")), ErrInvalidPrefix, "not for hosts"},
		{"prefix link-local", withSubnet(prefix("fe80::/64", "fe80::1")), ErrInvalidPrefix, "not for hosts"},
		{"prefix all", withSubnet(prefix("0.0.0.0/0", "10.0.0.1")), ErrInvalidPrefix, "not for hosts"},
		{"prefix huge", withSubnet(prefix("10.0.0.0/7", "10.0.0.1")), ErrInvalidPrefix, p},
		{"prefix mapped", withSubnet(prefix("::ffff:10.0.0.0/120", "10.0.0.1")), ErrInvalidPrefix, p},
		{"prefix tiny", withSubnet(prefix("10.1.0.0/31", "10.1.0.1")), ErrInvalidSubnet, "no room"},
		{"prefix host", withSubnet(prefix("fd00::1/128", "fd00::1")), ErrInvalidSubnet, "no room"},
		{"smallest", withSubnet(prefix("10.1.0.0/30", "10.1.0.1")), 0, ""},
		{"no gateway", withSubnet(`{"IpAddressPrefix":"10.1.0.0/24"}`), ErrInvalidSubnet, p + ".Routes: there is no default route"},
		{"no default route", withSubnet(`{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"10.2.0.0/16"}]}`), ErrInvalidSubnet, "no default route"},
		{"default route with host bits", withSubnet(`{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"1.1.1.1/0"}]}`), ErrInvalidSubnet, "write 0.0.0.0/0"},
		{"route without hop", withSubnet(`{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"DestinationPrefix":"0.0.0.0/0"}]}`), ErrInvalidSubnet, p + ".Routes[0]: NextHop"},
		{"two default routes", withSubnet(`{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"0.0.0.0/0"},{"NextHop":"10.1.0.2","DestinationPrefix":"0.0.0.0/0"}]}`), ErrInvalidSubnet, "Routes[1]"},
		{"gateway of other family", withSubnet(`{"IpAddressPrefix":"10.1.0.0/24","Routes":[{"NextHop":"fd00::1","DestinationPrefix":"::/0"}]}`), ErrInvalidSubnet, "family"},
		{"multicast without hosts", `{"Policies":[{"Type":"Bulkhead.Multicast","Settings":{}}]}`, ErrRequestUnsupported, "Multicast"},
		{"gateway outside", withSubnet(prefix("10.1.0.0/24", "10.2.0.1")), ErrInvalidSubnet, "outside"},
		{"gateway is network", withSubnet(prefix("10.1.0.0/24", "10.1.0.0")), ErrInvalidSubnet, "network or broadcast"},
		{"gateway is broadcast", withSubnet(prefix("10.1.0.0/24", "10.1.0.255")), ErrInvalidSubnet, "network or broadcast"},
		{"gateway link-local on nat", withSubnet(prefix("fd00:1::/64", "fe80::1")), ErrInvalidSubnet, "outside"},
		{"overlap", withSubnet(subnet4 + `,` + prefix("10.1.0.0/16", "10.1.0.1")), ErrInvalidSubnet, "overlaps 10.1.0.0/24"},
		{"overlap over ipams", `{"Ipams":[{"Subnets":[` + subnet4 + `]},{"Subnets":[` + subnet4 + `]}]}`, ErrInvalidSubnet, "Ipams[1].Subnets[0]"},
		{"block outside", withSubnet(strings.Replace(subnet4, `"Routes"`, `"IpSubnets":[{"IpAddressPrefix":"10.2.0.0/25"}],"Routes"`, 1)), ErrInvalidIPSubnet, p + ".IpSubnets[0]"},
		{"block wider", withSubnet(strings.Replace(subnet4, `"Routes"`, `"IpSubnets":[{"IpAddressPrefix":"10.1.0.0/16"}],"Routes"`, 1)), ErrInvalidIPSubnet, "not inside"},
		{"blocks overlap", withSubnet(strings.Replace(subnet4, `"Routes"`, `"IpSubnets":[{"IpAddressPrefix":"10.1.0.0/25"},{"IpAddressPrefix":"10.1.0.64/26"}],"Routes"`, 1)), ErrInvalidIPSubnet, "IpSubnets[1]"},
		{"block flag", withSubnet(strings.Replace(subnet4, `"Routes"`, `"IpSubnets":[{"IpAddressPrefix":"10.1.0.0/25","Flags":1}],"Routes"`, 1)), ErrRequestUnsupported, "IpSubnets[0].Flags"},
		{"same ids", withSubnet(strings.Replace(subnet4, `{`, `{"ID":"c0ffee00-0000-4000-8000-000000000001",`, 1) + `,` + strings.Replace(subnet6, `{`, `{"ID":"C0FFEE00-0000-4000-8000-000000000001",`, 1)), ErrInvalidSubnet, "Subnets[1].ID"},
		{"gateway given away on nat", withSubnet(strings.Replace(subnet4, `{`, `{"Flags":1,`, 1)), ErrRequestUnsupported, "DoNotReserveGatewayAddress"},

		{"policy unknown", `{"Policies":[{"Type":"Magic"}]}`, ErrInvalidPolicyType, "Policies[0]: \"Magic\""},
		{"policy without type", `{"Policies":[{}]}`, ErrInvalidPolicyType, "no Type"},
		{"policy of endpoints", `{"Policies":[{"Type":"PortMapping"}]}`, ErrInvalidPolicyType, "PortMapping"},
		{"policy settings of wrong kind", `{"Policies":[{"Type":"AutomaticDNS","Settings":{"Enable":"yes"}}]}`, ErrInvalidPolicy, "Enable"},
		{"policy settings no object", `{"Policies":[{"Type":"AutomaticDNS","Settings":[1]}]}`, ErrInvalidPolicy, "Policies[0]"},
		{"automatic DNS off", `{"Policies":[{"Type":"AutomaticDNS","Settings":{"Enable":false}}]}`, ErrRequestUnsupported, "Policies[0]"},
		{"automatic DNS on a closed network", `{"Type":"Private","Policies":[{"Type":"AutomaticDNS","Settings":{"Enable":true}}]}`, ErrRequestUnsupported, "Policies[0]"},
		{"policy twice", `{"Policies":[{"Type":"AutomaticDNS"},{"Type":"AutomaticDNS"}]}`, ErrPolicyAlreadyExists, "Policies[1]"},
		{"source mac group", `{"Policies":[{"Type":"SourceMacAddress","Settings":{"SourceMacAddress":"01-00-00-00-00-00"}}]}`, ErrInvalidPolicy, "SourceMacAddress"},
		{"source mac on private", `{"Type":"Private","Policies":[{"Type":"SourceMacAddress","Settings":{"SourceMacAddress":"02-00-00-00-00-01"}}]}`, ErrRequestUnsupported, "SourceMacAddress"},
		{"exclusions", `{"Policies":[{"Type":"Bulkhead.Exclusions","Settings":{"Prefixes":["10.1.0.64/26"],"Ranges":["10.1.0.10-10.1.0.20"]}}]}`, 0, ""},
		{"exclusions backwards", `{"Policies":[{"Type":"Bulkhead.Exclusions","Settings":{"Ranges":["10.1.0.20-10.1.0.10"]}}]}`, ErrInvalidPolicy, "Ranges[0]"},
		{"vlan on nat", withSubnet(strings.Replace(subnet4, `"Routes"`, `"Policies":[{"Type":"VLAN","IsolationId":100}],"Routes"`, 1)), ErrRequestUnsupported, "VLAN"},
		{"vlan out of range", withSubnet(strings.Replace(subnet4, `"Routes"`, `"Policies":[{"Type":"VLAN","Settings":{"IsolationId":4095}}],"Routes"`, 1)), ErrInvalidPolicy, p + ".Policies[0].Settings.IsolationId"},
		{"dns proxy on private", `{"Type":"Private","Flags":1}`, ErrRequestUnsupported, "EnableDnsProxy"},
		{"no host port on nat", `{"Flags":1024}`, ErrRequestUnsupported, "DisableHostPort"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := Decode[HostComputeNetwork]([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			checkErr(t, n.Validate(), tc.code, tc.where)
		})
	}
}

// TestNetworkSchemaOfAllTypes checks the rules of types that cannot be created yet, and that they indeed cannot.
func TestNetworkSchemaOfAllTypes(t *testing.T) {
	vsid := func(n string) string {
		return withSubnet(strings.Replace(subnet4, `"Routes"`, `"Policies":[{"Type":"VSID","Settings":{"IsolationId":`+n+`}}],"Routes"`, 1))
	}
	for _, tc := range []struct {
		typ, doc string
		code     ErrorCode
		where    string
	}{
		{"ICS", `{}`, 0, ""},
		{"ICS", `{"Ipams":[{"Type":"Dhcp"}]}`, 0, ""},
		{"Transparent", `{"Ipams":[{"Type":"Dhcp"}]}`, 0, ""},
		{"Transparent", `{}`, 0, ""},
		{"Transparent", withSubnet(prefix("2001:db8::/64", "fe80::1")), 0, ""},
		{"L2Bridge", `{}`, ErrInvalidNetwork, "needs a subnet"},
		{"L2Tunnel", `{}`, ErrInvalidNetwork, "needs a subnet"},
		{"Overlay", `{}`, ErrInvalidNetwork, "needs a subnet"},
		{"L2Bridge", withSubnet(subnet4), 0, ""},
		{"L2Bridge", `{"Ipams":[{"Type":1,"Subnets":[` + subnet4 + `]}]}`, ErrInvalidNetwork, "no DHCP server"},
		{"Overlay", withSubnet(subnet4), ErrInvalidSubnet, "VSID"},
		{"Overlay", vsid("4096"), 0, ""},
		{"Overlay", vsid("4095"), ErrInvalidPolicy, "IsolationId"},
		{"Overlay", vsid("16777215"), ErrInvalidPolicy, "IsolationId"},
	} {
		t.Run(tc.typ+" "+tc.where, func(t *testing.T) {
			n, err := Decode[HostComputeNetwork]([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Type.UnmarshalText([]byte(tc.typ)); err != nil {
				t.Fatal(err)
			}
			checkErr(t, n.validateSchema(), tc.code, tc.where)
			switch n.Type {
			case Transparent: // which can be: see TestTransparent
			case L2Bridge, L2Tunnel, Overlay:
				checkErr(t, n.Validate(), tc.code, tc.where)
			default:
				checkErr(t, n.Validate(), ErrInvalidNetworkType, tc.typ)
			}
		})
	}
}

// TestTransparent: what of a network on a LAN is enforced, and what is not yet.
func TestTransparent(t *testing.T) {
	tagged := strings.Replace(subnet4, `"Routes"`, `"Policies":[{"Type":"VLAN","Settings":{"IsolationId":100}}],"Routes"`, 1)
	for _, tc := range []struct {
		name, doc string
		code      ErrorCode
		where     string
	}{
		{"static", withSubnet(subnet4), 0, ""},
		{"router known by its link-local address", withSubnet(prefix("2001:db8::/64", "fe80::1")), 0, ""},
		{"tagged", withSubnet(tagged), 0, ""},
		{"by NIC", policies(`{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"eth1"}}`), ErrInvalidNetwork, "needs a subnet"},
		{"nothing", `{}`, ErrInvalidNetwork, "needs a subnet"},
		{"DHCP", `{"Ipams":[{"Type":"Dhcp"}]}`, 0, ""},
		{"DHCP by number", `{"Ipams":[{"Type":1}]}`, 0, ""},
		{"DHCP, held to a subnet", `{"Ipams":[{"Type":"Dhcp","Subnets":[{"IpAddressPrefix":"10.1.0.0/24"}]}]}`, 0, ""},
		{"DHCP in a VLAN", `{"Ipams":[{"Type":"Dhcp","Subnets":[{"Policies":[{"Type":"VLAN","Settings":{"IsolationId":100}}]}]}]}`, 0, ""},
		{"DHCP in two VLANs", `{"Ipams":[{"Type":"Dhcp","Subnets":[{"IpAddressPrefix":"10.1.0.0/24"},{"Policies":[{"Type":"VLAN","Settings":{"IsolationId":100}}]}]}]}`, ErrRequestUnsupported, "one VLAN"},
		{"DHCP, no prefix and a gateway", `{"Ipams":[{"Type":"Dhcp","Subnets":[{"Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}]}`, ErrInvalidSubnet, "Routes"},
		{"DHCP with blocks", `{"Ipams":[{"Type":"Dhcp","Subnets":[{"IpAddressPrefix":"10.1.0.0/24","IpSubnets":[{"IpAddressPrefix":"10.1.0.128/25"}]}]}]}`, ErrRequestUnsupported, "IpSubnets"},
		{"DHCP with exclusions", `{"Ipams":[{"Type":"Dhcp"}],"Policies":[{"Type":"Bulkhead.Exclusions","Settings":{"Prefixes":["10.1.0.0/28"]}}]}`, ErrRequestUnsupported, "Exclusions"},
		{"DHCP and static", `{"Ipams":[{"Type":"Dhcp"},` + strings.TrimSuffix(strings.TrimPrefix(withSubnet(subnet4), `{"Ipams":[`), `]}`) + `]}`, ErrRequestUnsupported, "both kinds"},
		{"static without prefix", `{"Ipams":[{"Subnets":[{}]}]}`, ErrInvalidPrefix, "IpAddressPrefix"},
		{"no host port", `{"Flags":1024,` + withSubnet(subnet4)[1:], ErrRequestUnsupported, "DisableHostPort"},
		{"DNS proxy", `{"Flags":1,` + withSubnet(subnet4)[1:], ErrRequestUnsupported, "EnableDnsProxy"},
		{"gateway given away", withSubnet(strings.Replace(subnet4, `{`, `{"Flags":1,`, 1)), 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := Decode[HostComputeNetwork]([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			n.Type = Transparent
			checkErr(t, n.Validate(), tc.code, tc.where)
		})
	}
}

// TestLeased: which endpoints ask the LAN for addresses.
func TestLeased(t *testing.T) {
	static, dhcp := withSubnet(subnet4), `{"Ipams":[{"Type":"Dhcp"}]}`
	for _, tc := range []struct {
		name, network string
		typ           NetworkType
		doc           string
		want          bool
		code          ErrorCode
	}{
		{"static network", static, Transparent, `{}`, false, 0},
		{"static network, by flag", static, Transparent, `{"Flags":32}`, true, 0},
		{"by name of the flag", static, Transparent, `{"Flags":"EnableDhcp"}`, true, 0},
		{"DHCP network", dhcp, Transparent, `{}`, true, 0},
		{"DHCP network, fixed", dhcp, Transparent, `{"IpConfigurations":[{"IpAddress":"192.0.2.9","PrefixLength":24}]}`, false, 0},
		{"both", static, Transparent, `{"Flags":32,"IpConfigurations":[{"IpAddress":"10.1.0.9"}]}`, true, ErrInvalidEndpoint},
		{"nobody to ask", static, NAT, `{"Flags":32}`, true, ErrRequestUnsupported},
		{"MTU too small for IPv6", dhcp, Transparent, `{"Policies":[{"Type":"InterfaceParameters","Settings":{"Mtu":1000}}]}`, true, ErrInvalidPolicy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := Decode[HostComputeNetwork]([]byte(tc.network))
			if err != nil {
				t.Fatal(err)
			}
			n.Type = tc.typ
			e, err := Decode[HostComputeEndpoint]([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			checkErr(t, e.ValidateFor(n), tc.code, "")
			if got := e.Leased(n); got != tc.want {
				t.Errorf("leased %t", got)
			}
		})
	}
}

// natNetwork is the network that endpoint tests live on.
func natNetwork(t *testing.T, typ NetworkType) *HostComputeNetwork {
	t.Helper()
	n := readDoc[HostComputeNetwork](t, "network-nat")
	n.Type = typ
	n.Defaults(fixedIDs())
	return n
}

func policies(list ...string) string { return `{"Policies":[` + strings.Join(list, ",") + `]}` }

func TestEndpointValidate(t *testing.T) {
	const mapping = `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080}}`
	mapped := func(settings string) string { return policies(`{"Type":"PortMapping","Settings":` + settings + `}`) }
	addr := func(s string) string { return `{"IpConfigurations":[` + s + `]}` }
	for _, tc := range []struct {
		name, doc string
		code      ErrorCode
		where     string
	}{
		{"empty", `{}`, 0, ""},
		{"low metric", `{"Flags":"EnableLowInterfaceMetric"}`, 0, ""},
		{"mac nonsense", `{"MacAddress":"zz"}`, ErrInvalidEndpoint, "MacAddress"},
		{"mac group", `{"MacAddress":"01-00-00-00-00-00"}`, ErrInvalidEndpoint, "group"},
		{"mac zero", `{"MacAddress":"00-00-00-00-00-00"}`, ErrInvalidEndpoint, "all-zero"},
		{"other network", `{"HostComputeNetwork":"c0ffee00-0000-4000-8000-000000000001"}`, ErrInvalidEndpoint, "HostComputeNetwork"},
		{"address nonsense", addr(`{"IpAddress":"10"}`), ErrInvalidIP, "IpConfigurations[0].IpAddress"},
		{"address mapped", addr(`{"IpAddress":"::ffff:172.20.0.5"}`), ErrInvalidIP, "write 172.20.0.5"},
		{"address missing", addr(`{}`), ErrInvalidIP, "missing"},
		{"any of a subnet", addr(`{"IpSubnetId":"00000000-0000-0000-0000-0000000000a1"}`), 0, ""},
		{"unknown subnet", addr(`{"IpSubnetId":"c0ffee00-0000-4000-8000-000000000009"}`), ErrSubnetNotFound, "IpSubnetId"},
		{"address not of its subnet", addr(`{"IpAddress":"fd00:20::5","IpSubnetId":"00000000-0000-0000-0000-0000000000a1"}`), ErrInvalidIP, "IpSubnetId"},
		{"address of its block", addr(`{"IpAddress":"172.20.0.130","IpSubnetId":"F1F1F1F1-0000-4000-8000-000000000001"}`), 0, ""},
		{"address not of its block", addr(`{"IpAddress":"172.20.0.5","IpSubnetId":"F1F1F1F1-0000-4000-8000-000000000001"}`), ErrInvalidIP, "block"},
		{"address outside", addr(`{"IpAddress":"192.0.2.1"}`), ErrInvalidIP, "in no subnet"},
		{"address multicast", addr(`{"IpAddress":"224.0.0.1"}`), ErrInvalidIP, "not an address"},
		{"address of network", addr(`{"IpAddress":"172.20.0.0"}`), ErrAddrInvalidOrReserved, "network address"},
		{"address of broadcast", addr(`{"IpAddress":"172.20.0.255"}`), ErrAddrInvalidOrReserved, "broadcast"},
		{"address of gateway", addr(`{"IpAddress":"172.20.0.1"}`), ErrAddrInvalidOrReserved, "gateway"},
		{"address of anycast", addr(`{"IpAddress":"fd00:20::"}`), ErrAddrInvalidOrReserved, "network address"},
		{"address twice", addr(`{"IpAddress":"172.20.0.5"},{"IpAddress":"172.20.0.5"}`), ErrInvalidIP, "twice"},
		{"two of a subnet", addr(`{"IpAddress":"172.20.0.5"},{"IpAddress":"172.20.0.6"}`), ErrInvalidEndpoint, "one per subnet"},
		{"both families", addr(`{"IpAddress":"172.20.0.5"},{"IpAddress":"fd00:20::5"}`), 0, ""},
		{"host prefix", addr(`{"IpAddress":"172.20.0.5","PrefixLength":32}`), 0, ""},
		{"prefix short", addr(`{"IpAddress":"172.20.0.5","PrefixLength":16}`), ErrInvalidIP, "PrefixLength"},
		{"prefix long", addr(`{"IpAddress":"172.20.0.5","PrefixLength":33}`), ErrInvalidIP, "PrefixLength"},
		{"route", `{"Routes":[{"NextHop":"172.20.0.1","DestinationPrefix":"10.0.0.0/8"},{"NextHop":"0.0.0.0","DestinationPrefix":"10.9.0.0/16"}]}`, 0, ""},
		{"route hop far", `{"Routes":[{"NextHop":"192.0.2.1","DestinationPrefix":"10.0.0.0/8"}]}`, ErrInvalidEndpoint, "Routes[0].NextHop"},
		{"route families", `{"Routes":[{"NextHop":"fd00:20::1","DestinationPrefix":"10.0.0.0/8"}]}`, ErrInvalidEndpoint, "family"},
		{"unknown flag", `{"Flags":64}`, ErrInvalidEndpoint, "Flags"},
		{"remote without address", `{"Flags":1}`, ErrInvalidEndpoint, "remote"},
		{"remote", `{"Flags":1,"IpConfigurations":[{"IpAddress":"172.20.0.5"}]}`, ErrRequestUnsupported, "RemoteEndpoint"},
		{"remote with acl", `{"Flags":1,"IpConfigurations":[{"IpAddress":"172.20.0.5"}],"Policies":[{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In"}}]}`, ErrInvalidRemoteEndpointOperation, "Policies[0]"},
		{"isolated", `{"Flags":2}`, 0, ""},

		{"mapping", policies(mapping), 0, ""},
		{"mapping lan", mapped(`{"Protocol":6,"InternalPort":80,"Scope":"lan"}`), 0, ""},
		{"mapping scope", mapped(`{"Protocol":6,"InternalPort":80,"Scope":"world"}`), ErrInvalidPolicy, "Scope"},
		{"mapping scope and vip", mapped(`{"Protocol":6,"InternalPort":80,"Scope":"lan","VIP":"192.0.2.1"}`), ErrInvalidPolicy, "Scope"},
		{"mapping sctp", mapped(`{"Protocol":132,"InternalPort":80}`), ErrInvalidPolicy, "Policies[0].Settings.Protocol"},
		{"mapping without protocol", mapped(`{"InternalPort":80}`), ErrInvalidPolicy, "Protocol"},
		{"mapping without port", mapped(`{"Protocol":6}`), ErrInvalidInternalPort, "Policies[0].Settings.InternalPort"},
		{"mapping port too big", mapped(`{"Protocol":6,"InternalPort":65536}`), ErrInvalidPolicy, "Policies[0].Settings.InternalPort: number 65536 stands where a whole number from 0 to 65535 is wanted"},
		{"mapping vip any", mapped(`{"Protocol":6,"InternalPort":80,"VIP":"0.0.0.0"}`), ErrInvalidPolicy, "VIP"},
		{"mapping vip family", mapped(`{"Protocol":6,"InternalPort":80,"VIP":"192.0.2.1","Flags":"IPv6"}`), ErrInvalidPolicy, "IPv6"},
		{"mapping twice", policies(mapping, mapping), ErrPortAlreadyExists, "Policies[1]"},
		{"mapping and one address", policies(mapping, strings.Replace(mapping, `"Protocol":6`, `"Protocol":6,"VIP":"192.0.2.1"`, 1)), ErrPortAlreadyExists, "8080/TCP"},
		{"mapping of both protocols", policies(mapping, strings.Replace(mapping, `"Protocol":6`, `"Protocol":17`, 1)), 0, ""},
		{"one mapping for each family", policies(`{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080,"Flags":1}}`, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080,"Flags":3}}`), 0, ""},
		{"two mappings for IPv6", policies(`{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080,"Flags":2}}`, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":81,"ExternalPort":8080,"Flags":3}}`), ErrPortAlreadyExists, "8080"},
		{"mappings to pick", policies(`{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":81}}`), 0, ""},
		{"lan and loopback", policies(strings.Replace(mapping, `"Protocol":6`, `"Protocol":6,"Scope":"lan"`, 1), strings.Replace(mapping, `"Protocol":6`, `"Protocol":6,"VIP":"127.0.0.1"`, 1)), 0, ""},

		{"parameters twice", policies(`{"Type":"InterfaceParameters","Settings":{"Mtu":1400}}`, `{"Type":"InterfaceParameters","Settings":{"Mtu":1300}}`), ErrInterfaceParametersAlreadyApplied, "Policies[1]"},
		{"mtu kills ipv6", policies(`{"Type":"InterfaceParameters","Settings":{"Mtu":1279}}`), ErrInvalidPolicy, "1280"},
		{"mtu tiny", policies(`{"Type":"InterfaceParameters","Settings":{"Mtu":67}}`), ErrInvalidPolicy, "Mtu"},
		{"masquerade", policies(`{"Type":"OutBoundNAT","Settings":{}}`), 0, ""},
		{"masquerade but", policies(`{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.0.0.0/8"]}}`), 0, ""},
		{"masquerade but, v1 name", policies(`{"Type":"OutBoundNAT","Settings":{"ExceptionList":["10.0.0.0/8"]}}`), 0, ""},
		{"masquerade of each form", policies(`{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.0.0.0/8"]}}`, `{"Type":"OutBoundNAT","Settings":{"Destinations":["10.1.0.5"]}}`), 0, ""},
		{"masquerade of each family", policies(`{"Type":"OutBoundNAT","Settings":{"VirtualIP":"192.0.2.1"}}`, `{"Type":"OutBoundNAT","Settings":{"Flags":2,"Exceptions":["fd00::/8"]}}`), 0, ""},
		{"masquerade twice", policies(`{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.0.0.0/8"]}}`, `{"Type":"OutBoundNAT","Settings":{"VirtualIP":"192.0.2.1"}}`), ErrPolicyAlreadyExists, "Policies[1]"},
		{"masquerade of other family", policies(`{"Type":"OutBoundNAT","Settings":{"VirtualIP":"192.0.2.1","Exceptions":["fd00::/8"]}}`), ErrInvalidPolicy, "Exceptions[0]"},
		{"masquerade ipv6 as ipv4", policies(`{"Type":"OutBoundNAT","Settings":{"VirtualIP":"192.0.2.1","Flags":2}}`), ErrInvalidPolicy, "VirtualIP"},
		{"masquerade with few ports", policies(`{"Type":"OutBoundNAT","Settings":{"MaxPortPoolUsage":100}}`), ErrRequestUnsupported, "not enforced with MaxPortPoolUsage"},
		{"masquerade as routed", policies(`{"Type":"OutBoundNAT","Settings":{"VirtualIP":"192.0.2.1","Flags":1}}`), ErrRequestUnsupported, "not enforced by this version"},
		{"masquerade but nonsense", policies(`{"Type":"OutBoundNAT","Settings":{"Exceptions":["ten"]}}`), ErrInvalidPolicy, "Exceptions[0]"},
		{"interface name", policies(`{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"net0"}}`), 0, ""},
		{"interface name long", policies(`{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"abcdefghijklmnop"}}`), ErrInvalidPolicy, "15"},
		{"interface name slash", policies(`{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"../x"}}`), ErrInvalidPolicy, "Name"},
		{"interface name lo", policies(`{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"lo"}}`), ErrInvalidPolicy, "Name"},
		{"priority", policies(`{"Type":"Bulkhead.GatewayPriority","Settings":{"Priority":-5}}`), 0, ""},
		{"priority far", policies(`{"Type":"Bulkhead.GatewayPriority","Settings":{"Priority":1001}}`), ErrInvalidPolicy, "Priority"},
		{"alias", policies(`{"Type":"Bulkhead.Aliases","Settings":{"Names":["a b"]}}`), ErrInvalidPolicy, "Names[0]"},
		{"port name", policies(`{"Type":"PortName","Settings":{"Name":"web port"}}`), ErrInvalidPolicy, "Name"},
		{"overhead", policies(`{"Type":"EncapOverhead","Settings":{"Overhead":50}}`), 0, ""},
		{"acl without action", policies(`{"Type":"ACL","Settings":{"Direction":"In"}}`), ErrInvalidPolicy, "Action"},
		{"acl pass", policies(`{"Type":"ACL","Settings":{"Action":"Pass","Direction":"In"}}`), ErrInvalidPolicy, "Action"},
		{"acl ports of icmp", policies(`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","Protocols":"1","LocalPorts":"80"}}`), ErrInvalidPolicy, "LocalPorts"},
		{"acl bad range", policies(`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","Protocols":"6","LocalPorts":"90-80"}}`), ErrInvalidPolicy, "LocalPorts"},
		{"acl bad address", policies(`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","RemoteAddresses":"10.0.0.0/33"}}`), ErrInvalidPolicy, "RemoteAddresses"},
		{"acl host priority", policies(`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","RuleType":"Host","Priority":5}}`), ErrInvalidPolicy, "Priority"},
		{"acl direction", policies(`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"Sideways"}}`), ErrInvalidPolicy, "Sideways"},
		{"proxy without address", policies(`{"Type":"L4Proxy","Settings":{"Port":"80"}}`), ErrInvalidPolicy, "Settings.IP"},
		{"proxy on loopback", policies(`{"Type":"L4Proxy","Settings":{"IP":"127.0.0.1","Port":"80"}}`), ErrInvalidPolicy, "Settings.IP"},
		{"proxy protocol", policies(`{"Type":"L4Proxy","Settings":{"IP":"10.0.0.1","Protocol":132}}`), ErrInvalidPolicy, "Protocol"},
		{"proxy family", policies(`{"Type":"L4Proxy","Settings":{"IP":"10.0.0.1","Destination":"10.2.0.0/16,fd00::/8"}}`), ErrInvalidPolicy, "Destination[1]"},
		{"proxy exceptions", policies(`{"Type":"L4Proxy","Settings":{"IP":"10.0.0.1","Exceptions":["clients"]}}`), ErrInvalidPolicy, "ExceptionList[0]"},
		{"side-car", policies(`{"Type":"L4WfpProxy","Settings":{"InboundProxyPort":15006,"OutboundProxyPort":"15001","UserSID":"S-1-5-18",`+
			`"FilterTuple":{"Protocols":6,"RemotePorts":"80,443","Priority":1},"OutboundExceptions":{"IpAddressExceptions":["127.0.0.1"],"PortExceptions":"22,8000-8010"}}}`,
			`{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"15002","UserSID":1337}}`), 0, ""},
		{"side-car without port", policies(`{"Type":"L4WFPPROXY","Settings":{"UserSID":"1337"}}`), ErrInvalidPolicy, "OutboundProxyPort"},
		{"side-car port", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"http"}}`), ErrInvalidPolicy, "InboundProxyPort"},
		{"side-car protocol", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"1","FilterTuple":{"Protocols":"6,1"}}}`), ErrInvalidPolicy, "Protocols"},
		{"side-car address set", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"1","FilterTuple":{"RemoteAddresses":"clients"}}}`), ErrInvalidPolicy, "RemoteAddresses[0]"},
		{"side-car exception", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"1","InboundExceptions":{"PortExceptions":["90-80"]}}}`), ErrInvalidPolicy, "PortExceptions"},
		{"side-car user name", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"1","UserSID":"envoy"}}`), ErrInvalidPolicy, "id -u NAME"},
		{"side-car SID", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"1","UserSID":"S-1-5-32-556"}}`), ErrInvalidPolicy, "S-1-22-1-N"},
		{"side-car nobody", policies(`{"Type":"L4WFPPROXY","Settings":{"InboundProxyPort":"1","UserSID":"4294967295"}}`), ErrInvalidPolicy, "UserSID"},
		{"proxy port", policies(`{"Type":"L4Proxy","Settings":{"IP":"10.0.0.1","Port":70000,"Exceptions":["10.0.0.0/8"]}}`), ErrInvalidPolicy, "Port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := Decode[HostComputeEndpoint]([]byte(tc.doc))
			if err == nil {
				err = e.ValidateFor(natNetwork(t, NAT))
			}
			checkErr(t, err, tc.code, tc.where)
		})
	}
}

func TestPolicyByNetworkType(t *testing.T) {
	for _, tc := range []struct {
		typ    NetworkType
		policy string
		code   ErrorCode
	}{
		{NAT, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, 0},
		{Internal, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, ErrMappingNotSupported},
		{Private, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, ErrMappingNotSupported},
		{Transparent, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, ErrMappingNotSupported},
		{Internal, `{"Type":"OutBoundNAT"}`, ErrRequestUnsupported},
		{Private, `{"Type":"L2Driver"}`, 0},
		{Transparent, `{"Type":"VLAN","Settings":{"IsolationId":5}}`, 0},
		{NAT, `{"Type":"VLAN","Settings":{"IsolationId":5}}`, ErrRequestUnsupported},
		{Transparent, `{"Type":"OutBoundNAT"}`, ErrRequestUnsupported},
		{L2Bridge, `{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.0.0.0/8"]}}`, 0},
		{L2Tunnel, `{"Type":"OutBoundNAT"}`, 0},
		{L2Bridge, `{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.7.0.0/16","NeedEncap":true}}`, 0},
		{L2Bridge, `{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.7.0.0/16","NextHop":"192.0.2.1"}}`, 0},
		{L2Bridge, `{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.7.0.0/16"}}`, ErrInvalidPolicy},
		{Transparent, `{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.7.0.0/16","NeedEncap":true}}`, ErrRequestUnsupported},
		{L2Bridge, `{"Type":"VLAN","Settings":{"IsolationId":5}}`, 0},
		{L2Bridge, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, 0},
		{L2Tunnel, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"VIP":"192.0.2.1"}}`, 0},
		{L2Bridge, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"VIP":"127.0.0.1"}}`, ErrMappingNotSupported},
		{L2Bridge, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"VIP":"::1"}}`, ErrMappingNotSupported},
		{Transparent, `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}`, ErrMappingNotSupported},
		{Internal, `{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"a"}}`, 0},
		{NAT, `{"Type":"TierAcl","Settings":{"Name":"a","Direction":"In"}}`, 0},
		{Private, `{"Type":"ACL","Settings":{"Action":"Block","Direction":"In","RuleType":"Host"}}`, 0},
	} {
		t.Run(tc.typ.String()+" "+tc.policy, func(t *testing.T) {
			e, err := Decode[HostComputeEndpoint]([]byte(policies(tc.policy)))
			if err != nil {
				t.Fatal(err)
			}
			checkErr(t, e.ValidateFor(natNetwork(t, tc.typ)), tc.code, "Policies[0]")
		})
	}
}

// validSettings are settings that are right for every endpoint policy of the schema.
var validSettings = map[EndpointPolicyType]string{
	PortMapping: `{"Protocol":6,"InternalPort":80}`, OutBoundNAT: `{}`, L2Driver: `{}`, QOS: `{"MaximumOutgoingBandwidthInBytes":1}`,
	ACL: `{"Action":"Block","Direction":"Out"}`, TierAcl: `{"Name":"t","Direction":"In","TierAclRules":[{"TierAclRuleAction":"Pass"}]}`,
	SDNRoute: `{"DestinationPrefix":"10.0.0.0/8","NeedEncap":true}`, ProviderAddress: `{"ProviderAddress":"192.0.2.1"}`, L4Proxy: `{"IP":"192.0.2.1","Port":"80"}`,
	L4WFPPROXY: `{"InboundProxyPort":"80"}`, PortName: `{"Name":"n"}`, EncapOverhead: `{"Overhead":50}`,
	EndpointInterfaceConstraint: `{"InterfaceAlias":"x"}`, InterfaceParameters: `{"Mtu":1400}`, EndpointVLAN: `{"IsolationId":5}`,
	Iov: `{"IovOffloadWeight":1}`, Encryption: `{"EncryptionMethodType":"Ipsec"}`,
	InterfaceName: `{"Name":"a"}`, GatewayPriority: `{"Priority":1}`, Aliases: `{"Names":["a"]}`, IncomingQOS: `{"MaximumIncomingBandwidthInBytes":1}`,
}

// TestEveryPolicyIsEnforcedOrRefused: a policy of the schema is either in the table of what is enforced, or refused by name.
func TestEveryPolicyIsEnforcedOrRefused(t *testing.T) {
	for typ := range endpointSettings {
		settings, ok := validSettings[typ]
		if !ok {
			t.Errorf("no settings to test %s with", typ)
			continue
		}
		e, err := Decode[HostComputeEndpoint]([]byte(policies(fmt.Sprintf(`{"Type":%q,"Settings":%s}`, typ, settings))))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.validateSchema(); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
		if len(supportedEndpointPolicies[typ]) > 0 {
			if typ == ProviderAddress { // says where a remote endpoint is
				e.Flags, e.MacAddress, e.IpConfigurations = RemoteEndpoint, "02-00-00-00-00-09", []IpConfig{{IpAddress: "10.99.0.9"}}
			}
			checkErr(t, e.ValidateFor(natNetwork(t, supportedEndpointPolicies[typ][0])), 0, "")
			continue
		}
		err = e.ValidateFor(natNetwork(t, NAT))
		checkErr(t, err, ErrRequestUnsupported, string(typ))
		checkErr(t, err, ErrRequestUnsupported, "is not enforced by this version")
	}
	for typ := range networkSettings {
		n := HostComputeNetwork{Policies: []NetworkPolicy{{Type: typ}}}
		if len(supportedNetworkPolicies[typ]) == 0 {
			checkErr(t, n.checkSupport(), ErrRequestUnsupported, string(typ))
		}
	}
}

func TestOtherKinds(t *testing.T) {
	ns := func(s string) error {
		n, err := Decode[HostComputeNamespace]([]byte(s))
		if err != nil {
			return err
		}
		return n.Validate()
	}
	checkErr(t, ns(`{"Type":"HostDefault"}`), 0, "")
	checkErr(t, ns(`{"Type":"Guest"}`), 0, "")
	checkErr(t, ns(`{"Type":"GuestDefault"}`), 0, "")
	checkErr(t, ns(`{"Type":"Moon"}`), ErrInvalidParameter, "Moon")
	checkErr(t, ns(`{"Name":"a/b"}`), ErrInvalidParameter, "Name")
	checkErr(t, ns(`{"Resources":[{"Type":"Endpoint","Data":{"ID":"x"}}]}`), ErrGUIDConversionFailure, "Resources[0].Data.ID")

	lb := readDoc[HostComputeLoadBalancer](t, "loadbalancer")
	checkErr(t, lb.Validate(), ErrRequestUnsupported, "UseMux means nothing")
	lb.PortMappings[0].Flags = EnableInternalLoadBalancer
	checkErr(t, lb.Validate(), 0, "")
	for change, want := range map[string]ErrorCode{"protocol": ErrInvalidPolicy, "port": ErrInvalidInternalPort, "twice": ErrPortAlreadyExists, "none": ErrInvalidParameter} {
		c := lb.Clone()
		switch change {
		case "protocol":
			c.PortMappings[0].Protocol = ProtocolSCTP
		case "port":
			c.PortMappings[0].InternalPort = 0
		case "twice":
			c.PortMappings = append(c.PortMappings, c.PortMappings[0])
		case "none":
			c.PortMappings = nil
		}
		checkErr(t, c.Validate(), want, "PortMappings")
	}
	r := readDoc[HostComputeRoute](t, "route")
	if err := r.Validate(); err != nil {
		t.Errorf("a route: %v", err)
	}
	for _, change := range []func(c *HostComputeRoute){
		func(c *HostComputeRoute) { c.Routes[0].NeedEncap, c.Routes[0].NextHop = false, "" },
		func(c *HostComputeRoute) { c.Routes[0].DestinationPrefix = "10.0.0.0/99" },
	} {
		c := r.Clone()
		change(c)
		checkErr(t, c.Validate(), ErrInvalidPolicy, "Routes[0]")
	}
	_, err := Decode[HostComputeRoute]([]byte(`{"Setting":[{"NextHop":"10.0.0.1"}],"Routes":[{"NextHop":"10.0.0.2"}]}`))
	checkErr(t, err, ErrInvalidParameter, "two names")
}

// TestMacvlan: what only a switch can do is refused where there is none, on the network and its endpoints.
func TestMacvlan(t *testing.T) {
	network := func(more, subnet string) error {
		n, err := Decode[HostComputeNetwork]([]byte(`{"Name":"m","Type":"Transparent","Policies":[{"Type":"Bulkhead.Macvlan","Settings":{}}` + more +
			`],"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.7.0.0/24","Routes":[{"NextHop":"10.7.0.1","DestinationPrefix":"0.0.0.0/0"}]` + subnet + `}]}],"SchemaVersion":{"Major":2}}`))
		if err != nil {
			t.Fatal(err)
		}
		return n.Validate()
	}
	if err := network("", ""); err != nil {
		t.Errorf("a network of macvlan devices: %v", err)
	}
	checkErr(t, network(`,{"Type":"NetworkACL","Settings":{"Action":"Block","Direction":"In"}}`, ""), ErrRequestUnsupported, "no switch of ours")
	checkErr(t, network(`,{"Type":"SetPolicy","Settings":{"Id":"s","Name":"s","PolicyType":"IPSET","Values":"10.0.0.1"}}`, ""), ErrRequestUnsupported, "no switch of ours")
	checkErr(t, network(`,{"Type":"Bulkhead.Macvlan"}`, ""), ErrPolicyAlreadyExists, "keep one")
	checkErr(t, network("", `,"Policies":[{"Type":"VLAN","Settings":{"IsolationId":7}}]`), ErrRequestUnsupported, "VLAN")
	for _, kind := range []string{"NAT", "L2Bridge"} {
		n := HostComputeNetwork{Name: "m", Policies: []NetworkPolicy{NewNetworkPolicy(Macvlan, EmptySetting{})}, SchemaVersion: V2()}
		if err := n.Type.UnmarshalJSON([]byte(`"` + kind + `"`)); err != nil {
			t.Fatal(err)
		}
		n.Ipams = []Ipam{{Subnets: []Subnet{{IpAddressPrefix: "10.7.0.0/24", Routes: []Route{{NextHop: "10.7.0.1", DestinationPrefix: "0.0.0.0/0"}}}}}}
		n.Defaults(NewGUID)
		checkErr(t, n.Validate(), ErrRequestUnsupported, "Bulkhead.Macvlan on a network of type "+kind)
	}
	n := &HostComputeNetwork{Name: "m", Type: Transparent, Policies: []NetworkPolicy{NewNetworkPolicy(Macvlan, EmptySetting{})}, SchemaVersion: V2()}
	n.Ipams = []Ipam{{Subnets: []Subnet{{IpAddressPrefix: "10.7.0.0/24", Routes: []Route{{NextHop: "10.7.0.1", DestinationPrefix: "0.0.0.0/0"}}}}}}
	for policy, settings := range map[EndpointPolicyType]string{
		ACL: `{"Action":"Block","Direction":"In"}`, TierAcl: `{"Name":"t","Direction":"In","Order":1,"TierAclRules":[]}`, QOS: `{"MaximumOutgoingBandwidthInBytes":1}`,
		IncomingQOS: `{"MaximumIncomingBandwidthInBytes":1}`, PortName: `{"Name":"p"}`, EndpointVLAN: `{"IsolationId":7}`,
	} {
		e := &HostComputeEndpoint{Policies: []EndpointPolicy{{Type: policy, Settings: []byte(settings)}}, SchemaVersion: V2()}
		checkErr(t, e.checkOnMacvlan(n), ErrRequestUnsupported, string(policy))
	}
	e := &HostComputeEndpoint{Flags: DisableInterComputeCommunication}
	checkErr(t, e.checkOnMacvlan(n), ErrRequestUnsupported, "DisableInterComputeCommunication")
	e = &HostComputeEndpoint{Flags: EnableDhcp, Policies: []EndpointPolicy{NewEndpointPolicy(InterfaceName, InterfaceNameSetting{Name: "lan0"})}}
	if err := e.checkOnMacvlan(n); err != nil {
		t.Errorf("an endpoint that asks for nothing of a switch: %v", err)
	}
}
