package api

import (
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Event is something that happened, in commit order.
type Event struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Kind is "network", "endpoint", "namespace", "container", "image" or
	// "drift"; Action what happened to it: "create", "delete", "attach",
	// "detach", "start", "die", "oom", "repair", …
	Kind   string `json:"kind"`
	Action string `json:"action"`
	ID     string `json:"id,omitempty"`
	Name   string `json:"name,omitempty"`
	// Attributes say more: "exitCode", "image", "found", …
	Attributes map[string]string `json:"attributes,omitempty"`
	// HCN is set when HCN clients are told of this event too.
	HCN *hcn.Event `json:"-"`
}

// EventKinds are the kinds that there are.
func EventKinds() []string {
	return []string{"container", "network", "endpoint", "namespace", "guestnetworkservice", "image", "drift"}
}

// Address is one row of the address report: who has an address, and since when.
type Address struct {
	Address   string   `json:"address"`
	Network   string   `json:"network"` // name
	NetworkID hcn.GUID `json:"networkId"`
	Kind      string   `json:"kind"` // "gateway", "endpoint", or "remote" for one that another host of the cluster has
	Endpoint  hcn.GUID `json:"endpoint,omitempty"`
	Name      string   `json:"name,omitempty"`
	Container string   `json:"container,omitempty"`
	MAC       string   `json:"mac,omitempty"`
	State     string   `json:"state,omitempty"` // "attached", "reserved", "outside", or "on HOST"
	Owner     string   `json:"owner,omitempty"`
}

// Published is one published port and who can really reach it.
type Published struct {
	Protocol  string   `json:"protocol"`
	Expose    string   `json:"expose"` // "loopback", "lan", "all" or an address
	HostPort  uint16   `json:"hostPort"`
	Target    string   `json:"target"`             // address:port; of a load balancer all of its back ends, with commas between
	Endpoint  hcn.GUID `json:"endpoint,omitempty"` // absent of a load balancer
	Name      string   `json:"name"`
	Container string   `json:"container,omitempty"`
	Active    bool     `json:"active"` // false: reserved for a stopped container
	// LoadBalancer has the port, instead of an endpoint.
	LoadBalancer hcn.GUID `json:"loadBalancer,omitempty"`
}

// Check is one line of the doctor's report.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // "ok", "warn", "fail"
	Detail string `json:"detail,omitempty"`
	Next   string `json:"next,omitempty"` // what to do about it
}

// NIC is a link of the host that is not Bulkhead's.
type NIC struct {
	Name string `json:"name"`
	// ID is the GUID by which an InterfaceConstraint means it: that of its burnt-in MAC, whatever it is called, or
	// without one of its name.
	ID        hcn.GUID `json:"id"`
	Index     int      `json:"index"`
	MAC       string   `json:"mac"`
	MTU       int      `json:"mtu"`
	State     string   `json:"state"` // "up", "down" or "no carrier"
	Addresses []string `json:"addresses,omitempty"`
	// Networks that are on it, by name.
	Networks []string `json:"networks,omitempty"`
	// Problem says why it can carry no network, or only those with one MAC on the wire.
	Problem string `json:"problem,omitempty"`
}

// Info says what the daemon is.
type Info struct {
	Version    string      `json:"version"`
	Commit     string      `json:"commit,omitempty"`
	HCN        hcn.Version `json:"hcn"`
	Kernel     string      `json:"kernel"`
	OS         string      `json:"os"`
	Arch       string      `json:"arch"`
	StateDir   string      `json:"stateDir"`
	Runtime    string      `json:"runtime"`
	Containers int         `json:"containers"`
	Running    int         `json:"running"`
	Networks   int         `json:"networks"`
	Endpoints  int         `json:"endpoints"`
	Images     int         `json:"images"`
	Revision   uint64      `json:"revision"`
	UplinkMTU  int         `json:"uplinkMTU"`
	Uplink     string      `json:"uplink"`
	AttachMode string      `json:"attachMode"` // "tcx" or "clsact"
	CgroupMode string      `json:"cgroupMode"`
}
