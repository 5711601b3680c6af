package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
)

// fake is a backend in memory. It keeps documents as they come and writes down the calls that change something.
type fake struct {
	mu          sync.Mutex
	networks    map[hcn.GUID]hcn.HostComputeNetwork
	endpoints   map[hcn.GUID]hcn.HostComputeEndpoint
	namespaces  map[hcn.GUID]hcn.HostComputeNamespace
	routes      map[hcn.GUID]hcn.HostComputeRoute
	balancers   map[hcn.GUID]hcn.HostComputeLoadBalancer
	guests      map[hcn.GUID]hcn.GuestNetworkService
	containers  map[string]api.Container
	images      map[string]api.Image
	attachments map[hcn.GUID]api.Attachment
	ids         int
	calls       []string

	ring    []api.Event
	readers map[chan api.Event]bool

	exited chan struct{} // closed when containers end
	// attach is what AttachContainer does.
	attach func(ctx context.Context, s api.Streams) error
	// dial is what DialHost does.
	dial func(ctx context.Context) (net.Conn, error)
	// stats counts up with every question.
	asked uint64
}

func newFake() *fake {
	return &fake{
		networks: map[hcn.GUID]hcn.HostComputeNetwork{}, endpoints: map[hcn.GUID]hcn.HostComputeEndpoint{},
		namespaces: map[hcn.GUID]hcn.HostComputeNamespace{}, routes: map[hcn.GUID]hcn.HostComputeRoute{}, balancers: map[hcn.GUID]hcn.HostComputeLoadBalancer{}, guests: map[hcn.GUID]hcn.GuestNetworkService{}, containers: map[string]api.Container{}, images: map[string]api.Image{},
		attachments: map[hcn.GUID]api.Attachment{}, readers: map[chan api.Event]bool{}, exited: make(chan struct{}),
	}
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) CreateNetworkFor(ctx context.Context, doc hcn.HostComputeNetwork, within time.Duration) (api.Tentative, error) {
	made, err := f.CreateNetwork(ctx, "", doc)
	f.note("confirm within %s", within)
	return api.Tentative{Network: made, ConfirmBy: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}, err
}

func (f *fake) Confirm(_ context.Context, ref string) error {
	if ref == "no" {
		return api.Errorf(api.KindConflict, "network no does not wait to be confirmed")
	}
	f.note("confirm %s", ref)
	return nil
}

func (f *fake) Unconfirmed() []api.Unconfirmed { return nil }

// Tentatively stands for an engine, whose rehearsal makes nothing.
func (f *fake) Tentatively(ctx context.Context, within time.Duration, change func(ctx context.Context) error) error {
	f.note("tentative within %s", within)
	return change(ctx)
}

// Plan stands for an engine, which would not make the change.
func (f *fake) Plan(ctx context.Context, change func(ctx context.Context) error) (api.Plan, error) {
	if err := change(ctx); err != nil {
		return api.Plan{}, err
	}
	return api.Plan{Objects: []api.PlanObject{{
		Object: "link eth1", Changes: []api.PlanChange{{Action: "add", Text: "program", For: &api.PlanOwner{Kind: "network", ID: "n9"}}},
	}}}, nil
}

func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.calls = nil }()
	return f.calls
}

// newID counts, so that answers can be compared with text.
func (f *fake) newID() hcn.GUID {
	f.ids++
	return hcn.GUID(fmt.Sprintf("00000000-0000-4000-8000-%012X", f.ids))
}

