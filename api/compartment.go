package api

import "github.com/bulkhead-net/bulkhead/hcn"

// Compartment is a namespace with the endpoints in it, which come and go in one
// step: nobody has to remember half of it.
type Compartment struct {
	Namespace hcn.HostComputeNamespace  `json:"namespace"`
	Endpoints []hcn.HostComputeEndpoint `json:"endpoints"`
}
