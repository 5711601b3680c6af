package cli

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

var update = flag.Bool("update", false, "write what is printed to the golden files")

// call runs a command line as a process would.
func call(t *testing.T, socket string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return callWith(t, socket, nil, map[string]string{"LANG": "C.UTF-8"}, args...)
}

func callWith(t *testing.T, socket string, stdin *bytes.Buffer, env map[string]string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	if stdin == nil {
		stdin = &bytes.Buffer{}
	}
	var out, errs bytes.Buffer
	code = Main(t.Context(), Deps{
		Stdin: stdin, Stdout: &out, Stderr: &errs, Version: "1.0.0", Commit: "abc", Width: 100,
		Now: func() time.Time { return time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC) },
		Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	}, append([]string{"-H", "unix://" + socket}, args...))
	return out.String(), errs.String(), code
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: make it with -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestListings keeps what every listing prints.
func TestListings(t *testing.T) {
	var b strings.Builder
	d := newDaemon(t)
	for _, line := range []string{
		"ps", "ps -a", "ps -q -a", "ps -o name", "ps --filter network=back --filter status=running --filter status=exited",
		"ps -a --filter label=app --filter name=eb", "ps --filter label=app=none",
		"container ls -a --filter status=failed -o json",
		"network ls", "network ls -o name", "endpoint ls", "endpoint ls --network back", "namespace ls", "loadbalancer ls", "lb ls -o name", "lb ls -o json", "inspect front -o table", "loadbalancer inspect nothing",
		"address ls", "address ls --network back", "address who fd4e:5a1:77:0::2", "address who 10.1.1.1", "address who nobody",
		"exposed", "nic ls", "nic ls -o name", "images", "image ls -o name", "port web", "port db", "port web -o json", "topology -o name",
		"drops", "drops -f", "drops -o name", "drops -o json -n 3 web", "drops -f -o json",
		"flows", "flows -f", "flows -o name", "flows -o json -n 3 web", "flows -f -o json", "rules web", "rules web -o name", "rules web -o json",
		"explain web db", "explain web client", "explain web faulty", "explain web db -o json", "explain web db -o name",
		"acl ls web", "acl ls web --network back", "acl ls db", "acl ls db -o json", "acl ls db -o name", "acl ls nobody", "rate ls", "rate ls --network back -o json",
		"doctor", "info", "inspect web -o table", "inspect nat -o table", "inspect CCCC0002 -o name", "inspect tools -o table",
		"inspect AAAA0005-0000-4000-8000-000000000005", "network inspect back", "endpoint inspect web", "inspect nothing",
		"inspect --type volume web", "image inspect nothing", "ps -o yaml", "ps --filter age=3", "ps web",
	} {
		out, errs, code := call(t, d.socket, strings.Fields(line)...)
		writeCall(&b, line, out, errs, code)
	}
	golden(t, "listings.txt", b.String())
}

func writeCall(b *strings.Builder, line, out, errs string, code int) {
	fmt.Fprintf(b, "$ bulkhead %s\n%s", line, out)
	for l := range strings.Lines(errs) {
		fmt.Fprintf(b, "! %s", l)
	}
	if code != 0 {
		fmt.Fprintf(b, "= exit code %d\n", code)
	}
	b.WriteByte('\n')
}