func listed[T any](m map[hcn.GUID]T, match func(*T) bool) []hcn.GUID {
	var out []hcn.GUID
	for id, doc := range m {
		if match(&doc) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func (f *fake) Networks(q hcn.Filter) []hcn.GUID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listed(f.networks, q.MatchNetwork)
}

func (f *fake) Network(id hcn.GUID) (hcn.HostComputeNetwork, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.networks[id]
	if !ok {
		return n, hcn.Errorf(hcn.ErrNetworkNotFound, "no network has the ID %s", id)
	}
	return n, nil
}

func (f *fake) CreateNetwork(_ context.Context, id hcn.GUID, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error) {
	if doc.Name == "panic" {
		panic("no bottom")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	doc.ID = hcn.ChooseID(id, doc.ID, f.newID)
	if _, ok := f.networks[doc.ID]; ok {
		return doc, hcn.Errorf(hcn.ErrNetworkAlreadyExists, "ID %s", doc.ID)
	}
	doc.Defaults(f.newID)
	if err := doc.Validate(); err != nil {
		return doc, err
	}
	f.networks[doc.ID] = doc
	return doc, nil
}

func (f *fake) ModifyNetwork(_ context.Context, id hcn.GUID, r *hcn.ModifyNetworkSettingRequest) error {
	n, err := f.Network(id)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	changed, err := r.Apply(&n, f.newID)
	if err == nil {
		f.networks[id] = *changed
	}
	return err
}

func (f *fake) DeleteNetwork(_ context.Context, id hcn.GUID) error {
	if _, err := f.Network(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.networks, id)
	return nil
}

func (f *fake) Endpoints(q hcn.Filter) []hcn.GUID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listed(f.endpoints, q.MatchEndpoint)
}

func (f *fake) Endpoint(id hcn.GUID) (hcn.HostComputeEndpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.endpoints[id]
	if !ok {
		return e, hcn.Errorf(hcn.ErrEndpointNotFound, "no endpoint has the ID %s", id)
	}
	return e, nil
}

func (f *fake) CreateEndpoint(_ context.Context, id, network hcn.GUID, doc hcn.HostComputeEndpoint) (hcn.HostComputeEndpoint, error) {
	if !network.IsZero() {
		doc.HostComputeNetwork = network
	}
	n, err := f.Network(doc.HostComputeNetwork)
	if err != nil {
		return doc, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	doc.ID = hcn.ChooseID(id, doc.ID, f.newID)
	doc.Defaults(&n)
	f.endpoints[doc.ID] = doc
	return doc, nil
}

func (f *fake) ModifyEndpoint(_ context.Context, id hcn.GUID, r *hcn.ModifyEndpointSettingRequest) error {
	e, err := f.Endpoint(id)
	if err != nil {
		return err
	}
	n, err := f.Network(e.HostComputeNetwork)
	if err != nil {
		return err
	}
	changed, err := r.Apply(&e, &n)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endpoints[id] = *changed
	return nil
}

func (f *fake) DeleteEndpoint(_ context.Context, id hcn.GUID) error {
	if _, err := f.Endpoint(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.endpoints, id)
	return nil
}

func (f *fake) EndpointStats(id hcn.GUID) (api.NetworkStats, error) {
	_, err := f.Endpoint(id)
	return api.NetworkStats{Endpoint: id, BytesReceived: 1, BytesSent: 2, DroppedIncoming: 3, DroppedOutgoing: 4}, err
}

func (f *fake) Namespaces(q hcn.Filter) []hcn.GUID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listed(f.namespaces, q.MatchNamespace)
}

func (f *fake) Namespace(id hcn.GUID) (hcn.HostComputeNamespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.namespaces[id]
	if !ok {
		return n, hcn.Errorf(hcn.ErrElementNotFound, "no namespace has the ID %s", id)
	}
	return n, nil
}

func (f *fake) HostNamespace(ctx context.Context) (hcn.GUID, error) {
	ns, err := f.CreateNamespace(ctx, "", hcn.HostComputeNamespace{Type: hcn.NamespaceTypeHostDefault})
	return ns.ID, err
}

func (f *fake) CreateNamespace(_ context.Context, id hcn.GUID, doc hcn.HostComputeNamespace) (hcn.HostComputeNamespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ns := range f.namespaces {
		if ns.Type == hcn.NamespaceTypeHostDefault && doc.Type == ns.Type {
			return ns, nil
		}
	}
	doc.ID = hcn.ChooseID(id, doc.ID, f.newID)
	doc.Defaults(f.newID)
	doc.NamespaceId = uint32(len(f.namespaces) + 2)
	f.namespaces[doc.ID] = doc
	return doc, nil
}

func (f *fake) ModifyNamespace(_ context.Context, id hcn.GUID, r *hcn.ModifyNamespaceSettingRequest) error {
	ns, err := f.Namespace(id)
	if err != nil {
		return err
	}
	res, err := r.Resource()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ns.Resources = slices.DeleteFunc(slices.Clone(ns.Resources), func(o hcn.NamespaceResource) bool { return o == res })
	home := hcn.GUID("")
	if r.RequestType == hcn.RequestTypeAdd {
		ns.Resources = append(ns.Resources, res)
		home = id
	}
	f.namespaces[id] = ns
	if e, ok := f.endpoints[hcn.GUID(res.Data.ID)]; ok {
		e.HostComputeNamespace = home
		f.endpoints[e.ID] = e
	}
	return nil
}

func (f *fake) DeleteNamespace(_ context.Context, id hcn.GUID) error {
	if _, err := f.Namespace(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.namespaces, id)
	return nil
}

func (f *fake) CreateCompartment(ctx context.Context, c api.Compartment) (api.Compartment, error) {
	ns, err := f.CreateNamespace(ctx, "", c.Namespace)
	if err != nil {
		return c, err
	}
	made := api.Compartment{Namespace: ns}
	for _, doc := range c.Endpoints {
		ep, err := f.CreateEndpoint(ctx, "", "", doc)
		if err != nil {
			return c, err
		}
		f.mu.Lock()
		ep.HostComputeNamespace = ns.ID
		f.endpoints[ep.ID] = ep
		f.mu.Unlock()
		made.Endpoints = append(made.Endpoints, ep)
	}
	return made, nil
}

func (f *fake) Attach(ctx context.Context, s api.AttachmentSpec) (api.Attachment, error) {
	id := api.AttachmentKey{Container: s.Container, Interface: s.Interface}.ID(s.Owner)
	if s.Netns == "" {
		return api.Attachment{}, api.Errorf(api.KindInvalid, "netns: it is missing")
	}
	f.note("attach %s", id)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attachments[id] = api.Attachment{ID: id, Owner: s.Owner, Container: s.Container, Netns: s.Netns}
	return f.attachments[id], nil
}

func (f *fake) Detach(_ context.Context, id hcn.GUID) error {
	if _, err := f.Attachment(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attachments, id)
	return nil
}

func (f *fake) Attachments(owner string) (out []api.Attachment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.attachments {
		if owner == "" || a.Owner == owner {
			out = append(out, a)
		}
	}
	return out
}

func (f *fake) Attachment(id hcn.GUID) (api.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.attachments[id]
	if !ok {
		return a, api.Errorf(api.KindNotFound, "no attachment has the ID %s", id)
	}
	return a, nil
}

func (f *fake) CheckAttachment(id hcn.GUID) (api.Attachment, error) { return f.Attachment(id) }

func (f *fake) CollectAttachments(ctx context.Context, gc api.AttachmentGC) (gone []hcn.GUID, err error) {
	for _, a := range f.Attachments(gc.Owner) {
		if !slices.Contains(gc.Keep, api.AttachmentKey{Container: a.Container}) {
			gone = append(gone, a.ID)
			err = errors.Join(err, f.Detach(ctx, a.ID))
		}
	}
	return gone, err
}

func (f *fake) DeleteCompartment(ctx context.Context, id hcn.GUID) error {
	f.mu.Lock()
	for ep, doc := range f.endpoints {
		if doc.HostComputeNamespace == id {
			delete(f.endpoints, ep)
		}
	}
	f.mu.Unlock()
	return f.DeleteNamespace(ctx, id)
}

func (f *fake) HCNVersion() hcn.Version { return hcn.Version{Major: 9, Minor: 2} }

func (f *fake) emit(ev api.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ev.Seq = uint64(len(f.ring) + 1)
	f.ring = append(f.ring, ev)
	for ch := range f.readers {
		select {
		case ch <- ev:
		default:
			delete(f.readers, ch)
			close(ch)
		}
	}
}

func (f *fake) LastEvent() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.ring))
}

