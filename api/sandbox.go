package api

import (
	"io"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// SandboxConfig is everything a sandbox needs to make a container: the spec
// with every choice made, resolved against image and network. It never needs to
// ask back.
type SandboxConfig struct {
	ID   string
	Name string
	Spec ContainerSpec
	// Image is the image's configuration; Layers its unpacked layers, topmost
	// first, as overlayfs wants them in lowerdir.
	Image  ImageConfig
	Layers []string
	// GuestKernel is the unpacked image of the kernel that a VM is to have; "": the one that is installed.
	GuestKernel string
	// VMOf is the container in whose VM it is to be, with its compartment; "": with VM isolation it has one of its own.
	VMOf string
	// NetnsPath of the compartment.
	NetnsPath string
	// Hosts, ResolvConf and Hostname are the container's private /etc/hosts,
	// /etc/resolv.conf and /etc/hostname.
	Hosts      string
	ResolvConf string
	Hostname   string
}

// SandboxState is what a sandbox knows of a container.
type SandboxState struct {
	Status    string // StatusCreated, StatusRunning, StatusExited; "" = unknown to the sandbox
	PID       int
	ExitCode  int
	OOMKilled bool
	// Paused says of a running one that its processes are frozen.
	Paused bool
	// Error says why it ended where the exit code does not.
	Error    string
	Started  time.Time
	Finished time.Time
	// VMFiles is as in ContainerState.
	VMFiles string
}

// SandboxExit reports that a container's first process ended.
type SandboxExit struct {
	ID string
}

// Streams connect a client with a process. Nil streams are closed or discarded.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize carries window sizes of the client's terminal.
	Resize <-chan WindowSize
	// DetachKeys end an attach without ending the process; nil: none.
	DetachKeys []byte
	// Wait attaches to a container that has ended too, for a start to come.
	Wait bool
	// Attached is called once when the daemon has taken the streams over, so that
	// a client can start a container only then; nil: nobody asks.
	Attached func()
}

// WindowSize of a terminal, in characters.
type WindowSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// VirtualMachineID is the ID, in HCN, of the VM that a container with VM isolation has.
func VirtualMachineID(container string) hcn.GUID {
	return hcn.DerivedGUID("virtual machine", container)
}

// GuestNICsRequest asks what a container's VM has been given.
type GuestNICsRequest struct {
	// Sync has the compartment looked at anew first, and the guest told of all that differs.
	Sync bool
	// Wait has the answer wait, for a while, until the number of the newest change is another than After.
	Wait  bool
	After uint64
}

// MostGuestNICs is how many NICs a VM can have.
const MostGuestNICs = 8

// GuestNICs are the NICs that a VM's guest has taken over. Seq numbers the changes of a run of the VM; Error says why the guest does not
// have all that it is to have.
type GuestNICs struct {
	Seq   uint64
	NICs  []GuestNIC
	Error string
}

// GuestNIC is one of them.
type GuestNIC struct {
	Name string
	MAC  string // in lower case, with colons
}
