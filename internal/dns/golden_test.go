package dns

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestGolden runs the scripts in testdata: networks and ports in, what dig would
// show out.
//
//	net    id=blue num=1 mode=nat subnet=10.1.0.0/24,10.1.0.1 domain=… host=… upstream=…
//	port   id=p1 net=blue addr=10.1.0.5 name=web name=*.app ns=/run/netns/a upstream=…
//	remove p1
//	ask    net=blue from=10.1.0.5 name=web type=A [edns=1232] [do=1] [tcp=1] [class=3]
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(script))
			golden := strings.TrimSuffix(file, ".txt") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// args are the words of a script line, repeated keys kept.
type args map[string][]string

func (a args) get(key string) string {
	if v := a[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func parseArgs(words []string) args {
	a := args{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		a[k] = append(a[k], v)
	}
	return a
}

// world applies script lines the way the engine would: one delta at a time.
type world struct {
	t *testing.T
	r *Resolver
	p *plan.Plan
}

func newWorld(t *testing.T, r *Resolver) *world {
	t.Helper()
	w := &world{t: t, r: r, p: &plan.Plan{Switches: map[hcn.GUID]*plan.Switch{}, Ports: map[plan.PortID]*plan.Port{}}}
	if _, err := r.Sync(t.Context(), w.p); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) setSwitch(id hcn.GUID, sw *plan.Switch) {
	w.t.Helper()
	d := &plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{id: {Old: w.p.Switches[id], New: sw}}}
	if w.p.Switches[id] = sw; sw == nil {
		delete(w.p.Switches, id)
	}
	if err := w.r.Update(w.t.Context(), w.p, d); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) setPort(id plan.PortID, p *plan.Port) {
	w.t.Helper()
	d := &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{id: {Old: w.p.Ports[id], New: p}}}
	if w.p.Ports[id] = p; p == nil {
		delete(w.p.Ports, id)
	}
	if err := w.r.Update(w.t.Context(), w.p, d); err != nil {
		w.t.Fatal(err)
	}
}

func testSwitch(t *testing.T, a args) *plan.Switch {
	t.Helper()
	num, err := strconv.Atoi(a.get("num"))
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]plan.Mode{"nat": plan.ModeNAT, "internal": plan.ModeInternal, "private": plan.ModePrivate}
	sw := &plan.Switch{
		Number: uint32(num), Network: hcn.GUID(a.get("id")), Mode: modes[a.get("mode")],
		DNS: plan.DNS{Domain: a.get("domain")},
	}
	for _, s := range a["subnet"] {
		prefix, gateway, _ := strings.Cut(s, ",")
		sw.Subnets = append(sw.Subnets, plan.Subnet{Prefix: netip.MustParsePrefix(prefix), Gateway: netip.MustParseAddr(gateway)})
	}
	for _, h := range a["host"] {
		sw.DNS.HostAddrs = append(sw.DNS.HostAddrs, netip.MustParseAddr(h))
	}
	for _, u := range a["upstream"] {
		sw.DNS.Upstreams = append(sw.DNS.Upstreams, netip.MustParseAddrPort(u))
	}
	return sw
}

func testPort(a args) *plan.Port {
	p := &plan.Port{
		ID: plan.PortID(a.get("id")), Kind: plan.PortContainer, Network: hcn.GUID(a.get("net")),
		Names: a["name"], VNIC: plan.VNIC{Namespace: a.get("ns")},
	}
	for _, s := range a["addr"] {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(s))
	}
	for _, u := range a["upstream"] {
		p.Upstreams = append(p.Upstreams, netip.MustParseAddrPort(u))
	}
	return p
}

func runScript(t *testing.T, script string) string {
	t.Helper()
	r := New(Config{})
	defer r.Close()
	w := newWorld(t, r)
	var out strings.Builder
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			out.WriteString(line)
			continue
		}
		a := parseArgs(words[1:])
		switch words[0] {
		case "net":
			w.setSwitch(hcn.GUID(a.get("id")), testSwitch(t, a))
		case "port":
			w.setPort(plan.PortID(a.get("id")), testPort(a))
		case "remove":
			w.setPort(plan.PortID(words[1]), nil)
		case "ask":
			out.WriteString(line + ask1(t, r, a))
		default:
			t.Fatalf("line %q", line)
		}
	}
	// What was built step by step is what a fresh start finds: Sync has nothing
	// to add, and an empty plan leaves nothing.
	before := fmt.Sprint(len(r.index.all()), len(r.index.homes), r.index.prefixes.Size())
	if _, err := r.Sync(t.Context(), w.p); err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprint(len(r.index.all()), len(r.index.homes), r.index.prefixes.Size()); after != before {
		t.Errorf("Sync changed the index: %s, then %s", before, after)
	}
	if _, err := r.Sync(t.Context(), &plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	if n := len(r.index.zones) + len(r.index.homes) + r.index.prefixes.Size(); n != 0 {
		t.Errorf("%d entries are left of an empty plan", n)
	}
	return out.String()
}