func (f *fake) Subscribe(ctx context.Context, after uint64) (<-chan api.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.ring[min(after, uint64(len(f.ring))):]
	ch := make(chan api.Event, len(old)+8)
	for _, ev := range old {
		ch <- ev
	}
	f.readers[ch] = true
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.readers[ch] {
			delete(f.readers, ch)
			close(ch)
		}
	})
	return ch, nil
}

func (f *fake) Hosts(context.Context) []api.Host { return []api.Host{{Name: "edge", Ready: true}} }

func (f *fake) Host(_ context.Context, ref string) (api.Host, error) {
	if ref != "edge" {
		return api.Host{}, api.Errorf(api.KindNotFound, "host %q does not exist", ref).Hint("bulkhead host ls")
	}
	return api.Host{Name: "edge", Ready: true}, nil
}

func (f *fake) DialHost(ctx context.Context, ref string) (net.Conn, error) {
	if _, err := f.Host(ctx, ref); err != nil {
		return nil, err
	}
	return f.dial(ctx)
}

func (f *fake) Containers() []api.Container {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []api.Container
	for _, c := range f.containers {
		out = append(out, c)
	}
	return out
}

func (f *fake) Container(ref string) (api.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.Name == ref || strings.HasPrefix(c.ID, ref) && ref != "" {
			return c, nil
		}
	}
	return api.Container{}, api.Errorf(api.KindNotFound, "no container is called %q", ref).Hint("see `bulkhead ps -a`")
}

