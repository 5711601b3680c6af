package server

import (
	"encoding/json"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// What a query with the Detailed flag gets beside the document.

// networkHealth tells the switch, and which of the network's addresses are taken.
func (s *Server) networkHealth(doc *hcn.HostComputeNetwork) *hcn.Health {
	taken := []api.Address{}
	for _, a := range s.backend.Addresses() {
		if a.NetworkID == doc.ID {
			taken = append(taken, a)
		}
	}
	return &hcn.Health{Extra: &hcn.ExtraHealth{
		SwitchGuid: string(doc.SwitchGUID()), Resources: settings(map[string]any{"Addresses": taken}),
	}}
}

// endpointHealth tells the switch, and the containers that use the endpoint.
func (s *Server) endpointHealth(doc *hcn.HostComputeEndpoint) *hcn.Health {
	extra := &hcn.ExtraHealth{SwitchGuid: string(doc.HostComputeNetwork)}
	if n, err := s.backend.Network(doc.HostComputeNetwork); err == nil {
		extra.SwitchGuid = string(n.SwitchGUID())
	}
	if ns, err := s.backend.Namespace(doc.HostComputeNamespace); err == nil {
		extra.SharedContainers = containerList(ns)
		s.machines(ns.Containers(), extra)
	}
	// Clients that plug a VM's NIC in look for its port here.
	var port struct{ SwitchId, SwitchPortId string }
	if json.Unmarshal(doc.AdditionalParams, &port) == nil && port.SwitchPortId != "" {
		extra.Resources = settings(map[string]any{"Allocators": []map[string]string{{"SwitchId": port.SwitchId, "EndpointPortGuid": port.SwitchPortId}}})
	}
	return &hcn.Health{Extra: extra}
}

func containerList(ns hcn.HostComputeNamespace) json.RawMessage {
	return settings(list(ns.Containers()))
}
