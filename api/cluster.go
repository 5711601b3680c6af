package api

import (
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// ClusterHostSpec is how a host describes itself to a cluster.
type ClusterHostSpec struct {
	// Name is the host's own when empty.
	Name string `json:"name,omitempty"`
	// Addresses where tunnels to the host end, at most one of each family; those of the NIC of the default route when empty.
	Addresses []string `json:"addresses,omitempty"`
	// Port is the first of three that a member of etcd needs, up to 65533; 2389 when 0. Without a member it is refused.
	Port uint16 `json:"port,omitempty"`
}

// ClusterInit begins a cluster with an etcd of its own.
type ClusterInit struct {
	ClusterHostSpec
	// Prefix of the keys in etcd; /bulkhead when empty.
	Prefix string `json:"prefix,omitempty"`
}

// ClusterJoin gets a host into a cluster: with a token, or by the user's own etcd.
type ClusterJoin struct {
	ClusterHostSpec
	Token string `json:"token,omitempty"`
	// Member asks to run a member of the cluster's etcd.
	Member bool         `json:"member,omitempty"`
	Etcd   *ClusterEtcd `json:"etcd,omitempty"`
}

// ClusterEtcd is an etcd of the user's own. The files are read by the daemon.
type ClusterEtcd struct {
	Endpoints []string `json:"endpoints"`
	Prefix    string   `json:"prefix,omitempty"`
	CACert    string   `json:"cacert"`
	Cert      string   `json:"cert"`
	Key       string   `json:"key"`
}

// ClusterJoined says what came of it.
type ClusterJoined struct {
	Cluster hcn.GUID `json:"cluster"`
	Host    hcn.GUID `json:"host"`
	// Founded: there was no cluster before.
	Founded bool `json:"founded,omitempty"`
	// Token lets others join, for a day.
	Token string `json:"token,omitempty"`
}

// ClusterLeave takes the host out of its cluster.
type ClusterLeave struct {
	Force bool `json:"force,omitempty"`
}

// ClusterTokenRequest asks for a token.
type ClusterTokenRequest struct {
	// ValidFor is a duration such as 2h; a day when empty.
	ValidFor string `json:"validFor,omitempty"`
}

// ClusterToken lets hosts join.
type ClusterToken struct {
	Token string `json:"token"`
}

// ClusterKeys says which keys the hosts encrypt with.
type ClusterKeys struct {
	// Generation counts how often they were changed.
	Generation uint32 `json:"generation"`
}

// Cluster is this host's part in a cluster, and the cluster as it is seen from here.
type Cluster struct {
	Joined    bool      `json:"joined"`
	ID        hcn.GUID  `json:"id,omitempty"`
	Host      hcn.GUID  `json:"host,omitempty"`
	Name      string    `json:"name,omitempty"`
	Addresses []string  `json:"addresses,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Connected bool      `json:"connected"`
	Problem   string    `json:"problem,omitempty"`
	Revision  int64     `json:"revision,omitempty"`
	Prefix    string    `json:"prefix,omitempty"`
	OwnEtcd   bool      `json:"ownEtcd,omitempty"`
	Expires   time.Time `json:"certificateExpires,omitzero"`
	// Encryption is what encrypts on this host, kernel or user-space; empty while it has no encrypted network.
	Encryption string           `json:"encryption,omitempty"`
	Etcd       []ClusterMember  `json:"etcd,omitempty"`
	Hosts      []ClusterHost    `json:"hosts,omitempty"`
	Networks   []ClusterNetwork `json:"networks,omitempty"`
	// LoadBalancers are those of all hosts that hold.
	LoadBalancers []ClusterBalancer `json:"loadBalancers,omitempty"`
	// Problems are keys in etcd that do not count, and what of this host is not published or not taken up, with the reasons.
	Problems []ClusterProblem `json:"problems,omitempty"`
}

// ClusterMember is a member of etcd.
type ClusterMember struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Version string `json:"version,omitempty"`
	Leader  bool   `json:"leader,omitempty"`
	Bytes   int64  `json:"bytes,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// ClusterHost is a host of the cluster.
type ClusterHost struct {
	ID        hcn.GUID `json:"id"`
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Version   string   `json:"version,omitempty"`
	Alive     bool     `json:"alive"`
	Member    bool     `json:"member,omitempty"`
	Self      bool     `json:"self,omitempty"`
	Endpoints int      `json:"endpoints"`
	Blocks    int      `json:"blocks"`
	// Keys are the generations of its keys for encrypted networks: two while they are changed.
	Keys []uint32 `json:"keys,omitempty"`
	// Encrypted is what passes between that host and this one inside WireGuard, while both have a device for it.
	Encrypted *ClusterEncrypted `json:"encrypted,omitempty"`
}

// ClusterEncrypted is what two hosts sent each other inside WireGuard since their devices were made, in bytes on the wire.
type ClusterEncrypted struct {
	Handshake time.Time `json:"lastHandshake,omitzero"`
	Received  uint64    `json:"receivedBytes"`
	Sent      uint64    `json:"sentBytes"`
}

// ClusterNetwork is a network of the cluster.
type ClusterNetwork struct {
	ID        hcn.GUID `json:"id"`
	Name      string   `json:"name"`
	VNI       uint32   `json:"vni"`
	Subnets   []string `json:"subnets"`
	Endpoints int      `json:"endpoints"`
	Blocks    int      `json:"blocks"`
	Encrypted bool     `json:"encrypted,omitempty"`
	Problem   string   `json:"problem,omitempty"`
}

// ClusterBalancer is a load balancer of a network of the cluster, and whose it is.
type ClusterBalancer struct {
	ID      hcn.GUID `json:"id"`
	Name    string   `json:"name,omitempty"`
	Network hcn.GUID `json:"network"`
	Host    hcn.GUID `json:"host"`
	// Services are what clients ask for, such as 10.96.0.10:80/tcp.
	Services  []string `json:"services"`
	Endpoints int      `json:"endpoints"`
}

// ClusterProblem is something that is left out.
type ClusterProblem struct {
	Object string `json:"object"`
	Reason string `json:"reason"`
}

// ClusterCheckRequest asks for a check of the network between hosts.
type ClusterCheckRequest struct {
	// Hosts by name or ID, beside this one; all that are alive when empty.
	Hosts []string `json:"hosts,omitempty"`
}

// ClusterCheck is what the network between the hosts of a cluster does with the packets of tunnels.
type ClusterCheck struct {
	// OK: nothing is broken. A path that carries less than the NIC at its begin breaks nothing: the networks' MTU is that much smaller.
	OK    bool               `json:"ok"`
	Hosts []ClusterCheckHost `json:"hosts"`
	Paths []ClusterPath      `json:"paths"`
}

// ClusterCheckHost is a host that was checked.
type ClusterCheckHost struct {
	ID   hcn.GUID `json:"id"`
	Name string   `json:"name"`
	// NICMTU is that of the NIC by which tunnels leave, NetworkMTU that of the cluster's networks there as it is now; 0: not known.
	NIC        string                `json:"nic,omitempty"`
	NICMTU     int                   `json:"nicMTU,omitempty"`
	NetworkMTU int                   `json:"networkMTU,omitempty"`
	Problems   []ClusterCheckProblem `json:"problems,omitempty"`
}

// ClusterPath is the way from one host to another.
type ClusterPath struct {
	From        string `json:"from"`
	To          string `json:"to"`
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`
	Port        uint16 `json:"port"`
	// Arrives: packets like those of tunnels do.
	Arrives bool `json:"arrives"`
	// Bytes are the largest packet that arrived, with its IP header; 0: not known. MTU is that of the NIC at the begin.
	Bytes    int                   `json:"bytes,omitempty"`
	MTU      int                   `json:"mtu,omitempty"`
	Note     string                `json:"note,omitempty"`
	Problems []ClusterCheckProblem `json:"problems,omitempty"`
}

// ClusterCheckProblem is something that is broken, and what to do about it.
type ClusterCheckProblem struct {
	Reason string `json:"reason"`
	Next   string `json:"next,omitempty"`
}