func (f *fake) CreateContainer(_ context.Context, spec api.ContainerSpec) (api.ContainerCreated, error) {
	if spec.Image == "" {
		return api.ContainerCreated{}, api.Errorf(api.KindInvalid, "image: it is missing")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fmt.Sprintf("%064x", len(f.containers)+0xc0)
	f.containers[id] = api.Container{ID: id, Name: spec.Name, Spec: spec, State: api.ContainerState{Status: api.StatusCreated}}
	return api.ContainerCreated{ID: id, Name: spec.Name, Warnings: []string{"it is a fake"}}, nil
}

func (f *fake) RunContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error) {
	made, err := f.CreateContainer(ctx, spec)
	if err != nil {
		return made, err
	}
	return made, f.StartContainer(ctx, made.ID)
}

// act is any call on a container that only has to be noted.
func (f *fake) act(ref, format string, args ...any) error {
	c, err := f.Container(ref)
	if err == nil {
		f.note(format+" "+c.Name, args...)
	}
	return err
}

func (f *fake) StartContainer(_ context.Context, ref string) error { return f.act(ref, "start") }

func (f *fake) StopContainer(_ context.Context, ref string, how api.StopRequest) error {
	if how.Timeout != nil {
		return f.act(ref, "stop %s %d", how.Signal, *how.Timeout)
	}
	return f.act(ref, "stop")
}

func (f *fake) RestartContainer(_ context.Context, ref string, how api.StopRequest) error {
	return f.act(ref, "restart %s", how.Signal)
}

func (f *fake) IsolateContainer(_ context.Context, ref string, r api.IsolationRequest) (api.IsolationChange, error) {
	return api.IsolationChange{Name: ref, Isolation: r.Isolation, Changed: true, Restarted: true}, f.act(ref, "isolate %s %s", r.Isolation, r.Signal)
}

func (f *fake) KillContainer(_ context.Context, ref, signal string) error {
	return f.act(ref, "kill %s", signal)
}

func (f *fake) PauseContainer(_ context.Context, ref string) error { return f.act(ref, "pause") }

func (f *fake) UnpauseContainer(_ context.Context, ref string) error { return f.act(ref, "unpause") }

func (f *fake) RemoveContainer(_ context.Context, ref string, force bool) error {
	if !force {
		return api.Errorf(api.KindConflict, "container %s runs", ref).Hint("stop it first, or use --force")
	}
	return f.act(ref, "remove force=%t", force)
}

func (f *fake) WaitContainer(ctx context.Context, ref, condition string) (api.WaitResult, error) {
	if err := f.act(ref, "wait %s", condition); err != nil {
		return api.WaitResult{}, err
	}
	select {
	case <-f.exited:
		return api.WaitResult{ExitCode: 3}, nil
	case <-ctx.Done():
		return api.WaitResult{}, ctx.Err()
	}
}

