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

// Unconfirmed is a network that waits to be confirmed.
type Unconfirmed struct {
	Network hcn.GUID  `json:"network"`
	Name    string    `json:"name"`
	NIC     string    `json:"nic"`
	By      time.Time `json:"by"`
}
