package server

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
)

// Backend does what the API asks for. It is the engine; tests put a state in memory in its place. Errors are *hcn.Error or
// *api.Error, wrapped or not.
type Backend interface {
	networks
	endpoints
	namespaces
	sdnRoutes
	loadBalancers
	guestNetworkServices
	attachments
	containers
	hosts
	images
	volumes
	reports
	plans
	events
}

// plans say what a change would do: one of the calls above, made with the context given to change.
type plans interface {
	Plan(ctx context.Context, change func(ctx context.Context) error) (api.Plan, error)
}

type networks interface {
	Networks(f hcn.Filter) []hcn.GUID
	Network(id hcn.GUID) (hcn.HostComputeNetwork, error)
	CreateNetwork(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error)
	ModifyNetwork(ctx context.Context, id hcn.GUID, r *hcn.ModifyNetworkSettingRequest) error
	DeleteNetwork(ctx context.Context, id hcn.GUID) error
	// CreateNetworkFor makes a network that is undone unless Confirm is called for it within a time. Tentatively does so with the attachment of
	// another call, made with the context given to change, which is called twice.
	CreateNetworkFor(ctx context.Context, doc hcn.HostComputeNetwork, within time.Duration) (api.Tentative, error)
	Confirm(ctx context.Context, ref string) error
	Tentatively(ctx context.Context, within time.Duration, change func(ctx context.Context) error) error
	Unconfirmed() []api.Unconfirmed
}

type endpoints interface {
	Endpoints(f hcn.Filter) []hcn.GUID
	Endpoint(id hcn.GUID) (hcn.HostComputeEndpoint, error)
	CreateEndpoint(ctx context.Context, id, network hcn.GUID, doc hcn.HostComputeEndpoint) (hcn.HostComputeEndpoint, error)
	ModifyEndpoint(ctx context.Context, id hcn.GUID, r *hcn.ModifyEndpointSettingRequest) error
	DeleteEndpoint(ctx context.Context, id hcn.GUID) error
	EndpointStats(id hcn.GUID) (api.NetworkStats, error)
}

type namespaces interface {
	Namespaces(f hcn.Filter) []hcn.GUID
	Namespace(id hcn.GUID) (hcn.HostComputeNamespace, error)
	// HostNamespace is the host's default namespace. One that nobody has created goes with the last that is in it.
	HostNamespace(ctx context.Context) (hcn.GUID, error)
	CreateNamespace(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNamespace) (hcn.HostComputeNamespace, error)
	ModifyNamespace(ctx context.Context, id hcn.GUID, r *hcn.ModifyNamespaceSettingRequest) error
	DeleteNamespace(ctx context.Context, id hcn.GUID) error
	CreateCompartment(ctx context.Context, c api.Compartment) (api.Compartment, error)
	DeleteCompartment(ctx context.Context, id hcn.GUID) error
}

type sdnRoutes interface {
	Routes(f hcn.Filter) []hcn.GUID
	Route(id hcn.GUID) (hcn.HostComputeRoute, error)
	CreateRoute(ctx context.Context, id hcn.GUID, doc hcn.HostComputeRoute) (hcn.HostComputeRoute, error)
	DeleteRoute(ctx context.Context, id hcn.GUID) error
}

type loadBalancers interface {
	LoadBalancers(f hcn.Filter) []hcn.GUID
	LoadBalancer(id hcn.GUID) (hcn.HostComputeLoadBalancer, error)
	CreateLoadBalancer(ctx context.Context, id hcn.GUID, doc hcn.HostComputeLoadBalancer) (hcn.HostComputeLoadBalancer, error)
	// ModifyLoadBalancer takes the whole document.
	ModifyLoadBalancer(ctx context.Context, id hcn.GUID, doc hcn.HostComputeLoadBalancer) error
	DeleteLoadBalancer(ctx context.Context, id hcn.GUID) error
}

// guestNetworkServices are the agents of VMs.
type guestNetworkServices interface {
	GuestNetworkServices(f hcn.Filter) []hcn.GUID
	GuestNetworkService(ctx context.Context, id hcn.GUID) (hcn.GuestNetworkService, error)
	CreateGuestNetworkService(ctx context.Context, id hcn.GUID, doc hcn.GuestNetworkService) (hcn.GuestNetworkService, error)
	ModifyGuestNetworkService(ctx context.Context, id hcn.GUID, r *hcn.ModifyGuestServiceSettingRequest) error
	DeleteGuestNetworkService(ctx context.Context, id hcn.GUID) error
}

