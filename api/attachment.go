package api

import "github.com/bulkhead-net/bulkhead/hcn"

// AttachmentSpec asks for a place on a network for a container that another runtime runs.
type AttachmentSpec struct {
	// Owner keeps account of its attachments, and is what they are collected by: "cni/mynet", for example. With the container and
	// the interface it is the attachment's identity: asked for twice, there is one.
	Owner     string `json:"owner"`
	Container string `json:"container"` // the runtime's ID
	// NetworkAttachment says where to. The interface is the one in the container; "" is the first free ethN.
	NetworkAttachment
	// Ranges are sets of addresses: one is taken from each.
	Ranges [][]AddressRange `json:"ranges,omitempty"`
	// Netns is the path of the container's network namespace, as the daemon sees it: one below /run/netns, for example, or
	// /proc/PID/ns/net.
	Netns   string `json:"netns"`
	Runtime string `json:"runtime,omitempty"` // what people know it by: "containerd", "docker"
	// Name is that of the container in the network's resolver, and in what is shown to people.
	Name    string            `json:"name,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Publish []PublishedPort   `json:"publish,omitempty"`
	// PortsHeld says that the runtime binds the published ports on the host itself, once they are published: the daemon sees that
	// they are free, and holds no socket of its own.
	PortsHeld bool `json:"portsHeld,omitempty"`
	// Handover says that the runtime moves the interface into the network namespace itself, and gives it its name, as Docker does. Until then
	// it waits in the host's, by the name that the answer has. Without a Netns the attachment is reserved, or becomes so again; it is
	// completed by asking again with one, and what it is called may change then too.
	Handover bool    `json:"handover,omitempty"`
	DNS      hcn.Dns `json:"dns,omitzero"`
	// Policies are added as they are.
	Policies []hcn.EndpointPolicy `json:"policies,omitempty"`
}

// AddressRange is a piece of a network's subnet. First and Last may be left out: then it begins, or ends, with the subnet.
type AddressRange struct {
	Subnet string `json:"subnet"` // prefix
	First  string `json:"first,omitempty"`
	Last   string `json:"last,omitempty"`
}

// Attachment is a foreign container's place on a network.
type Attachment struct {
	ID        hcn.GUID          `json:"id"` // that of its endpoint
	Owner     string            `json:"owner"`
	Container string            `json:"container"`
	Runtime   string            `json:"runtime,omitempty"`
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Netns     string            `json:"netns"`
	// Namespace is the HCN namespace; empty when the network namespace has vanished.
	Namespace hcn.GUID          `json:"namespace,omitempty"`
	Endpoint  ContainerEndpoint `json:"endpoint"`
	// HostInterface is the switch's side of the vNIC, MTU that of both.
	HostInterface string            `json:"hostInterface,omitempty"`
	MTU           int               `json:"mtu,omitempty"` // bytes
	Routes        []AttachmentRoute `json:"routes,omitempty"`
	// DNS is what the container's resolv.conf should say.
	DNS hcn.Dns `json:"dns,omitzero"`
}

// AttachmentRoute is one of a container's, beside those of its addresses' own prefixes.
type AttachmentRoute struct {
	Destination string `json:"destination"`       // prefix
	Gateway     string `json:"gateway,omitempty"` // address
}

// AttachmentKey names an attachment among its owner's.
type AttachmentKey struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
}

// ID of the attachment.
func (k AttachmentKey) ID(owner string) hcn.GUID {
	return hcn.DerivedGUID("attachment", owner, k.Container, k.Interface)
}

// AttachmentGC removes an owner's attachments but for those that are kept.
type AttachmentGC struct {
	Owner string          `json:"owner"`
	Keep  []AttachmentKey `json:"keep"`
}
