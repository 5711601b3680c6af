package proto

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// The requests.
const (
	OpHello  = "hello"  // Hello → Welcome
	OpNIC    = "nic"    // NIC: an interface is there, or is to be different
	OpNoNIC  = "no-nic" // NIC, its MAC only: it goes
	OpRun    = "run"    // Run: a container
	OpExec   = "exec"   // Exec: a further process in it
	OpStdio  = "stdio"  // Stdio: the stream is one of a process's
	OpSignal = "signal" // Signal
	OpResize = "resize" // Resize
	OpWait   = "wait"   // Process → Exit, when it has ended and its output was carried
	OpDial   = "dial"   // Dial: the stream is a connection
	OpRead   = "read"   // Read → Content: the stream is what is in a file
	OpFiles  = "files"  // Files: those that a container was handed have changed
	OpHalt   = "halt"   // write everything to disks; there is no answer to more than that
	OpNICs   = "nics"   // Look → NICs; the shim answers it, which is on the host
	OpRest   = "rest"   // the VM is about to be saved: the session ends with the answer, and the next begins with Again
)

// Hello is the first request. A VM that was restored has an old clock and entropy that its clones have, too.
type Hello struct {
	Version int    `json:"version"`
	Time    int64  `json:"time"` // nanoseconds since 1970
	Entropy []byte `json:"entropy"`
}

// Welcome answers it.
type Welcome struct {
	Version int    `json:"version"`
	Kernel  string `json:"kernel"`
}

// NIC is an interface of the container's compartment in the guest, recognised by its MAC.
type NIC struct {
	MAC        string      `json:"mac"`
	Name       string      `json:"name"`
	MTU        int         `json:"mtu"`
	Addresses  []Address   `json:"addresses,omitempty"`
	Routes     []Route     `json:"routes,omitempty"`
	Neighbours []Neighbour `json:"neighbours,omitempty"`
}

// Address of a NIC.
type Address struct {
	Prefix netip.Prefix `json:"prefix"`
	// Alone: the kernel is to make no route to its prefix.
	Alone bool `json:"alone,omitempty"`
}

// Route of a NIC. Without a gateway it is on the link.
type Route struct {
	Dst    netip.Prefix `json:"dst"`
	Via    netip.Addr   `json:"via,omitzero"`
	OnLink bool         `json:"onLink,omitempty"`
	Metric int          `json:"metric,omitempty"`
}

// Neighbour is an entry that is never asked for.
type Neighbour struct {
	Addr netip.Addr `json:"addr"`
	MAC  string     `json:"mac"`
}

// Look asks the shim what NICs the guest has taken over.
type Look struct {
	// Sync has the shim look at the compartment anew first, and tell the guest what differs.
	Sync bool `json:"sync,omitempty"`
	// Wait has the answer wait, for LookWait at most, until the number of the newest change is another than After.
	Wait  bool   `json:"wait,omitempty"`
	After uint64 `json:"after,omitempty"`
}

// LookWait bounds the wait.
const LookWait = time.Minute

// NICs answers it.
type NICs struct {
	Seq   uint64      `json:"seq"`
	NICs  []Interface `json:"nics,omitempty"`
	Error string      `json:"error,omitempty"` // why the guest has not all of them
}

// Interface of the guest.
type Interface struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
}

// Size of a terminal.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Run makes a container of an OCI document, whose paths are the guest's. Share is the tag of the file system that they are in; or Root is
// the serial number of the disk with the container's files, which is to be at a place that no other container has. The container has the
// name of its first process.
type Run struct {
	Process string          `json:"process"`
	Share   string          `json:"share,omitempty"`
	Root    string          `json:"root,omitempty"`
	Place   string          `json:"place,omitempty"`
	Files   []File          `json:"files,omitempty"` // that the container is handed, at its place
	Disk    string          `json:"disk,omitempty"`  // the serial number of the disk to mount at agent.DiskDir; "": none
	Spec    json.RawMessage `json:"spec"`
	TTY     bool            `json:"tty,omitempty"`
	Stdin   bool            `json:"stdin,omitempty"`
	Size    Size            `json:"size,omitzero"`
	// Member: the VM goes on when it ends, so nothing of it may stay.
	Member bool `json:"member,omitempty"`
}

// File is one that the host hands over.
type File struct {
	Name string `json:"name"`
	Text []byte `json:"text"`
}

// Files are those of a container, named by its first process. One that the container has changed itself stays as it is.
type Files struct {
	Process string `json:"process"`
	Files   []File `json:"files"`
}

// Exec makes a further process in a container, of the part "process" of such a document.
type Exec struct {
	Process   string          `json:"process"`
	Container string          `json:"container"` // its first process
	Spec      json.RawMessage `json:"spec"`
	TTY       bool            `json:"tty,omitempty"`
	Stdin     bool            `json:"stdin,omitempty"`
	Size      Size            `json:"size,omitzero"`
}

// Stdio names a stream of a process: 0, 1 or 2. That of a terminal's output is 1.
type Stdio struct {
	Process string `json:"process"`
	FD      int    `json:"fd"`
}

// Process names one, by the name that the host gave it.
type Process struct {
	Process string `json:"process"`
}

// Dial names a socket in the file system of the container that a process is the first of, or, with a network as the net package names it,
// an address that the compartment is to send to. The answer to the latter is Dialled, and the stream is that of Packets.
type Dial struct {
	Process string `json:"process"`
	Path    string `json:"path,omitempty"`
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`
	From    uint16 `json:"from,omitempty"` // the port to send from; 0: any
	Wait    int64  `json:"wait,omitempty"` // how long a connection may take, in nanoseconds
}

// Dialled is the address that is sent from, or the number of the kernel's error.
type Dialled struct {
	Local string `json:"local,omitempty"`
	Errno int    `json:"errno,omitempty"`
}

// Read names a file in the file system of the container that a process is the first of.
type Read struct {
	Process string `json:"process"`
	Path    string `json:"path"`
}

// Content says whether there is such a file.
type Content struct {
	Missing bool `json:"missing,omitempty"`
}

// Signal sends one.
type Signal struct {
	Process string `json:"process"`
	Signal  int    `json:"signal"`
	// Tree has it sent to all that descend from the process, too.
	Tree bool `json:"tree,omitempty"`
}

// Resize sets the size of a process's terminal.
type Resize struct {
	Process string `json:"process"`
	Size    Size   `json:"size"`
}

// Exit is how a process ended: its code, or 128 and the signal. OOM: its compartment's memory was not enough.
type Exit struct {
	Code int  `json:"code"`
	OOM  bool `json:"oom,omitempty"`
}

// CheckName refuses a name that would lead out of the directory that it is for.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%.80q is no name of a file", name)
	}
	return nil
}
