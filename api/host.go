package api

// ContainerHost makes a container of its image a host of containers: a VM with every right in itself, in which a daemon of Bulkhead
// runs, with switches of its own. Its endpoints are the uplinks of that.
type ContainerHost struct {
	// Disk is the size in bytes of the disk for the host's images, containers and state, DefaultHostDisk when 0. It takes the space
	// of what is on it.
	Disk int64 `json:"disk,omitempty"`
}

// What a host of containers has that is not told how much of it.
const (
	DefaultHostDisk   = 8 << 30
	DefaultHostMemory = 1 << 30
)

// Host is a host of containers, as far as this daemon knows it, and what the daemon in it says.
type Host struct {
	ID        string   `json:"id"` // the container's
	Name      string   `json:"name"`
	Image     string   `json:"image"`
	State     string   `json:"state"`               // the container's: created, running, exited, …
	Addresses []string `json:"addresses,omitempty"` // of its uplinks, with prefix length
	Disk      int64    `json:"disk"`                // bytes
	// Ready says that its daemon answers; Version and Kernel are what it answers. Problem says why it does not, of one that runs.
	Ready   bool   `json:"ready"`
	Version string `json:"version,omitempty"`
	Kernel  string `json:"kernel,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// HostProtocol names what the connection becomes that asks for a host's API: a connection to its daemon, byte by byte.
const HostProtocol = "bulkhead-host"
