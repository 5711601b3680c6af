package plan

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// policyScene is one endpoint on one network, with policies as clients write them.
type policyScene struct {
	network, endpoint string // policies, comma separated
	flags             hcn.EndpointFlags
	addrs             []string // 10.1.0.5 and fd00:1::5 when empty
}

func (s policyScene) intent(t testing.TB) *Intent {
	t.Helper()
	net, ns, ep := guid("AA", 1), guid("CC", 1), guid("BB", 1)
	n := hcn.HostComputeNetwork{ID: net, Type: hcn.NAT}
	if err := json.Unmarshal([]byte("["+s.network+"]"), &n.Policies); err != nil {
		t.Fatalf("network policies: %v", err)
	}
	e := hcn.HostComputeEndpoint{ID: ep, HostComputeNetwork: net, Flags: s.flags}
	if err := json.Unmarshal([]byte("["+s.endpoint+"]"), &e.Policies); err != nil {
		t.Fatalf("endpoint policies: %v", err)
	}
	if len(s.addrs) == 0 {
		s.addrs = []string{"10.1.0.5", "fd00:1::5"}
	}
	row := &Endpoint{Doc: e, MAC: MAC{2, 0, 0, 0, 0, 5}, Attach: &Attachment{Namespace: ns, Interface: "eth0"}}
	for _, a := range s.addrs {
		addr := netip.MustParseAddr(a)
		row.Addrs = append(row.Addrs, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return &Intent{
		Networks:   map[hcn.GUID]*Network{net: {Doc: n, Switch: 1}},
		Namespaces: map[hcn.GUID]*NamespaceRow{ns: {Doc: hcn.HostComputeNamespace{ID: ns}}},
		Endpoints:  map[hcn.GUID]*Endpoint{ep: row},
	}
}

func (s policyScene) policy(t testing.TB) *Policy {
	t.Helper()
	p := Compile(s.intent(t), &Facts{UplinkMTU: 1500})
	return &p.Ports[EndpointPortID(guid("BB", 1))].Policy
}

var ruleNumber = regexp.MustCompile(` #[0-9a-f]{8}`)

// policyText is the policy as the plan prints it, without what a reader of a test
// does not compare: indentation and numbers.
func policyText(p *Policy) string {
	var b strings.Builder
	p.text(&b)
	var out []string
	for line := range strings.Lines(ruleNumber.ReplaceAllString(b.String(), "")) {
		out = append(out, strings.TrimSpace(line))
	}
	return strings.Join(out, "\n")
}

func acl(settings string) string { return `{"Type":"ACL","Settings":{` + settings + `}}` }

func netACL(settings string) string { return `{"Type":"NetworkACL","Settings":{` + settings + `}}` }

func tier(settings, rules string) string {
	return `{"Type":"TierAcl","Settings":{` + settings + `,"TierAclRules":[` + rules + `]}}`
}

func ipset(id, values string) string {
	return `{"Type":"SetPolicy","Settings":{"Id":"` + id + `","PolicyType":"IPSET","Values":"` + values + `"}}`
}

func TestCompilePolicy(t *testing.T) {
	for _, tc := range []struct {
		name string
		policyScene
		want string
	}{
		{"none", policyScene{}, ""},
		{
			"one direction turns only its own default",
			policyScene{endpoint: acl(`"Id":"web","Action":"Allow","Direction":"In","Protocols":"6","RemoteAddresses":"10.0.0.0/24","LocalPorts":"80,443","Priority":100`)},
			`rules in, default block
0 allow: Allow In TCP from 10.0.0.0/24 to port 80,443 (ACL "web" priority 100)`,
		},
		{
			"ascending priority, none last, block first",
			policyScene{endpoint: strings.Join([]string{
				acl(`"Id":"a","Action":"Allow","Direction":"Out"`),
				acl(`"Id":"b","Action":"Allow","Direction":"Out","Priority":200`),
				acl(`"Id":"c","Action":"Block","Direction":"Out"`),
				acl(`"Id":"d","Action":"Block","Direction":"Out","Priority":200`),
				acl(`"Id":"e","Action":"Allow","Direction":"Out","Priority":65500`),
				acl(`"Id":"f","Action":"Allow","Direction":"Out","Priority":200`),
			}, ",")},
			`rules out, default block
0 block: Block Out any (ACL "d" priority 200)
1 allow: Allow Out any (ACL "b" priority 200)
2 allow: Allow Out any (ACL "f" priority 200)
3 allow: Allow Out any (ACL "e" priority 65500)
4 block: Block Out any (ACL "c")
5 allow: Allow Out any (ACL "a")`,
		},
		{
			"host rules let pass and do not turn the default",
			policyScene{endpoint: acl(`"Action":"Allow","Direction":"In","RuleType":"Host","Protocols":"132"`) + "," + acl(`"Id":"x","Action":"Block","Direction":"In","RuleType":"Host","Protocols":"6","LocalPorts":"22"`)},
			`rules in, default allow
0 block: Block In TCP to port 22 (Host ACL "x")
1 pass to 4: Allow In SCTP (Host ACL)
2 pass to 4: Allow In ICMP,IGMP,TCP,UDP,ICMPv6 (default of the host layer)
3 block: Block In any (default of the host layer)`,
		},
		{
			"a host rule of one direction brings the layer's default for the other",
			policyScene{endpoint: acl(`"Action":"Block","Direction":"Out","RuleType":"Host","RemoteAddresses":"169.254.169.254"`)},
			`rules out, default allow
0 block: Block Out any to 169.254.169.254 (Host ACL)
rules in, default allow
0 pass to 2: Allow In ICMP,IGMP,TCP,UDP,ICMPv6 (default of the host layer)
1 block: Block In any (default of the host layer)`,
		},
		{
			"all layers",
			policyScene{
				network: netACL(`"Id":"n","Action":"Block","Direction":"In","RemoteAddresses":"10.9.0.0/16","Priority":10`),
				endpoint: strings.Join([]string{
					acl(`"Id":"own","Action":"Allow","Direction":"In","Priority":1`),
					tier(`"Name":"late","Direction":"In","Order":20`, `{"Id":"l","TierAclRuleAction":"Block","Protocols":"17"}`),
					tier(`"Name":"b","Direction":"In","Order":10`, `{"Id":"p","TierAclRuleAction":"Pass","RemoteAddresses":"10.2.0.0/16","Priority":5},{"Id":"q","TierAclRuleAction":"Block","RemoteAddresses":"10.2.0.9","Priority":5}`),
					tier(`"Name":"a","Direction":"In","Order":10`, `{"TierAclRuleAction":"Pass"}`),
					tier(`"Name":"a","Direction":"Out","Order":10`, ``),
					acl(`"Id":"h","Action":"Block","Direction":"In","RuleType":"Host","Protocols":"6","LocalPorts":"1-9"`),
				}, ","),
			},
			`rules in, default block
0 block: Block In TCP to port 1-9 (Host ACL "h")
1 pass to 3: Allow In ICMP,IGMP,TCP,UDP,ICMPv6 (default of the host layer)
2 block: Block In any (default of the host layer)
3 pass to 4: Pass In any (tier "a")
4 block: Block In any from 10.2.0.9 (tier "b" rule "q" priority 5)
5 pass to 6: Pass In any from 10.2.0.0/16 (tier "b" rule "p" priority 5)
6 block: Block In UDP (tier "late" rule "l")
7 block: Block In any from 10.9.0.0/16 (NetworkACL "n" priority 10)
8 allow: Allow In any (ACL "own" priority 1)`,
		},
		{
			"any protocol, and one that has a number only",
			policyScene{endpoint: acl(`"Action":"Allow","Direction":"In","Protocols":"6, 256"`) + "," + acl(`"Action":"Allow","Direction":"In","Protocols":"252,0"`)},
			`rules in, default block
0 allow: Allow In any (ACL)
1 allow: Allow In protocol 252,protocol 0 (ACL)`,
		},
		{
			"rates and isolation",
			policyScene{flags: hcn.DisableInterComputeCommunication, endpoint: `{"Type":"QOS","Settings":{"MaximumOutgoingBandwidthInBytes":1000}},{"Type":"Bulkhead.IncomingQOS","Settings":{"MaximumIncomingBandwidthInBytes":2000}}`},
			"isolated\nrate out 1000 bytes/s\nrate in 2000 bytes/s",
		},
		{
			"a long list is counted",
			policyScene{endpoint: acl(`"Action":"Block","Direction":"Out","RemoteAddresses":"10.0.0.0/24,10.0.1.0/24,10.0.2.0/24,10.0.3.0/24,10.0.4.0/24,10.0.5.0/24,10.0.6.0/24,10.0.7.0/24,10.0.8.0/24"`)},
			`rules out, default block
0 block: Block Out any to 10.0.0.0/24,10.0.1.0/24,10.0.2.0/24,10.0.3.0/24,10.0.4.0/24,10.0.5.0/24,10.0.6.0/24,10.0.7.0/24,… (9 in all) (ACL)`,
		},
		{
			"network rules for an endpoint without own ones",
			policyScene{network: netACL(`"Action":"Block","Direction":"Out","RemoteAddresses":"169.254.169.254/32,fd00:ec2::254"`)},
			`rules out, default block
0 block: Block Out any to 169.254.169.254,fd00:ec2::254 (NetworkACL)`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, policyText(tc.policy(t))); d != "" {
				t.Errorf("policy (-want +got):\n%s", d)
			}
		})
	}
}

