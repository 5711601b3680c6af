package server

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

var update = flag.Bool("update", false, "renew the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a server on a socket with a fake behind it, and a client of it.
type rig struct {
	*client.Client
	fake   *fake
	server *Server
	socket string
	stop   func() error
	log    *syncBuffer
	warned []string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{fake: newFake(), log: &syncBuffer{}}
	o := Options{Backend: r.fake, Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test"}
	for _, c := range change {
		c(&o)
	}
	dir, err := os.MkdirTemp("", "bulkhead") //nolint:usetesting // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.socket = filepath.Join(dir, "s")
	ln, err := Listen(r.socket, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	r.server = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, ln) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	if r.Client, err = client.New("unix://" + r.socket); err != nil {
		t.Fatal(err)
	}
	r.Warn = func(text string) { r.warned = append(r.warned, text) }
	t.Cleanup(func() {
		r.Close()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// raw sends a request as it is and gives status line, the headers that matter and the body.
func (r *rig) raw(t *testing.T, method, path, body string) string {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := res.Status + "\n"
	for _, h := range []string{"Warning", "Allow"} {
		if v := res.Header.Get(h); v != "" {
			out += h + ": " + v + "\n"
		}
	}
	return out + string(b)
}

func TestHCNRoundTrips(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	const id = "11111111-2222-4333-8444-AAAAAAAAAAAA"
	n, err := r.CreateNetwork(ctx, &hcn.HostComputeNetwork{
		ID: id, Name: "nat1", Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{
			IpAddressPrefix: "172.20.0.0/24", Routes: []hcn.Route{{NextHop: "172.20.0.1", DestinationPrefix: "0.0.0.0/0"}},
		}}}},
	})
	if err != nil || n.ID != id || n.Name != "nat1" {
		t.Fatalf("create a network: %v, %v", n, err)
	}
	got, err := r.Network(ctx, id)
	if err != nil || got.Health == nil {
		t.Errorf("a detailed query shows Health: %v, %v", got, err)
	}
	if ids, err := r.EnumerateNetworks(ctx, client.Filter(map[string]string{"Name": "nat1"})); err != nil || len(ids) != 1 || ids[0] != id {
		t.Errorf("enumerate by name: %v, %v", ids, err)
	}
	if ids, err := r.EnumerateNetworks(ctx, client.Filter(map[string]string{"Name": "other"})); err != nil || ids == nil || len(ids) != 0 {
		t.Errorf("enumerate another name: %v, %v; want an empty list", ids, err)
	}
	change := &hcn.ModifyNetworkSettingRequest{
		ResourceType: hcn.NetworkResourceTypeDNS, RequestType: hcn.RequestTypeUpdate, Settings: []byte(`{"Search":["corp.example"]}`),
	}
	if err := r.ModifyNetwork(ctx, id, change); err != nil {
		t.Error(err)
	}
	all, err := r.Networks(ctx)
	if err != nil || len(all) != 1 || !cmp.Equal(all[0].Dns.Search, []string{"corp.example"}) {
		t.Errorf("after the change: %v, %v", all, err)
	}
	r.attachRoundTrip(t, id)
	if err := r.DeleteNetwork(ctx, id); err != nil {
		t.Error(err)
	}
	if _, err := r.Network(ctx, id); !errors.Is(err, hcn.ErrNetworkNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestCompartments(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	n, err := r.CreateNetwork(ctx, &hcn.HostComputeNetwork{Type: hcn.NAT})
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.CreateCompartment(ctx, api.Compartment{Endpoints: []hcn.HostComputeEndpoint{{HostComputeNetwork: n.ID}}})
	if err != nil || len(c.Endpoints) != 1 || c.Endpoints[0].HostComputeNamespace != c.Namespace.ID {
		t.Fatalf("made %+v, %v", c, err)
	}
	for what, bad := range map[string]hcn.HostComputeEndpoint{
		"another namespace": {HostComputeNetwork: n.ID, HostComputeNamespace: c.Namespace.ID}, "no network": {},
	} {
		if got, err := r.CreateCompartment(ctx, api.Compartment{Endpoints: []hcn.HostComputeEndpoint{bad}}); !api.IsKind(err, api.KindInvalid) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	if err := r.DeleteCompartment(ctx, c.Namespace.ID); err != nil {
		t.Error(err)
	}
	if eps, err := r.Endpoints(ctx); err != nil || len(eps) != 0 {
		t.Errorf("left: %v, %v", eps, err)
	}
}

func TestAttachments(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	spec := api.AttachmentSpec{Owner: "cni/net", Container: "c1", Netns: "/run/netns/c1", NetworkAttachment: api.NetworkAttachment{Network: "nat"}}
	made, err := r.Attach(ctx, spec)
	if err != nil || made.ID != (api.AttachmentKey{Container: "c1"}).ID("cni/net") {
		t.Fatalf("made %+v, %v", made, err)
	}
	if _, err := r.Attach(ctx, api.AttachmentSpec{Owner: "cni/net"}); !api.IsKind(err, api.KindInvalid) {
		t.Errorf("without a namespace: %v", err)
	}
	for _, get := range []func(context.Context, hcn.GUID) (*api.Attachment, error){r.Attachment, r.CheckAttachment} {
		if got, err := get(ctx, made.ID); err != nil || got.Container != "c1" {
			t.Errorf("shown %+v, %v", got, err)
		}
	}
	for owner, n := range map[string]int{"": 1, "cni/net": 1, "docker": 0} {
		if got, err := r.Attachments(ctx, owner); err != nil || len(got) != n {
			t.Errorf("of %q: %+v, %v, want %d", owner, got, err, n)
		}
	}
	keep := api.AttachmentGC{Owner: "cni/net", Keep: []api.AttachmentKey{{Container: "c1"}}}
	if gone, err := r.CollectAttachments(ctx, keep); err != nil || len(gone) != 0 {
		t.Errorf("collected %v, %v, what was to be kept", gone, err)
	}
	keep.Keep = nil
	if gone, err := r.CollectAttachments(ctx, keep); err != nil || len(gone) != 1 {
		t.Errorf("collected %v, %v, want one", gone, err)
	}
	if err := r.Detach(ctx, made.ID); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("detach what is gone: %v", err)
	}
}

func (r *rig) attachRoundTrip(t *testing.T, network hcn.GUID) {
	t.Helper()
	ctx := t.Context()
	ep, err := r.CreateEndpoint(ctx, &hcn.HostComputeEndpoint{Name: "web", HostComputeNetwork: network})
	if err != nil || ep.HostComputeNetwork != network {
		t.Fatalf("create an endpoint: %v, %v", ep, err)
	}
	ns, err := r.CreateNamespace(ctx, &hcn.HostComputeNamespace{Name: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AttachEndpoint(ctx, ns.ID, ep.ID); err != nil {
		t.Fatal(err)
	}
	list, err := r.Endpoints(ctx)
	if err != nil || len(list) != 1 || list[0].HostComputeNamespace != ns.ID {
		t.Errorf("attached: %v, %v", list, err)
	}
	if s, err := r.EndpointStats(ctx, ep.ID); err != nil || s.BytesSent != 2 {
		t.Errorf("stats: %v, %v", s, err)
	}
	if err := r.ModifyEndpoint(ctx, ep.ID, &hcn.ModifyEndpointSettingRequest{
		ResourceType: hcn.EndpointResourceTypePolicy, Settings: []byte(`{"Policies":[{"Type":"Bulkhead.Aliases","Settings":{"Names":["w"]}}]}`),
	}); err != nil {
		t.Error(err)
	}
	if err := r.DetachEndpoint(ctx, ns.ID, ep.ID); err != nil {
		t.Error(err)
	}
	got, err := r.Endpoint(ctx, ep.ID)
	if err != nil || got.HostComputeNamespace != "" || len(got.Policies) != 1 {
		t.Errorf("detached: %v, %v", got, err)
	}
	if err := r.DeleteEndpoint(ctx, ep.ID); err != nil {
		t.Error(err)
	}
	if spaces, err := r.Namespaces(ctx); err != nil || len(spaces) != 1 {
		t.Errorf("namespaces: %v, %v", spaces, err)
	}
	if err := r.DeleteNamespace(ctx, ns.ID); err != nil {
		t.Error(err)
	}
	if _, err := r.Namespace(ctx, ns.ID); !errors.Is(err, hcn.ErrElementNotFound) {
		t.Errorf("after delete: %v", err)
	}
	if v, err := r.HCNVersion(ctx); err != nil || v.Major != 9 {
		t.Errorf("version: %v, %v", v, err)
	}
}

func TestContainerRoundTrips(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	made, err := r.CreateContainer(ctx, api.ContainerSpec{Name: "web", Image: "reg.example/a/b:1", DNS: hcn.Dns{Search: []string{"x"}}})
	if err != nil || len(made.Warnings) != 1 {
		t.Fatalf("create: %v, %v", made, err)
	}
	one, err := r.Container(ctx, made.ID[:62])
	if err == nil || one.ID != "" {
		t.Logf("by prefix: %v", one.ID)
	}
	if list, err := r.Containers(ctx); err != nil || len(list) != 1 || list[0].Spec.Image != "reg.example/a/b:1" {
		t.Errorf("list: %v, %v", list, err)
	}
	timeout := 4
	port := []api.PublishedPort{{ContainerPort: 80}}
	for _, err := range []error{
		r.StartContainer(ctx, "web"), r.StopContainer(ctx, "web", api.StopRequest{Signal: "INT", Timeout: &timeout}),
		r.RestartContainer(ctx, "web", api.StopRequest{}), r.KillContainer(ctx, "web", "HUP"),
		r.PauseContainer(ctx, "web"), r.UnpauseContainer(ctx, "web"),
		r.ConnectContainer(ctx, "web", api.NetworkAttachment{Network: "n1"}), r.DisconnectContainer(ctx, "web", "a/b c"),
		r.UnpublishPorts(ctx, "web", port),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if got, err := r.IsolateContainer(ctx, "web", api.IsolationRequest{Isolation: "vm", Signal: "INT"}); err != nil || !got.Restarted || got.Isolation != "vm" {
		t.Errorf("isolation: %v, %v", got, err)
	}
	if got, err := r.PublishPorts(ctx, "web", port); err != nil || len(got) != 1 {
		t.Errorf("publish: %v, %v", got, err)
	}
	close(r.fake.exited)
	if res, err := r.WaitContainer(ctx, "web", "removed"); err != nil || res.ExitCode != 3 {
		t.Errorf("wait: %v, %v", res, err)
	}
	err = r.RemoveContainer(ctx, "web", false)
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Kind != api.KindConflict || refused.Next != "stop it first, or use --force" {
		t.Errorf("remove: %v", err)
	}
	if err := r.RemoveContainer(ctx, "web", true); err != nil {
		t.Error(err)
	}
	want := []string{
		"start web", "stop INT 4 web", "restart  web", "kill HUP web", "pause web", "unpause web", "connect n1 web", "disconnect a/b c web", "unpublish 80 web",
		"isolate vm INT web", "publish 80 web", "wait removed web", "remove force=true web",
	}
	if d := cmp.Diff(want, r.fake.took()); d != "" {
		t.Error(d)
	}
}

func TestLogsAndStats(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if _, err := r.CreateContainer(ctx, api.ContainerSpec{Name: "web", Image: "i"}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	collect := func(l api.LogLine) error { lines = append(lines, l.Line); return nil }
	since := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	if err := r.ContainerLogs(ctx, "web", api.LogOptions{Tail: 4, Since: since, Stdout: true}, collect); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"one", "two"}, lines); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"logs tail=4 since=2024-05-06T07:08:09Z stdout=true stderr=false web"}, r.fake.took()); d != "" {
		t.Error(d)
	}
	err := r.ContainerLogs(ctx, "web", api.LogOptions{Tail: 13}, collect)
	var late *api.Error
	if !errors.As(err, &late) || late.Kind != api.KindConflict || late.Next != "remove it" {
		t.Errorf("a stream that fails midway: %v", err)
	}
	if err := r.ContainerLogs(ctx, "none", api.LogOptions{}, collect); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("logs of nothing: %v", err)
	}
	enough := errors.New("enough")
	if err := r.ContainerLogs(ctx, "web", api.LogOptions{Follow: true}, func(api.LogLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a reader that ends it: %v", err)
	}
	if s, err := r.ContainerStats(ctx, "web"); err != nil || s.Pids != 1 {
		t.Errorf("stats: %v, %v", s, err)
	}
	var pids []uint64
	err = r.StreamStats(ctx, "web", func(s api.Stats) error {
		if pids = append(pids, s.Pids); len(pids) == 2 {
			return enough
		}
		return nil
	})
	if d := cmp.Diff([]uint64{2, 3}, pids); !errors.Is(err, enough) || d != "" {
		t.Error(err, d)
	}
}

func TestImages(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	const ref = "reg.example:5000/a/b:1"
	phases := map[string]string{}
	see := func(p api.ImageProgress) { phases[p.Layer] = p.Phase }
	if i, err := r.PullImage(ctx, api.PullRequest{Reference: ref}, see); err != nil || i.ID != "sha256:1" || phases["a"] != "done" {
		t.Errorf("pull: %v, %v, %v", i, err, phases)
	}
	login := api.LoginRequest{Registry: "reg.example:5000", Auth: api.RegistryAuth{Username: "ann", Password: "wrong"}}
	if err := r.Login(ctx, login); !api.IsKind(err, api.KindConflict) {
		t.Fatal(err)
	}
	login.Auth.Password = "secret"
	if err := errors.Join(r.Login(ctx, login), r.Logout(ctx, "reg.example:5000")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.PullImage(ctx, api.PullRequest{Reference: "none"}, nil); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("pull nothing: %v", err)
	}
	_, err := r.PullImage(ctx, api.PullRequest{Reference: "broken"}, nil)
	var broke *api.Error
	if !errors.As(err, &broke) || broke.Kind != api.KindUnavailable || broke.Next != "try again" {
		t.Errorf("pull that breaks off: %v", err)
	}
	if i, err := r.Image(ctx, ref); err != nil || i.Names[0] != ref {
		t.Errorf("show: %v, %v", i, err)
	}
	if _, err := r.Image(ctx, "a/../b"); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("show a name with dots: %v", err)
	}
	config := api.ImageConfig{Cmd: []string{"/bin/sh"}, Labels: map[string]string{"a&b": "ü"}}
	big := io.LimitReader(zeros{}, 3<<20) // more than a document may have
	if i, err := r.ImportImage(ctx, big, "x:1", config); err != nil || i.Size != 3<<20 || !cmp.Equal(i.Config, config) {
		t.Errorf("import: %v, %v", i, err)
	}
	for _, err := range []error{
		r.PushImage(ctx, api.PullRequest{Reference: ref}, see), r.TagImage(ctx, ref, "x/y:2"), r.RemoveImage(ctx, "x/y:2", true),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if d := cmp.Diff([]string{"login reg.example:5000 as ann", "logout reg.example:5000", "push " + ref, "tag " + ref + " x/y:2", "remove image x/y:2 force=true"}, r.fake.took()); d != "" {
		t.Error(d)
	}
	if l, err := r.Images(ctx); err != nil || len(l) != 1 {
		t.Errorf("list: %v, %v", l, err)
	}
	if l, err := r.PruneImages(ctx); err != nil || l == nil {
		t.Errorf("prune: %v, %v; want an empty list", l, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestReports(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if l, err := r.Addresses(ctx); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
	if l, err := r.Published(ctx); err != nil || l == nil {
		t.Error(l, err)
	}
	if l, err := r.Doctor(ctx); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
	if i, err := r.Info(ctx); err != nil || i.Version != "fake" || i.HCN.Major != 9 {
		t.Error(i, err)
	}
}

func TestDrops(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	var lines []api.DropLine
	collect := func(l api.DropLine) error { lines = append(lines, l); return nil }
	if err := r.Drops(ctx, api.DropOptions{Endpoints: []string{"a", "b"}, Reasons: []string{"martian"}, Tail: 3}, collect); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 2 || lines[0].Drop == nil || lines[0].Drop.Reason != "martian" || lines[1].NotShown != 7 {
		t.Errorf("got %v", lines)
	}
	if d := cmp.Diff([]string{"drops [a b] [martian] 3 false"}, r.fake.took()); d != "" {
		t.Error(d)
	}
	if err := r.Drops(ctx, api.DropOptions{Endpoints: []string{"none"}}, collect); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("drops of nothing: %v", err)
	}
	enough := errors.New("enough")
	if err := r.Drops(ctx, api.DropOptions{Follow: true}, func(api.DropLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a reader that ends it: %v", err)
	}
}

func TestFlows(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	var lines []api.FlowLine
	collect := func(l api.FlowLine) error { lines = append(lines, l); return nil }
	o := api.FlowOptions{Endpoints: []string{"a", "b"}, Protocol: "tcp", Port: 80, Recent: true, Sort: api.SortAge, Limit: 3}
	if err := r.Flows(ctx, o, collect); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 2 || lines[0].Flow == nil || lines[0].Flow.State != api.FlowEstablished || lines[1].NotShown != 7 {
		t.Errorf("got %v", lines)
	}
	if d := cmp.Diff([]string{"flows {Endpoints:[a b] Protocol:tcp Port:80 Recent:true Follow:false Sort:age Limit:3}"}, r.fake.took()); d != "" {
		t.Error(d)
	}
	if err := r.Flows(ctx, api.FlowOptions{Endpoints: []string{"none"}}, collect); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("flows of nothing: %v", err)
	}
	enough := errors.New("enough")
	if err := r.Flows(ctx, api.FlowOptions{Follow: true}, func(api.FlowLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a reader that ends it: %v", err)
	}
	r.fake.took()
	if x, err := r.Explain(ctx, api.ExplainOptions{From: "a", To: "b", Protocol: "tcp", Port: 80, Family: 4, Probe: true}); err != nil || !x.Reachable || x.To != "b" {
		t.Errorf("explain: %v, %v", x, err)
	}
	if d := cmp.Diff([]string{"explain {From:a To:b Protocol:tcp Port:80 Family:4 Probe:true}"}, r.fake.took()); d != "" {
		t.Error(d)
	}
	if _, err := r.Explain(ctx, api.ExplainOptions{To: "none"}); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("explain the way to nothing: %v", err)
	}
	if l, err := r.Rules(ctx, "a b/c"); err != nil || len(l) != 1 || l[0].Name != "a b/c" {
		t.Errorf("rules: %v, %v", l, err)
	}
	if _, err := r.Rules(ctx, "none"); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("rules of nothing: %v", err)
	}
}

func TestCapture(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	body, err := r.Capture(ctx, api.CaptureOptions{
		Target: "web", Point: "port", Protocol: "tcp", Hosts: []string{"a", "10.0.0.0/8"}, Port: 80, Packets: 3, Snaplen: 96, Duration: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	var head [4]byte
	if _, err := io.ReadFull(body, head[:]); err != nil || string(head[:]) != "head" {
		t.Errorf("%q, %v", head, err)
	}
	if d := cmp.Diff([]string{"capture {Target:web Point:port Protocol:tcp Hosts:[a 10.0.0.0/8] Port:80 Packets:3 Snaplen:96 Duration:1m0s}"}, r.fake.took()); d != "" {
		t.Error(d)
	}
	body.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); !slices.Contains(r.fake.took(), "capture ends"); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it goes on when its reader has gone")
		}
	}
	if _, err := r.Capture(ctx, api.CaptureOptions{Target: "none"}); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	body, err = r.Capture(ctx, api.CaptureOptions{Target: "broken"})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err == nil || string(b) != "head" {
		t.Errorf("one that breaks off reads as %q, %v", b, err)
	}
}