func (f *fake) AttachContainer(ctx context.Context, ref string, s api.Streams) error {
	if _, err := f.Container(ref); err != nil {
		return err
	}
	return f.attach(ctx, s)
}

// ExecContainer is a cat that also tells its window sizes on stderr.
func (f *fake) ExecContainer(_ context.Context, ref string, spec api.ExecSpec, s api.Streams) (int, error) {
	if err := f.act(ref, "exec %q", spec.Args); err != nil {
		return 0, err
	}
	switch spec.Args[0] {
	case "missing":
		return 0, api.Errorf(api.KindInvalid, "run %q: no such file", spec.Args[0]).Hint("look into the image")
	case "late":
		fmt.Fprint(s.Stdout, "x")
		return 0, api.Errorf(api.KindConflict, "it was killed").Hint("start it again")
	case "panic":
		panic("exec")
	}
	if s.Stdin == nil {
		return 7, nil
	}
	if spec.TTY {
		size := <-s.Resize
		fmt.Fprintf(s.Stderr, "%dx%d", size.Rows, size.Cols)
	}
	_, err := io.Copy(s.Stdout, s.Stdin)
	return 5, err
}

func (f *fake) ContainerLogs(ctx context.Context, ref string, o api.LogOptions, each func(api.LogLine) error) error {
	if err := f.act(ref, "logs tail=%d since=%s stdout=%t stderr=%t", o.Tail, o.Since.UTC().Format(time.RFC3339), o.Stdout, o.Stderr); err != nil {
		return err
	}
	for _, l := range []string{"one", "two"} {
		if err := each(api.LogLine{Stream: "stdout", Line: l}); err != nil {
			return err
		}
	}
	if o.Follow {
		<-ctx.Done()
		return ctx.Err()
	}
	if o.Tail == 13 {
		return api.Errorf(api.KindConflict, "the log is broken").Hint("remove it")
	}
	return nil
}

func (f *fake) ContainerStats(_ context.Context, ref string) (api.Stats, error) {
	c, err := f.Container(ref)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return api.Stats{ID: c.ID, Name: c.Name, Pids: f.asked}, err
}

func (f *fake) PublishPorts(_ context.Context, ref string, ports []api.PublishedPort) ([]string, error) {
	return []string{"127.0.0.1:8080->80/tcp"}, f.act(ref, "publish %d", ports[0].ContainerPort)
}

func (f *fake) UnpublishPorts(_ context.Context, ref string, ports []api.PublishedPort) error {
	return f.act(ref, "unpublish %d", ports[0].ContainerPort)
}

func (f *fake) ConnectContainer(_ context.Context, ref string, to api.NetworkAttachment) error {
	return f.act(ref, "connect %s", to.Network)
}

func (f *fake) DisconnectContainer(_ context.Context, ref, network string) error {
	return f.act(ref, "disconnect %s", network)
}

func (f *fake) PullImage(_ context.Context, what api.PullRequest, progress func(api.ImageProgress)) (api.Image, error) {
	if what.Reference == "none" {
		return api.Image{}, api.Errorf(api.KindNotFound, "pull none: the registry has no such image")
	}
	progress(api.ImageProgress{Layer: "a", Phase: "downloading", Current: 1, Total: 2})
	if what.Reference == "broken" {
		return api.Image{}, api.Errorf(api.KindUnavailable, "the registry hung up").Hint("try again")
	}
	progress(api.ImageProgress{Layer: "a", Phase: "done", Current: 2, Total: 2})
	i := api.Image{ID: "sha256:1", Names: []string{what.Reference}}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[what.Reference] = i
	return i, nil
}

func (f *fake) PushImage(_ context.Context, what api.PullRequest, progress func(api.ImageProgress)) error {
	progress(api.ImageProgress{Layer: "a", Phase: "pushing"})
	f.note("push %s", what.Reference)
	return nil
}