// ask1 asks the way a client does, only without a socket.
func ask1(t *testing.T, r *Resolver, a args) string {
	t.Helper()
	s := r.newServer(hcn.GUID(a.get("net")))
	defer s.stop()
	typ, ok := map[string]dnsmessage.Type{
		"A": 1, "NS": 2, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "HTTPS": 65, "AXFR": 252, "ANY": 255, "DS": 43,
	}[a.get("type")]
	if !ok {
		t.Fatalf("type %q", a.get("type"))
	}
	q := clientQuery{name: a.get("name"), typ: typ, do: a.get("do") != "", class: 1}
	if v := a.get("edns"); v != "" {
		q.edns, _ = strconv.Atoi(v)
	}
	if v := a.get("class"); v != "" {
		n, _ := strconv.Atoi(v)
		q.class = dnsmessage.Class(n)
	}
	reply, task := s.quick(nil, q.pack(t), netip.MustParseAddr(a.get("from")), a.get("tcp") != "")
	if task != nil && len(task.upstreams) > 0 {
		return fmt.Sprintf("  forwarded to %s\n", task.upstreams)
	}
	if task != nil {
		return "  forwarded by the servers of " + string(task.network) + "\n"
	}
	return dig(t, reply)
}

// clientQuery is what a client asks.
type clientQuery struct {
	name  string
	typ   dnsmessage.Type
	class dnsmessage.Class
	edns  int
	do    bool
	noRec bool
}

func (q clientQuery) pack(t testing.TB) []byte {
	t.Helper()
	name, err := dnsmessage.NewName(strings.TrimSuffix(q.name, ".") + ".")
	if err != nil {
		t.Fatal(err)
	}
	if q.class == 0 {
		q.class = dnsmessage.ClassINET
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: !q.noRec},
		Questions: []dnsmessage.Question{{Name: name, Type: q.typ, Class: q.class}},
	}
	if q.edns > 0 {
		opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
		if err := opt.Header.SetEDNS0(q.edns, dnsmessage.RCodeSuccess, q.do); err != nil {
			t.Fatal(err)
		}
		m.Additionals = append(m.Additionals, opt)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dig prints a reply, read by a codec that is not ours.
func dig(t testing.TB, msg []byte) string {
	t.Helper()
	if msg == nil {
		return "  no answer\n"
	}
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("reply %x: %v", msg, err)
	}
	var b bytes.Buffer
	flags := ""
	for _, f := range []struct {
		on   bool
		name string
	}{{m.Response, "qr"}, {m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"}, {m.RecursionAvailable, "ra"}, {m.AuthenticData, "ad"}, {m.CheckingDisabled, "cd"}} {
		if f.on {
			flags += " " + f.name
		}
	}
	fmt.Fprintf(&b, "  %s%s\n", strings.TrimPrefix(m.RCode.String(), "RCode"), flags)
	for _, q := range m.Questions {
		fmt.Fprintf(&b, "  ;%s %s\n", q.Name, typeName(q.Type))
	}
	for _, sec := range []struct {
		name string
		rrs  []dnsmessage.Resource
	}{{"", m.Answers}, {"authority ", m.Authorities}, {"additional ", m.Additionals}} {
		for _, rr := range sec.rrs {
			fmt.Fprintf(&b, "  %s%s\n", sec.name, digRecord(rr))
		}
	}
	return b.String()
}

func digRecord(rr dnsmessage.Resource) string {
	h := rr.Header
	data := ""
	switch r := rr.Body.(type) {
	case *dnsmessage.AResource:
		data = netip.AddrFrom4(r.A).String()
	case *dnsmessage.AAAAResource:
		data = netip.AddrFrom16(r.AAAA).String()
	case *dnsmessage.PTRResource:
		data = r.PTR.String()
	case *dnsmessage.CNAMEResource:
		data = r.CNAME.String()
	case *dnsmessage.SOAResource:
		data = fmt.Sprintf("%s %s %d", r.NS, r.MBox, r.MinTTL)
	case *dnsmessage.OPTResource:
		data = fmt.Sprintf("size %d", h.Class)
		if h.DNSSECAllowed() {
			data += " do"
		}
		for _, o := range r.Options {
			data += fmt.Sprintf(" option %d=%x", o.Code, o.Data)
		}
		return "OPT " + data
	default:
		data = fmt.Sprintf("%v", r)
	}
	return fmt.Sprintf("%s %d %s %s", h.Name, h.TTL, typeName(h.Type), data)
}
