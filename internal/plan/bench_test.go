package plan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// BenchmarkRecompile is a change of a network with an endpoint of ten thousand rules and
// a set of a hundred thousand addresses, none of which changed.
func BenchmarkRecompile(b *testing.B) {
	var rules, values []string
	for i := range 10_000 {
		rules = append(rules, acl(fmt.Sprintf(`"Id":"r%d","Action":"Allow","Direction":"In","Protocols":"6","RemoteAddresses":"10.%d.%d.0/24","LocalPorts":"80","Priority":100`, i, i/250, i%250)))
	}
	for i := range 100_000 {
		values = append(values, fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	s := policyScene{network: ipset("many", strings.Join(values, ",")), endpoint: strings.Join(rules, ",") + "," + acl(`"Action":"Block","Direction":"Out","RemoteAddresses":"many"`)}
	in, facts, net := s.intent(b), &Facts{UplinkMTU: 1500}, guid("AA", 1)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			Compile(in, facts)
		}
	})
	p := Compile(in, facts)
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			row := *in.Networks[net]
			in.Networks[net] = &row
			if d := p.Recompile(in, facts, Dirty{Networks: map[hcn.GUID]struct{}{net: {}}}); len(d.Ports)+len(d.Switches) > 0 {
				b.Fatalf("changed %v", d)
			}
		}
	})
}
