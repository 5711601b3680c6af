package api

import (
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TentativeNetwork asks for a network on a NIC that is undone again unless it is confirmed in time.
type TentativeNetwork struct {
	Network hcn.HostComputeNetwork `json:"network"`
	// ConfirmWithin is such as 2m30s.
	ConfirmWithin string `json:"confirmWithin"`
}

// Tentative is what was made.
type Tentative struct {
	Network   hcn.HostComputeNetwork `json:"network"`
	ConfirmBy time.Time              `json:"confirmBy"`
}

// Unconfirmed is what waits to be confirmed: a network, or an endpoint that was attached to one.
type Unconfirmed struct {
	Network hcn.GUID `json:"network"`
	// Endpoint is empty for a network; Name is that of the one that waits.
	Endpoint hcn.GUID  `json:"endpoint,omitempty"`
	Name     string    `json:"name"`
	NIC      string    `json:"nic"`
	By       time.Time `json:"by"`
}
