package api

// Plan says what a change would do to the kernel.
type Plan struct {
	// Objects that would be touched; empty when the kernel would stay as it is.
	Objects []PlanObject `json:"objects"`
}

// PlanObject is a thing in the kernel with what would become of it.
type PlanObject struct {
	// Object is such as "link eth1", "netns /run/netns/hns-…", "map bh_macs_v1" or "table inet bulkhead".
	Object  string       `json:"object"`
	Changes []PlanChange `json:"changes"`
}

// PlanChange is one thing that would be added, removed or changed.
type PlanChange struct {
	Action string `json:"action"` // "add", "remove" or "change"
	Text   string `json:"text"`
	// For is the network, endpoint or namespace that it is for; absent: the host's own.
	For *PlanOwner `json:"for,omitempty"`
}

// PlanOwner is whom a change is for.
type PlanOwner struct {
	Kind string `json:"kind"` // "network", "endpoint" or "namespace"
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}
