package hcn

import "slices"

// LoadBalancerFlags are options of a load balancer.
type LoadBalancerFlags uint32

// LoadBalancerPortMappingFlags are options of a port of one.
type LoadBalancerPortMappingFlags uint32

// LoadBalancerDistribution says what a back end is chosen by.
type LoadBalancerDistribution uint32

// The options of load balancers.
var (
	LoadBalancerFlagsNone LoadBalancerFlags
	LoadBalancerFlagsDSR  LoadBalancerFlags = 1
	LoadBalancerFlagsIPv6 LoadBalancerFlags = 2

	LoadBalancerPortMappingFlagsNone           LoadBalancerPortMappingFlags
	LoadBalancerPortMappingFlagsILB            LoadBalancerPortMappingFlags = 1
	LoadBalancerPortMappingFlagsLocalRoutedVIP LoadBalancerPortMappingFlags = 2
	LoadBalancerPortMappingFlagsUseMux         LoadBalancerPortMappingFlags = 4
	LoadBalancerPortMappingFlagsPreserveDIP    LoadBalancerPortMappingFlags = 8

	LoadBalancerDistributionNone             LoadBalancerDistribution
	LoadBalancerDistributionSourceIPProtocol LoadBalancerDistribution = 1
	LoadBalancerDistributionSourceIP         LoadBalancerDistribution = 2
)

// LoadBalancerPortMapping is a port of a load balancer.
type LoadBalancerPortMapping struct {
	Protocol         uint32                       `json:",omitempty"`
	InternalPort     uint16                       `json:",omitempty"`
	ExternalPort     uint16                       `json:",omitempty"`
	DistributionType LoadBalancerDistribution     `json:",omitempty"`
	Flags            LoadBalancerPortMappingFlags `json:",omitempty"`
}

// HostComputeLoadBalancer spreads connections over endpoints.
type HostComputeLoadBalancer struct {
	Id                   string                    `json:"ID,omitempty"`
	HostComputeEndpoints []string                  `json:",omitempty"`
	SourceVIP            string                    `json:",omitempty"`
	FrontendVIPs         []string                  `json:",omitempty"`
	PortMappings         []LoadBalancerPortMapping `json:",omitempty"`
	SchemaVersion        SchemaVersion             `json:",omitzero"`
	Flags                LoadBalancerFlags         `json:",omitempty"`
}

const loadBalancers = "loadbalancers"

// ListLoadBalancers shows all load balancers.
func ListLoadBalancers() ([]HostComputeLoadBalancer, error) {
	return ListLoadBalancersQuery(defaultQuery())
}

// ListLoadBalancersQuery shows those that a query selects.
func ListLoadBalancersQuery(query HostComputeQuery) ([]HostComputeLoadBalancer, error) {
	return list[HostComputeLoadBalancer](loadBalancers, query)
}

// GetLoadBalancerByID shows the one with an ID.
func GetLoadBalancerByID(loadBalancerId string) (*HostComputeLoadBalancer, error) {
	return first[HostComputeLoadBalancer](loadBalancers, filtered("ID", loadBalancerId), LoadBalancerNotFoundError{LoadBalancerId: loadBalancerId})
}

// Create makes the load balancer.
func (loadBalancer *HostComputeLoadBalancer) Create() (*HostComputeLoadBalancer, error) {
	return create(loadBalancers, loadBalancer)
}

// Update gives the load balancer with an ID this document. Connections to back ends that stay go on.
func (loadBalancer *HostComputeLoadBalancer) Update(hnsLoadbalancerID string) (*HostComputeLoadBalancer, error) {
	doc := *loadBalancer
	doc.Id = hnsLoadbalancerID
	if err := modify(loadBalancers, hnsLoadbalancerID, &doc); err != nil {
		return nil, err
	}
	return GetLoadBalancerByID(hnsLoadbalancerID)
}

// Delete deletes the load balancer.
func (loadBalancer *HostComputeLoadBalancer) Delete() error {
	return remove(loadBalancers, loadBalancer.Id)
}

// again deletes and creates it with other endpoints, as this API promises.
func (loadBalancer *HostComputeLoadBalancer) again(endpoints []string) (*HostComputeLoadBalancer, error) {
	if err := loadBalancer.Delete(); err != nil {
		return nil, err
	}
	loadBalancer.HostComputeEndpoints = endpoints
	return loadBalancer.Create()
}