// TestSides follows the table in policy_sides.go.
func TestSides(t *testing.T) {
	const with, without, empty = "with", "without", "empty"
	sets := ipset(with, "10.1.0.0/28,10.7.0.1") + "," + ipset(without, "10.2.0.0/16,fd00:2::/64") + "," + ipset(empty, "")
	for _, tc := range []struct{ dir, local, remote, wantLocal, wantRemote string }{
		{"In", "", without, "", without},
		{"In", "", with, with, ""},
		{"In", without, "", "", without},
		{"In", with, "", "", with},
		{"In", with, without, with, without},
		{"In", without, with, with, without},
		{"In", with, with, with, with},
		{"In", without, without, without, without},
		{"In", with, "10.2.0.0/24", with, "10.2.0.0/24"},
		{"In", with, "10.1.0.0/24", "10.1.0.0/24", with},
		{"In", without, "10.1.0.5", "10.1.0.5", without},
		{"In", "10.2.0.0/24", with, with, "10.2.0.0/24"},
		{"In", "10.1.0.5", without, "10.1.0.5", without},
		{"In", empty, "", "", empty},
		{"Out", "", without, "", without},
		{"Out", "", with, "", with},
		{"Out", with, "", with, ""},
		{"Out", without, "", "", without},
		{"Out", with, without, with, without},
		{"Out", without, with, with, without},
		{"Out", with, with, with, with},
		{"Out", without, without, without, without},
		{"Out", empty, "", "", empty},
		// Plain addresses are what the names say.
		{"In", "10.2.0.0/24", "10.1.0.5", "10.2.0.0/24", "10.1.0.5"},
		{"Out", "10.2.0.0/24", "10.1.0.5", "10.2.0.0/24", "10.1.0.5"},
		// Prefixes beside a set do not decide for it.
		{"In", without + ",10.1.0.5", without, without, "10.1.0.5," + without},
	} {
		s := policyScene{network: sets, endpoint: acl(`"Action":"Allow","Direction":"` + tc.dir + `","LocalAddresses":"` + tc.local + `","RemoteAddresses":"` + tc.remote + `"`)}
		p := s.policy(t)
		list := p.In
		if tc.dir == "Out" {
			list = p.Out
		}
		show := func(a Addresses) string {
			var out []string
			for _, p := range a.Prefixes {
				out = append(out, addressText(p))
			}
			return strings.Join(append(out, a.Sets...), ",")
		}
		local, remote := show(list.Rules[0].Local), show(list.Rules[0].Remote)
		if local != tc.wantLocal || remote != tc.wantRemote {
			t.Errorf("%s %q %q: local %q remote %q, want %q %q", tc.dir, tc.local, tc.remote, local, remote, tc.wantLocal, tc.wantRemote)
		}
	}
}