func (f *fake) Volumes() ([]api.Volume, error) { return nil, nil }

func (f *fake) RemoveVolume(_ context.Context, name string) error {
	f.note("remove volume %s", name)
	return nil
}

func (f *fake) Login(_ context.Context, what api.LoginRequest) error {
	if what.Auth.Password != "secret" {
		return api.Errorf(api.KindConflict, "log in to %s: the registry refuses", what.Registry)
	}
	f.note("login %s as %s", what.Registry, what.Auth.Username)
	return nil
}

func (f *fake) Logout(_ context.Context, registry string) error {
	f.note("logout %s", registry)
	return nil
}

func (f *fake) ImportImage(_ context.Context, tar io.Reader, reference string, config api.ImageConfig) (api.Image, error) {
	n, err := io.Copy(io.Discard, tar)
	return api.Image{ID: "sha256:2", Names: []string{reference}, Size: n, Config: config}, err
}

func (f *fake) Images() ([]api.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []api.Image
	for _, i := range f.images {
		out = append(out, i)
	}
	return out, nil
}

func (f *fake) Image(ref string) (api.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.images[ref]
	if !ok {
		return i, api.Errorf(api.KindNotFound, "no image is called %q", ref)
	}
	return i, nil
}

func (f *fake) TagImage(_ context.Context, ref, newRef string) error {
	f.note("tag %s %s", ref, newRef)
	return nil
}

func (f *fake) RemoveImage(_ context.Context, ref string, force bool) error {
	f.note("remove image %s force=%t", ref, force)
	return nil
}

func (f *fake) PruneImages(context.Context) ([]string, error) { return nil, nil }

func (f *fake) Addresses() []api.Address {
	return []api.Address{{Address: "172.20.0.1", Kind: "gateway"}}
}

func (f *fake) NICs(context.Context) []api.NIC { return nil }

func (f *fake) Published() []api.Published { return nil }

func (f *fake) Doctor(context.Context) []api.Check {
	return []api.Check{{Name: "kernel", Status: "ok"}}
}

func (f *fake) Info() api.Info { return api.Info{Version: "fake", HCN: f.HCNVersion()} }

func (f *fake) DropLines(ctx context.Context, o api.DropOptions, each func(api.DropLine) error) error {
	f.note("drops %v %v %d %t", o.Endpoints, o.Reasons, o.Tail, o.Follow)
	if slices.Contains(o.Endpoints, "none") {
		return api.Errorf(api.KindNotFound, "no endpoint is called none")
	}
	if err := each(api.DropLine{Drop: &api.Drop{Seq: 1, Reason: "martian"}}); err != nil {
		return err
	}
	if o.Follow {
		<-ctx.Done()
		return ctx.Err()
	}
	return each(api.DropLine{NotShown: 7})
}

func (f *fake) FlowLines(ctx context.Context, o api.FlowOptions, each func(api.FlowLine) error) error {
	f.note("flows %+v", o)
	if slices.Contains(o.Endpoints, "none") {
		return api.Errorf(api.KindNotFound, "nothing is called none")
	}
	if err := each(api.FlowLine{Flow: &api.Flow{Protocol: "tcp", State: api.FlowEstablished}}); err != nil {
		return err
	}
	if o.Follow {
		<-ctx.Done()
		return ctx.Err()
	}
	return each(api.FlowLine{NotShown: 7})
}

func (f *fake) Explain(_ context.Context, o api.ExplainOptions) (api.Explanation, error) {
	f.note("explain %+v", o)
	if o.To == "none" {
		return api.Explanation{}, api.Errorf(api.KindNotFound, "nothing is called none")
	}
	return api.Explanation{From: o.From, To: o.To, Reachable: true}, nil
}

func (f *fake) Rules(ref string) ([]api.EndpointRules, error) {
	if ref == "none" {
		return nil, api.Errorf(api.KindNotFound, "nothing is called none")
	}
	return []api.EndpointRules{{Name: ref}}, nil
}