// AddEndpoint adds a back end.
func (loadBalancer *HostComputeLoadBalancer) AddEndpoint(endpoint *HostComputeEndpoint) (*HostComputeLoadBalancer, error) {
	return loadBalancer.again(append(slices.Clone(loadBalancer.HostComputeEndpoints), endpoint.Id))
}

// RemoveEndpoint removes a back end.
func (loadBalancer *HostComputeLoadBalancer) RemoveEndpoint(endpoint *HostComputeEndpoint) (*HostComputeLoadBalancer, error) {
	return loadBalancer.again(slices.DeleteFunc(slices.Clone(loadBalancer.HostComputeEndpoints), func(id string) bool { return id == endpoint.Id }))
}

// AddLoadBalancer makes a load balancer of one port.
func AddLoadBalancer(endpoints []HostComputeEndpoint, flags LoadBalancerFlags, portMappingFlags LoadBalancerPortMappingFlags, sourceVIP string, frontendVIPs []string, protocol uint16, internalPort uint16, externalPort uint16) (*HostComputeLoadBalancer, error) {
	lb := &HostComputeLoadBalancer{
		SourceVIP: sourceVIP, FrontendVIPs: frontendVIPs, SchemaVersion: V2SchemaVersion(), Flags: flags,
		PortMappings: []LoadBalancerPortMapping{{Protocol: uint32(protocol), InternalPort: internalPort, ExternalPort: externalPort, Flags: portMappingFlags}},
	}
	for i := range endpoints {
		lb.HostComputeEndpoints = append(lb.HostComputeEndpoints, endpoints[i].Id)
	}
	return lb.Create()
}

// HostComputeRoute is a route of endpoints.
type HostComputeRoute struct {
	ID                   string                  `json:"ID,omitempty"`
	HostComputeEndpoints []string                `json:",omitempty"`
	Setting              []SDNRoutePolicySetting `json:",omitempty"`
	SchemaVersion        SchemaVersion           `json:",omitzero"`
}

const sdnRoutes = "routes"

// ListRoutes shows all SDN routes.
func ListRoutes() ([]HostComputeRoute, error) { return ListRoutesQuery(defaultQuery()) }

// ListRoutesQuery shows those that a query selects.
func ListRoutesQuery(query HostComputeQuery) ([]HostComputeRoute, error) {
	return list[HostComputeRoute](sdnRoutes, query)
}

// GetRouteByID shows the one with an ID.
func GetRouteByID(routeID string) (*HostComputeRoute, error) {
	return first[HostComputeRoute](sdnRoutes, filtered("ID", routeID), RouteNotFoundError{RouteId: routeID})
}

// AddRoute makes a route of endpoints.
func AddRoute(endpoints []HostComputeEndpoint, destinationPrefix string, nextHop string, needEncapsulation bool) (*HostComputeRoute, error) {
	route := &HostComputeRoute{
		SchemaVersion: V2SchemaVersion(),
		Setting:       []SDNRoutePolicySetting{{DestinationPrefix: destinationPrefix, NextHop: nextHop, NeedEncap: needEncapsulation}},
	}
	for i := range endpoints {
		route.HostComputeEndpoints = append(route.HostComputeEndpoints, endpoints[i].Id)
	}
	return route.Create()
}

// Create makes the route.
func (route *HostComputeRoute) Create() (*HostComputeRoute, error) { return create(sdnRoutes, route) }

// changed deletes and creates it with other endpoints, as this API promises.
func (route *HostComputeRoute) changed(endpoints []string) (*HostComputeRoute, error) {
	if err := route.Delete(); err != nil {
		return nil, err
	}
	route.HostComputeEndpoints = endpoints
	return route.Create()
}

// AddEndpoint adds an endpoint that has the route.
func (route *HostComputeRoute) AddEndpoint(endpoint *HostComputeEndpoint) (*HostComputeRoute, error) {
	return route.changed(append(slices.Clone(route.HostComputeEndpoints), endpoint.Id))
}

// RemoveEndpoint takes the route from an endpoint.
func (route *HostComputeRoute) RemoveEndpoint(endpoint *HostComputeEndpoint) (*HostComputeRoute, error) {
	return route.changed(slices.DeleteFunc(slices.Clone(route.HostComputeEndpoints), func(id string) bool { return id == endpoint.Id }))
}

// Delete deletes the route.
func (route *HostComputeRoute) Delete() error { return remove(sdnRoutes, route.ID) }