// TestChanges keeps what every changing command asks the daemon for.
func TestChanges(t *testing.T) {
	var b strings.Builder
	for _, line := range []string{
		"create --name db -e A=1 -e HOME -v data:/var/lib/db --tmpfs /run:size=8m -m 64m --memory-swap -1 --cpus 1.5 --pids-limit 50 " +
			"--ulimit nofile=10:20 --sysctl net.ipv4.ip_unprivileged_port_start=0 --cap-drop ALL --cap-add NET_ADMIN --restart on-failure:3 " +
			"--network back:ip=10.8.0.9,alias=sql --network nat -p 5432:5432 --expose lan --add-host gw:host-gateway --dns 192.0.2.53 " +
			"--stop-timeout 3 --stop-signal INT --label a=b --annotation c=d --security-opt no-new-privileges --read-only -u 5:6 -w /x " +
			"--entrypoint /init -h box --hostname box registry.example/db:2 --flag -x",
		"create --pull never --network none x", "create --network container:web x", "create -p 192.0.2.7:80:80 -p 8080:80 -p 53/udp x",
		"start web db", "stop -t 3 web", "stop web", "restart -s INT web", "kill web", "kill -s HUP web", "rm -f -v web",
		"wait web", "exec -d web /bin/true",
		"container isolation web vm", "container isolation -t 3 web process --dry-run", "container isolation web",
		"container isolation web vm --guest-kernel kernels/debian:6.1", "create --isolation vm --guest-kernel kernel:6.1 x", "create --guest-kernel kernel:6.1 x",
		"image import-kernel --root testdata/kernel kernel:6.1", "image import-kernel --root testdata kernel:6.1", "image import-kernel --root testdata/kernel --version ../7 kernel:7",
		"publish add web 53:53/udp --expose lan", "publish rm web 53:53/udp --expose lan", "publish add web 1:1 --expose nowhere",
		"network create --subnet 10.7.0.0/24 --exclude 10.7.0.1-10.7.0.9 --exclude 10.7.0.50 --ip-range 10.7.0.128/25 --ipv6=false lan",
		"network create --type internal --subnet 10.7.0.0/24 --subnet fd00:7::/64 --gateway fd00:7::fe --dns 192.0.2.53 --persistent=false lan",
		"network create lan", "network create --type private --subnet 10.7.0.0/24 --ipv6=false lan",
		"network create --ipv6=false lan", "network create --type overlay lan", "network create --subnet 10.7.0.1/24 lan",
		"network create --gateway 10.0.0.1 lan", "network create --type private --subnet 10.7.0.0/24 --gateway 10.7.0.1 lan",
		"network create --exclude x lan",
		"network rm lab", "network rm nat", "network rm no", "network connect --ip 10.8.0.50 --gw-priority 5 --interface lan0 back client",
		"network disconnect back web", "network prune", "network prune -f",
		"endpoint create --network back --name e --ip 10.8.0.77 --interface lan0 --gw-priority 3 --alias a -p 80:80 -p 81-82:81-82/udp --expose lan",
		"endpoint create -p 80:80", "endpoint rm spare", "endpoint rm web",
		"namespace create --name pod", "namespace attach web spare", "namespace detach web AAAA0003", "namespace rm client",
		"loadbalancer create --name l --network back --vip 10.96.0.1 --vip fd00:96::1 -p 80:8080 --port 53/udp --affinity source --source-vip 10.8.0.9 AAAA0001 db",
		"lb create --vip 10.96.0.1 -p 80 --preserve-dip", "lb create --vip 10.96.0.1 -p 80 nobody", "lb create -p x", "lb create -p 80/sctp", "lb create -p 80",
		"lb create --name n --expose lan -p 30080:80", "lb create --vip 10.96.0.1 -p 80 --expose lan --preserve-dip", "lb create --expose all -p 80", "lb create --affinity x",
		"lb set front db", "lb set front", "lb set nobody web", "lb rm front", "lb rm nobody", "lb rm front --dry-run",
		"image tag tools t", "image rm tools", "image prune", "push tools", "pull --plain-http registry.example/web:1",
		"events --kind drift --after 3", "drops -f -n 5 web db --reason martian,policy", "flows -f -n 5 web 192.0.2.1 --proto tcp --port 80 --recent --sort age",
		"acl add client --action allow --proto tcp,UDP --ports 53,80-90 --remote 10.0.0.0/8,fd00::/8 --priority 7",
		"acl add web --network back --direction out --action block --id lab --ports 443 --source-ports 1 --proto 6 --local 10.8.0.5", "explain web db udp/53 --probe -4", "explain web db -6", "explain web db -4 -6", "explain web", "explain web db tcp/0", "explain web db tcp/80 x",
		"acl add web", "acl add web --action deny",
		"acl add web --action allow --direction up", "acl add db --network nat --action block", "acl add db --action block", "acl add db --network no --action block",
		"acl add spare --action allow", "acl add web --action block", "acl add db --action block --id ssh", "acl rm db ssh", "acl rm db nonsense", "acl rm web",
		"rate set web --network back --out 10mbit --in 1.5Gbit/s", "rate set db --out 0 --dry-run", "rate set web --out 10", "rate set web --in 7bit", "rate set web",
		"network connect --rate-out 8mbit back:rate-in=800kbit client", "endpoint create --network back --rate-in 1mbit",
		"network create --type transparent --uplink nic1 lan", "network create --type transparent --uplink= --dhcp lan", "network create --uplink= lan",
		"network create --type transparent --uplink 192.0.2.7 --dhcp lan", "network create --type transparent --uplink 11111111-aaaa-5000-8000-000000000001 --dhcp lan",
		"network create --type transparent --subnet 10.7.0.0/24 --gateway 10.7.0.1 --confirm-within 2m lan", "confirm lan", "confirm", "confirm a b",
		"network create --dry-run lan", "network rm --dry-run lab no", "network rm --dry-run lab -o json", "network create -o json lan",
		"network create --dry-run -o yaml lan", "acl add web --network back --action block --dry-run", "publish add web 53:53/udp --dry-run",
		"network connect back client --dry-run", "network disconnect back web --dry-run", "network prune -f --dry-run",
		"endpoint rm spare --dry-run", "namespace create --dry-run", "namespace detach web AAAA0003 --dry-run",
		"image import testdata/host.json base:1 --cmd sh --env A=1",
		"nonsense", "rnu", "network nonsense", "run", "stop", "run --nonsense x", "logs a b", "run --rm --restart always x", "create --network host x",
	} {
		d := newDaemon(t)
		d.start()
		out, errs, code := callWith(t, d.socket, nil, map[string]string{"HOME": "/root"}, strings.Fields(line)...)
		writeCall(&b, line, out, errs, code)
		for _, r := range d.noted() {
			fmt.Fprintf(&b, "> %s\n", r)
		}
		b.WriteByte('\n')
	}
	golden(t, "changes.txt", b.String())
}