func (f *fake) Capture(ctx context.Context, o api.CaptureOptions, out engine.CaptureOutput) error {
	f.note("capture %+v", o)
	if o.Target == "none" {
		return api.Errorf(api.KindNotFound, "nothing is called none")
	}
	if _, err := out.Write([]byte("head")); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if o.Target == "broken" {
		return errors.New("it broke")
	}
	<-ctx.Done()
	f.note("capture ends")
	return nil
}

func (f *fake) Routes(q hcn.Filter) []hcn.GUID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listed(f.routes, q.MatchRoute)
}

func (f *fake) Route(id hcn.GUID) (hcn.HostComputeRoute, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.routes[id]
	if !ok {
		return r, hcn.Errorf(hcn.ErrElementNotFound, "no route has the ID %s", id)
	}
	return r, nil
}

func (f *fake) CreateRoute(_ context.Context, id hcn.GUID, doc hcn.HostComputeRoute) (hcn.HostComputeRoute, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	doc.ID = hcn.ChooseID(id, doc.ID, f.newID)
	if err := doc.Validate(); err != nil {
		return doc, err
	}
	f.routes[doc.ID] = doc
	return doc, nil
}

func (f *fake) DeleteRoute(_ context.Context, id hcn.GUID) error {
	if _, err := f.Route(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.routes, id)
	return nil
}

func (f *fake) GuestNetworkServices(q hcn.Filter) []hcn.GUID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listed(f.guests, q.MatchGuestNetworkService)
}

func (f *fake) GuestNetworkService(_ context.Context, id hcn.GUID) (hcn.GuestNetworkService, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, ok := f.guests[id]
	if !ok {
		return g, hcn.Errorf(hcn.ErrElementNotFound, "no guest network service has the ID %s", id)
	}
	return g, nil
}

func (f *fake) CreateGuestNetworkService(_ context.Context, id hcn.GUID, doc hcn.GuestNetworkService) (hcn.GuestNetworkService, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	doc.ID = hcn.ChooseID(id, doc.ID, f.newID)
	if err := doc.Validate(); err != nil {
		return doc, err
	}
	doc.State, doc.Health = hcn.GuestServiceSynchronized, &hcn.Health{Data: []byte(`{"Interfaces":[]}`)}
	f.guests[doc.ID] = doc
	return doc, nil
}

func (f *fake) ModifyGuestNetworkService(ctx context.Context, id hcn.GUID, r *hcn.ModifyGuestServiceSettingRequest) error {
	if _, err := f.GuestNetworkService(ctx, id); err != nil {
		return err
	}
	if err := r.Validate(); err != nil {
		return err
	}
	f.note("synchronize %s", id)
	return nil
}

func (f *fake) DeleteGuestNetworkService(ctx context.Context, id hcn.GUID) error {
	if _, err := f.GuestNetworkService(ctx, id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.guests, id)
	return nil
}

func (f *fake) LoadBalancers(q hcn.Filter) []hcn.GUID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listed(f.balancers, q.MatchLoadBalancer)
}

func (f *fake) LoadBalancer(id hcn.GUID) (hcn.HostComputeLoadBalancer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.balancers[id]
	if !ok {
		return l, hcn.Errorf(hcn.ErrElementNotFound, "no load balancer has the ID %s", id)
	}
	return l, nil
}

func (f *fake) CreateLoadBalancer(_ context.Context, id hcn.GUID, doc hcn.HostComputeLoadBalancer) (hcn.HostComputeLoadBalancer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := doc.Validate(); err != nil {
		return doc, err
	}
	doc.ID = hcn.ChooseID(id, doc.ID, f.newID)
	doc.Defaults()
	f.balancers[doc.ID] = doc
	return doc, nil
}

func (f *fake) ModifyLoadBalancer(_ context.Context, id hcn.GUID, doc hcn.HostComputeLoadBalancer) error {
	if _, err := f.LoadBalancer(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := doc.Validate(); err != nil {
		return err
	}
	doc.ID = id
	doc.Defaults()
	f.balancers[id] = doc
	return nil
}

func (f *fake) DeleteLoadBalancer(_ context.Context, id hcn.GUID) error {
	if _, err := f.LoadBalancer(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.balancers, id)
	return nil
}
