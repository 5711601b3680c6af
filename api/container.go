package api

import (
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// ContainerSpec is what a user asks for.
type ContainerSpec struct {
	// Name is unique among containers; the daemon makes one when it is empty.
	// It is also the name by which the network's resolver knows the container.
	Name  string `json:"name,omitempty"`
	Image string `json:"image"`
	// Isolation is "process" (the default), or "vm". Process isolation shares the host's
	// kernel and is no security boundary against hostile code. With "vm" the container
	// has a kernel of its own, in a utility VM.
	Isolation string `json:"isolation,omitempty"`
	// GuestKernel is the image of the kernel that the VM is to have. When it is empty, the kernel that is installed on
	// the host is taken if it is what Image demands, or else the newest kernel among the images that is.
	GuestKernel string `json:"guestKernel,omitempty"`
	// Host makes it a host of containers, in a VM. Isolation and Privileged need not be said then.
	Host *ContainerHost `json:"host,omitempty"`

	Hostname   string   `json:"hostname,omitempty"`
	User       string   `json:"user,omitempty"`       // user[:group], names or numbers
	WorkingDir string   `json:"workingDir,omitempty"` // absolute
	Entrypoint []string `json:"entrypoint,omitempty"` // replaces the image's
	Args       []string `json:"args,omitempty"`       // replaces the image's Cmd
	// Env entries are NAME=VALUE, over the image's.
	Env         []string          `json:"env,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`

	TTY       bool `json:"tty,omitempty"`
	OpenStdin bool `json:"openStdin,omitempty"`

	ReadOnly bool    `json:"readOnly,omitempty"` // root file system
	Mounts   []Mount `json:"mounts,omitempty"`

	Resources Resources `json:"resources,omitzero"`
	Ulimits   []Ulimit  `json:"ulimits,omitempty"`

	Sysctls map[string]string `json:"sysctls,omitempty"` // namespaced ones only
	// CapAdd and CapDrop change the default capability set; names with or
	// without CAP_, or ALL.
	CapAdd     []string `json:"capAdd,omitempty"`
	CapDrop    []string `json:"capDrop,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
	// Seccomp is "" for the default profile, "unconfined", or a profile as JSON.
	Seccomp         string `json:"seccomp,omitempty"`
	NoNewPrivileges bool   `json:"noNewPrivileges,omitempty"`

	Restart     RestartPolicy `json:"restart,omitzero"`
	AutoRemove  bool          `json:"autoRemove,omitempty"`
	StopSignal  string        `json:"stopSignal,omitempty"`
	StopTimeout *int          `json:"stopTimeout,omitempty"` // seconds; 10 when nil

	// NetworkMode is "" (the Networks below, or the default network), "none",
	// "container:ID" to share another container's compartment, or "namespace:ID" for
	// a VM whose compartment is that namespace of HCN, of type Guest.
	NetworkMode string              `json:"networkMode,omitempty"`
	Networks    []NetworkAttachment `json:"networks,omitempty"`
	Publish     []PublishedPort     `json:"publish,omitempty"`
	ExtraHosts  []HostEntry         `json:"extraHosts,omitempty"`
	DNS         hcn.Dns             `json:"dns,omitzero"`
}

// Mount puts a file system into the container.
type Mount struct {
	Type     string   `json:"type"`             // "bind", "volume" or "tmpfs"
	Source   string   `json:"source,omitempty"` // host path, or volume name
	Target   string   `json:"target"`           // absolute path in the container
	ReadOnly bool     `json:"readOnly,omitempty"`
	Options  []string `json:"options,omitempty"` // further mount options, such as "size=64m" or "rshared"
}

// Resources are limits of a container's cgroup; zero means none.
type Resources struct {
	CPUs       float64 `json:"cpus,omitempty"` // 1.5 = one and a half processors
	CPUShares  uint64  `json:"cpuShares,omitempty"`
	CPUSet     string  `json:"cpuSet,omitempty"`
	Memory     int64   `json:"memory,omitempty"`
	MemorySwap int64   `json:"memorySwap,omitempty"` // memory plus swap; -1 unlimited
	Pids       int64   `json:"pids,omitempty"`
}

// Ulimit is a resource limit of the container's first process.
type Ulimit struct {
	Name string `json:"name"` // "nofile", …
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// RestartPolicy says when a container that ended is started again.
type RestartPolicy struct {
	// Name is "no" (the default), "on-failure", "always" or "unless-stopped".
	Name       string `json:"name,omitempty"`
	MaxRetries int    `json:"maxRetries,omitempty"` // with on-failure; 0 = no limit
}

// NetworkAttachment joins a container to a network.
type NetworkAttachment struct {
	Network         string   `json:"network"` // name or GUID
	Addresses       []string `json:"addresses,omitempty"`
	MAC             string   `json:"mac,omitempty"`
	Aliases         []string `json:"aliases,omitempty"`
	Interface       string   `json:"interface,omitempty"` // "eth0", …
	GatewayPriority int      `json:"gatewayPriority,omitempty"`
	// Isolated endpoints exchange nothing with other endpoints of the network (HCN:
	// DisableInterComputeCommunication).
	Isolated bool `json:"isolated,omitempty"`
	// DNSFirst has the network's name servers asked before those of the container's other
	// networks (HCN: OverrideDNSServerOrder).
	DNSFirst bool `json:"dnsFirst,omitempty"`
	// RateOut and RateIn are what the container may send and receive on the network, in bytes per
	// second (HCN: QOS); 0 is no bound.
	RateOut uint64 `json:"rateOut,omitempty"`
	RateIn  uint64 `json:"rateIn,omitempty"`
}

// PublishedPort publishes ports of the host to the container.
type PublishedPort struct {
	Protocol string `json:"protocol,omitempty"` // "tcp" (the default) or "udp"
	// Expose is "loopback" (the default: 127.0.0.1 and ::1), "lan" (every
	// address of the host but loopback), "all", or one address.
	Expose        string `json:"expose,omitempty"`
	HostPort      uint16 `json:"hostPort,omitempty"` // 0: the daemon picks one
	ContainerPort uint16 `json:"containerPort"`
	Count         uint16 `json:"count,omitempty"` // consecutive ports; 0 means 1
}

// HostEntry is a line of the container's /etc/hosts. Address may be
// "host-gateway", the host as the container's network sees it.
type HostEntry struct {
	Address string   `json:"address"`
	Names   []string `json:"names"`
}

// The statuses of a container.
const (
	StatusCreated    = "created"
	StatusStarting   = "starting"
	StatusRunning    = "running"
	StatusStopping   = "stopping"
	StatusExited     = "exited"
	StatusRestarting = "restarting"
	StatusRemoving   = "removing"
	StatusFailed     = "failed" // could not be started; State.Error says why
)

// Container is a container as the daemon shows it.
type Container struct {
	ID      string        `json:"id"` // 64 hexadecimal digits
	Name    string        `json:"name"`
	Created time.Time     `json:"created"`
	Spec    ContainerSpec `json:"spec"`
	ImageID string        `json:"imageId"` // digest of the manifest it was made from
	// GuestKernelID is the digest of the manifest of its kernel's image, "" for the kernel that is installed.
	GuestKernelID string `json:"guestKernelId,omitempty"`
	// Runtime is that of a container which another one runs, "" for ours. Of such a container is known what its runtime told, and
	// where it is attached.
	Runtime string         `json:"runtime,omitempty"`
	State   ContainerState `json:"state"`
	// VirtualMachineID is what HCN calls the VM that it runs in, "" with process isolation.
	VirtualMachineID hcn.GUID `json:"virtualMachineId,omitempty"`
	// Namespace is the HCN namespace, Endpoints the endpoints that this container
	// brought along, and those that clients of HCN put into the namespace.
	Namespace hcn.GUID            `json:"namespace,omitempty"`
	Endpoints []ContainerEndpoint `json:"endpoints,omitempty"`
}

// ContainerState says how a container is doing.
type ContainerState struct {
	Status    string `json:"status"`
	PID       int    `json:"pid,omitempty"`
	ExitCode  int    `json:"exitCode"`
	OOMKilled bool   `json:"oomKilled,omitempty"`
	// Paused says of a running container that its processes are frozen.
	Paused       bool       `json:"paused,omitempty"`
	Error        string     `json:"error,omitempty"`
	Started      *time.Time `json:"started,omitempty"`
	Finished     *time.Time `json:"finished,omitempty"`
	RestartCount int        `json:"restartCount,omitempty"`
	// VMFiles is how its VM has its files: by "virtiofs", or on a "disk" of the container's own. Empty without VM isolation.
	VMFiles string `json:"vmFiles,omitempty"`
}

// ContainerEndpoint sums up an endpoint for people.
type ContainerEndpoint struct {
	ID        hcn.GUID `json:"id"`
	Network   string   `json:"network"` // name
	Interface string   `json:"interface"`
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"` // with prefix length
	Gateways  []string `json:"gateways,omitempty"`
	Ports     []string `json:"ports,omitempty"` // "127.0.0.1:8080->80/tcp"
	// Undone says why the endpoint was detached again, to keep the host reachable; it then has no addresses until a user attaches it.
	Undone string `json:"undone,omitempty"`
	// Leases are shown of a single container whose LAN gives it its addresses.
	Leases []Lease `json:"leases,omitempty"`
}

// Lease is what a LAN gave an endpoint, or is asked for.
type Lease struct {
	Source string `json:"source"` // "dhcpv4", "dhcpv6" or "router"
	// State is "asking", "probing", "rebooting", "bound", "renewing", "rebinding" or "waiting"; "kept" for that of a stopped
	// container.
	State     string     `json:"state"`
	Addresses []string   `json:"addresses,omitempty"` // with prefix length
	Server    string     `json:"server,omitempty"`    // or router
	Renews    *time.Time `json:"renews,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`
	Problem   string     `json:"problem,omitempty"`
	// OtherServers answered as well, and were not taken.
	OtherServers []string `json:"otherServers,omitempty"`
}

// ContainerCreated answers a create.
type ContainerCreated struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Warnings []string `json:"warnings,omitempty"`
}