// attachments are the containers of other runtimes, each by the ID of its endpoint.
type attachments interface {
	Attach(ctx context.Context, s api.AttachmentSpec) (api.Attachment, error)
	Detach(ctx context.Context, id hcn.GUID) error
	Attachments(owner string) []api.Attachment
	Attachment(id hcn.GUID) (api.Attachment, error)
	CheckAttachment(id hcn.GUID) (api.Attachment, error)
	CollectAttachments(ctx context.Context, gc api.AttachmentGC) ([]hcn.GUID, error)
}

// containers take a container by its ID, a unique beginning of it, or its name.
type containers interface {
	CreateContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error)
	RunContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error)
	Containers() []api.Container
	Container(ref string) (api.Container, error)
	StartContainer(ctx context.Context, ref string) error
	StopContainer(ctx context.Context, ref string, how api.StopRequest) error
	RestartContainer(ctx context.Context, ref string, how api.StopRequest) error
	IsolateContainer(ctx context.Context, ref string, r api.IsolationRequest) (api.IsolationChange, error)
	KillContainer(ctx context.Context, ref, signal string) error
	PauseContainer(ctx context.Context, ref string) error
	UnpauseContainer(ctx context.Context, ref string) error
	RemoveContainer(ctx context.Context, ref string, force bool) error
	WaitContainer(ctx context.Context, ref, condition string) (api.WaitResult, error)
	AttachContainer(ctx context.Context, ref string, streams api.Streams) error
	ExecContainer(ctx context.Context, ref string, spec api.ExecSpec, streams api.Streams) (int, error)
	ContainerLogs(ctx context.Context, ref string, options api.LogOptions, each func(api.LogLine) error) error
	ContainerStats(ctx context.Context, ref string) (api.Stats, error)
	PublishPorts(ctx context.Context, ref string, ports []api.PublishedPort) ([]string, error)
	UnpublishPorts(ctx context.Context, ref string, ports []api.PublishedPort) error
	ConnectContainer(ctx context.Context, ref string, to api.NetworkAttachment) error
	DisconnectContainer(ctx context.Context, ref, network string) error
}

// hosts are containers that are hosts of containers, and go by what containers go by.
type hosts interface {
	Hosts(ctx context.Context) []api.Host
	Host(ctx context.Context, ref string) (api.Host, error)
	// DialHost connects with the daemon in one.
	DialHost(ctx context.Context, ref string) (net.Conn, error)
}

type volumes interface {
	Volumes() ([]api.Volume, error)
	RemoveVolume(ctx context.Context, name string) error
}

type images interface {
	PullImage(ctx context.Context, what api.PullRequest, progress func(api.ImageProgress)) (api.Image, error)
	PushImage(ctx context.Context, what api.PullRequest, progress func(api.ImageProgress)) error
	ImportImage(ctx context.Context, tar io.Reader, reference string, config api.ImageConfig) (api.Image, error)
	Images() ([]api.Image, error)
	Image(ref string) (api.Image, error)
	TagImage(ctx context.Context, ref, newRef string) error
	RemoveImage(ctx context.Context, ref string, force bool) error
	PruneImages(ctx context.Context) ([]string, error)
	Login(ctx context.Context, what api.LoginRequest) error
	Logout(ctx context.Context, registry string) error
}

type reports interface {
	Addresses() []api.Address
	NICs(ctx context.Context) []api.NIC
	Published() []api.Published
	Doctor(ctx context.Context) []api.Check
	Info() api.Info
	HCNVersion() hcn.Version
	// Capture writes pcapng; it ends without an error when ctx does.
	Capture(ctx context.Context, o api.CaptureOptions, out engine.CaptureOutput) error
	// FlowLines does as DropLines does.
	FlowLines(ctx context.Context, o api.FlowOptions, each func(api.FlowLine) error) error
	Explain(ctx context.Context, o api.ExplainOptions) (api.Explanation, error)
	// Rules takes a container or an endpoint by name or ID.
	Rules(ref string) ([]api.EndpointRules, error)
	// DropLines ends with ctx's error when it follows and ctx ends.
	DropLines(ctx context.Context, o api.DropOptions, each func(api.DropLine) error) error
}

// events are numbered in the order of their commits. Subscribe gives those after a number, as far as they are kept, and then
// what happens; its channel is closed when ctx ends or its reader is too slow.
type events interface {
	Subscribe(ctx context.Context, after uint64) (<-chan api.Event, error)
	LastEvent() uint64
}