func TestRandomULA(t *testing.T) {
	a, b := randomULA(), randomULA()
	if a == b || a.Bits() != 64 || a.Masked() != a || !netip.MustParsePrefix("fd00::/8").Contains(a.Addr()) || !a.Addr().IsPrivate() {
		t.Errorf("%s and %s are not two random unique local prefixes", a, b)
	}
	doc, err := (networkSpec{kind: "nat", subnets: []string{"10.0.0.0/24"}, ipv6: true}).document(randomULA)
	if err != nil {
		t.Fatal(err)
	}
	doc.Defaults(hcn.NewGUID)
	if err := doc.Validate(); err != nil {
		t.Errorf("the daemon would refuse what network create makes: %v", err)
	}
}

// TestNoEscapes is about terminals: no listing passes on what controls them.
func TestNoEscapes(t *testing.T) {
	d := newDaemon(t)
	evil := "\x1b]0;x\a\u202e\u009b2J\n"
	for i := range d.Networks {
		d.Networks[i].Name, d.Networks[i].Owner = evil, evil
	}
	for i := range d.Endpoints {
		d.Endpoints[i].Name = evil
	}
	for i := range d.Containers {
		d.Containers[i].Name, d.Containers[i].State.Status, d.Containers[i].Spec.Image = evil, evil, evil
	}
	for i := range d.Images {
		d.Images[i].Names = []string{evil}
	}
	for i := range d.Drops {
		if drop := d.Drops[i].Drop; drop != nil {
			drop.Name, drop.Network, drop.Source, drop.Reason, drop.Rule = evil, evil, evil, evil, &api.DropRule{ID: evil, Text: evil}
		}
	}
	for i := range d.Flows {
		if f := d.Flows[i].Flow; f != nil {
			f.Network, f.Source.Name, f.Destination.Address, f.State, f.RuleOut = evil, evil, evil, evil, &api.DropRule{ID: evil, Text: evil}
		}
	}
	for i := range d.Rules {
		r := &d.Rules[i]
		r.Name, r.Network, r.Rules[0].ID, r.Rules[0].Text, r.Rules[0].Action = evil, evil, evil, evil, evil
	}
	for i := range d.Explained.Paths {
		x := &d.Explained.Paths[i]
		x.Summary, x.Source, x.Next = evil, evil, evil
		x.Steps = []api.ExplainStep{{Layer: evil, At: evil, Text: evil, Rule: &api.Rule{DropRule: api.DropRule{ID: evil}}}}
		x.Probe = &api.ExplainProbe{Text: evil}
		x.Doubts = []string{evil}
	}
	d.Plan.Objects[0] = api.PlanObject{Object: evil, Changes: []api.PlanChange{{Action: evil, Text: evil, For: &api.PlanOwner{Kind: evil, Name: evil}}}}
	for i := range d.Doctor {
		d.Doctor[i].Detail, d.Doctor[i].Next = evil, evil
	}
	for i := range d.Addresses {
		d.Addresses[i].Name, d.Addresses[i].Container = evil, evil
	}
	for _, line := range []string{
		"ps -a", "network ls", "endpoint ls", "namespace ls", "images", "doctor", "address ls", "exposed", "topology", "events",
		"drops", "drops -f", "drops -o json", "flows", "flows -f", "flows -o json", "rules x", "explain a b", "network ls -o json", "network ls -o name", "inspect 1c0ffee", "network rm 1111", "network create --dry-run x", "stats --no-stream 1c0ffee",
	} {
		out, errs, _ := call(t, d.socket, strings.Fields(line)...)
		if i := strings.IndexFunc(out+errs, func(r rune) bool { return r != '\n' && unsafeRune(r) }); i >= 0 || out+errs == "" {
			t.Errorf("%s prints %q", line, (out + errs)[max(i, 0):])
		}
	}
}