// StopRequest ends a container: Signal (the spec's, or SIGTERM), and SIGKILL
// after Timeout seconds (the spec's when nil).
// Halt has it end as the host's shutdown ends it: its restart policy holds, and
// starts it again when the daemon starts next.
type StopRequest struct {
	Signal  string `json:"signal,omitempty"`
	Timeout *int   `json:"timeout,omitempty"`
	Halt    bool   `json:"halt,omitempty"`
}

// IsolationRequest changes a container's isolation. One that runs is stopped, with Signal and Timeout as in StopRequest, and
// started again.
type IsolationRequest struct {
	Isolation string `json:"isolation"` // "process" or "vm"
	// GuestKernel is as in ContainerSpec, for "vm". Given to a container that has VM isolation already, it changes the kernel.
	GuestKernel string `json:"guestKernel,omitempty"`
	Signal      string `json:"signal,omitempty"`
	Timeout     *int   `json:"timeout,omitempty"`
}

// IsolationChange is what became of the request.
type IsolationChange struct {
	Name      string `json:"name"`
	Isolation string `json:"isolation"`
	// Changed is false of a container that had this isolation already.
	Changed bool `json:"changed"`
	// Restarted says that the container ran, and was stopped and started again.
	Restarted bool     `json:"restarted"`
	Warnings  []string `json:"warnings,omitempty"`
}