func TestSets(t *testing.T) {
	s := policyScene{network: strings.Join([]string{
		`{"Type":"SetPolicy","Settings":{"Id":"all","PolicyType":"NESTEDIPSET","Values":"a, b"}}`,
		ipset("a", "10.0.0.9/24, 10.0.0.0/24,10.0.0.7"), ipset("b", "fd00::1,10.0.0.7"), ipset("none", ""),
	}, ",")}
	p := Compile(s.intent(t), &Facts{UplinkMTU: 1500})
	want := map[string][]netip.Prefix{
		"a":    {netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.0.7/32")},
		"b":    {netip.MustParsePrefix("10.0.0.7/32"), netip.MustParsePrefix("fd00::1/128")},
		"all":  {netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.0.7/32"), netip.MustParsePrefix("fd00::1/128")},
		"none": {},
	}
	if d := cmp.Diff(want, p.Switches[guid("AA", 1)].Sets, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// TestRuleNumbers: a number stays when other rules come and go, and is the rule's own
// in both lists.
func TestRuleNumbers(t *testing.T) {
	one := acl(`"Id":"one","Action":"Allow","Direction":"In","Priority":100`)
	both := acl(`"Action":"Block","Direction":"Out"`) + "," + acl(`"Action":"Block","Direction":"In"`)
	alone := policyScene{endpoint: one}.policy(t)
	p := policyScene{endpoint: both + "," + one + "," + one, network: netACL(`"Id":"one","Action":"Allow","Direction":"In","Priority":100`)}.policy(t)
	seen := map[uint32]string{0: "nothing"}
	for _, l := range []*RuleList{p.In, p.Out} {
		for _, r := range l.Rules {
			if other, ok := seen[r.Number]; ok {
				t.Errorf("%s and %s have the number %d", r.Source.Text, other, r.Number)
			}
			seen[r.Number] = r.Source.Text
		}
	}
	if got, want := p.In.Rules[1].Number, alone.In.Rules[0].Number; got != want || p.In.Rules[1].Source.ID != "one" {
		t.Errorf("beside other rules the number is %d, alone %d", got, want)
	}
}

// TestListHash: lists that decide alike have one hash, and all that decides is in it.
func TestListHash(t *testing.T) {
	base := `"Id":"a","Action":"Allow","Direction":"In","Protocols":"6","RemoteAddresses":"10.0.0.0/8","LocalPorts":"80","Priority":100`
	list := func(settings string) *RuleList { return policyScene{endpoint: acl(settings)}.policy(t).In }
	if a, b := list(base), list(base); !a.Equal(b) {
		t.Error("two compiles of one rule differ")
	}
	for _, change := range [][2]string{
		{`"Allow"`, `"Block"`},
		{`"Protocols":"6"`, `"Protocols":"17"`},
		{`10.0.0.0/8`, `10.0.0.0/9`},
		{`"LocalPorts"`, `"RemotePorts"`},
		{`"RemoteAddresses"`, `"LocalAddresses"`},
		{`"80"`, `"80-81"`},
		{`"Id":"a"`, `"Id":"b"`},
	} {
		if list(base).Equal(list(strings.Replace(base, change[0], change[1], 1))) {
			t.Errorf("with %s instead of %s the hash is the same", change[1], change[0])
		}
	}
}

// TestUnreadableRules: no rules must not become no filter.
func TestUnreadableRules(t *testing.T) {
	s := policyScene{endpoint: acl(`"Action":"Block","Direction":"In","Protocols":"tcp"`)}
	p := s.policy(t)
	if p.In == nil || p.Out == nil || p.In.Default != Block || p.Out.Default != Block {
		t.Errorf("policy of an unreadable rule:\n%s", policyText(p))
	}
}

// TestPolicyKept: what did not change is not compiled again.
func TestPolicyKept(t *testing.T) {
	s := policyScene{
		network:  ipset("peers", "10.2.0.0/16") + "," + ipset("mine", "10.3.0.0/16") + "," + netACL(`"Action":"Allow","Direction":"In"`),
		endpoint: acl(`"Action":"Block","Direction":"In","RemoteAddresses":"mine"`),
	}
	in := s.intent(t)
	facts := &Facts{UplinkMTU: 1500}
	p := Compile(in, facts)
	net, port := guid("AA", 1), EndpointPortID(guid("BB", 1))
	before, peers := p.Ports[port], p.Switches[net].Sets["peers"]
	change := func(policies string) *Delta {
		s.network = policies
		in.Networks[net] = s.intent(t).Networks[net]
		return p.Recompile(in, facts, Dirty{Networks: map[hcn.GUID]struct{}{net: {}}})
	}
	d := change(ipset("peers", "10.2.0.0/16") + "," + ipset("mine", "10.4.0.0/16") + "," + netACL(`"Action":"Allow","Direction":"In"`))
	if len(d.Ports) != 0 || len(d.Switches) != 1 || p.Ports[port] != before {
		t.Errorf("a set's new address changed ports %v", d.Ports)
	}
	if &peers[0] != &p.Switches[net].Sets["peers"][0] {
		t.Error("a set that stayed was read again")
	}
	d = change(ipset("peers", "10.2.0.0/16") + "," + ipset("mine", "10.1.0.5") + "," + netACL(`"Action":"Allow","Direction":"In"`))
	if len(d.Ports) != 1 || !p.Ports[port].Policy.In.Rules[1].Remote.Any() {
		t.Errorf("the endpoint joined the set, and the rule stayed: %s", policyText(&p.Ports[port].Policy))
	}
	d = change("")
	if len(d.Ports) != 1 || len(p.Ports[port].Policy.In.Rules) != 1 {
		t.Errorf("the network's rule went: %s", policyText(&p.Ports[port].Policy))
	}
}
