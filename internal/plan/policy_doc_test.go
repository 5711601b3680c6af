package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var docExample = regexp.MustCompile("(?s)```json\n(.*?)```\n\n```text\n(.*?)```")

// TestPolicyDocument runs the examples of docs/policy.md: policies of a network and of
// the endpoint 10.1.0.11, fd00:1::b, and what becomes of packets to it and from it.
func TestPolicyDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := docExample.FindAllStringSubmatch(string(b), -1)
	if len(examples) < 4 {
		t.Fatalf("the document has %d examples", len(examples))
	}
	for _, example := range examples {
		var doc struct{ Network, Endpoint []json.RawMessage }
		if err := json.Unmarshal([]byte(example[1]), &doc); err != nil {
			t.Errorf("%s: %v", example[1], err)
			continue
		}
		p := pair(t, joined(doc.Network), "", joined(doc.Endpoint))
		for line := range strings.Lines(example[2]) {
			question, want, _ := strings.Cut(strings.TrimSpace(line), "  ")
			if got := docAnswer(t, p, question); got != strings.TrimSpace(want) {
				t.Errorf("%s\n got %s\nwant %s", question, got, strings.TrimSpace(want))
			}
		}
	}
}

func joined(list []json.RawMessage) string {
	out := make([]string, len(list))
	for i, b := range list {
		out[i] = string(b)
	}
	return strings.Join(out, ",")
}

// docAnswer asks "from ADDRESS PROTOCOL [PORT]" or "to ADDRESS …". Packets to the
// endpoint come by the host's port, which may send from any address.
func docAnswer(t *testing.T, p *Plan, question string) string {
	t.Helper()
	f := append(strings.Fields(question), "")
	peer, own := netip.MustParseAddr(f[1]), addr("10.1.0.11")
	if peer.Is6() {
		own = addr("fd00:1::b")
	}
	port, _ := strconv.ParseUint(f[3], 10, 16)
	k := Packet{
		Protocol: map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "sctp": 132}[f[2]], ICMPType: 8, SrcPort: 40000, DstPort: uint16(port),
		From: EndpointPortID(guid("BB", 2)), Src: own, Dst: peer,
	}
	if f[0] == "from" {
		k.From, k.Src, k.Dst = HostPortID(guid("AA", 1)), peer, own
	}
	tr := p.Trace(k)
	list, rule := p.Ports[EndpointPortID(guid("BB", 2))].Policy.Out, tr.Out
	if f[0] == "from" {
		list, rule = p.Ports[EndpointPortID(guid("BB", 2))].Policy.In, tr.In
	}
	verdict := "allowed"
	if tr.Verdict == Dropped {
		verdict = "blocked"
		if !strings.HasPrefix(tr.Reason, "policy-") {
			verdict = tr.Reason
		}
	}
	switch {
	case rule != nil:
		return fmt.Sprintf("%s: %s", verdict, rule.Source.Text)
	case list == nil:
		return verdict + ": no rules in this direction"
	case list.Default == Allow:
		return verdict + ": no rule blocks it"
	}
	return verdict + ": no rule allows it"
}