// WaitResult is how a container ended.
type WaitResult struct {
	ExitCode int    `json:"exitCode"`
	Error    string `json:"error,omitempty"`
}

// ExecSpec runs a further process in a running container.
type ExecSpec struct {
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"`
	User       string   `json:"user,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	OpenStdin  bool     `json:"openStdin,omitempty"`
	Detach     bool     `json:"detach,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
}

// LogOptions choose what of a container's output is read.
type LogOptions struct {
	Follow bool
	Tail   int // lines from the end; negative: all
	Since  time.Time
	Until  time.Time
	Stdout bool
	Stderr bool
}

// LogLine is a line (or a part of a long one) that a container wrote.
type LogLine struct {
	Time    time.Time `json:"time"`
	Stream  string    `json:"stream"` // "stdout" or "stderr"
	Line    string    `json:"line"`
	Partial bool      `json:"partial,omitempty"` // no newline follows
}

// Stats are a container's use of resources at one moment.
type Stats struct {
	ID          string         `json:"id"`
	Name        string         `json:"name"`
	Time        time.Time      `json:"time"`
	CPUNanos    uint64         `json:"cpuNanos"` // processor time used so far
	MemoryUsage uint64         `json:"memoryUsage"`
	MemoryLimit uint64         `json:"memoryLimit"` // 0: none
	Pids        uint64         `json:"pids"`
	PidsLimit   uint64         `json:"pidsLimit"`
	BlockRead   uint64         `json:"blockRead"`
	BlockWrite  uint64         `json:"blockWrite"`
	Networks    []NetworkStats `json:"networks,omitempty"`
}

// NetworkStats are the counters of one endpoint, seen from the container.
type NetworkStats struct {
	Endpoint        hcn.GUID          `json:"endpoint"`
	Interface       string            `json:"interface"`
	BytesReceived   uint64            `json:"bytesReceived"`
	BytesSent       uint64            `json:"bytesSent"`
	PacketsReceived uint64            `json:"packetsReceived"`
	PacketsSent     uint64            `json:"packetsSent"`
	DroppedIncoming uint64            `json:"droppedIncoming"`
	DroppedOutgoing uint64            `json:"droppedOutgoing"`
	DropReasons     map[string]uint64 `json:"dropReasons,omitempty"`
}
