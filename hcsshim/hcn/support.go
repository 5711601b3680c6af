package hcn

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/bulkhead-net/bulkhead/client"
	document "github.com/bulkhead-net/bulkhead/hcn"
)

// Globals are what the service says of itself.
type Globals struct {
	Version Version `json:"Version"`
}

// Version of the service.
type Version struct {
	Major int `json:"Major"`
	Minor int `json:"Minor"`
}

// VersionRange is one, both ends included.
type VersionRange struct {
	MinVersion Version
	MaxVersion Version
}

// VersionRanges are those that have a feature.
type VersionRanges []VersionRange

func from(major, minor int) VersionRange {
	return VersionRange{Version{major, minor}, Version{math.MaxInt32, math.MaxInt32}}
}

func within(major, minor int) VersionRange {
	return VersionRange{Version{major, minor}, Version{major, math.MaxInt32}}
}

// The versions that have each feature.
var (
	HNSVersion1803                  = VersionRanges{from(7, 2)}
	V2ApiSupport                    = VersionRanges{from(9, 2)}
	RemoteSubnetVersion             = VersionRanges{from(9, 2)}
	HostRouteVersion                = VersionRanges{from(9, 2)}
	DSRVersion                      = VersionRanges{within(9, 3), from(10, 2)}
	Slash32EndpointPrefixesVersion  = VersionRanges{within(9, 3), from(10, 4)}
	AclSupportForProtocol252Version = VersionRanges{from(11, 0)}
	SessionAffinityVersion          = VersionRanges{from(12, 0)}
	IPv6DualStackVersion            = VersionRanges{from(11, 10)}
	SetPolicyVersion                = VersionRanges{from(13, 0)}
	VxlanPortVersion                = VersionRanges{from(10, 3)}
	L4ProxyPolicyVersion            = VersionRanges{within(9, 5), within(10, 5), within(11, 11), within(12, 1), from(13, 1)}
	L4WfpProxyPolicyVersion         = VersionRanges{from(13, 2)}
	TierAclPolicyVersion            = VersionRanges{from(14, 0)}
	NetworkACLPolicyVersion         = VersionRanges{from(15, 0)}
	NestedIpSetVersion              = VersionRanges{from(15, 0)}
	DisableHostPortVersion          = VersionRanges{from(15, 1)}
	ModifyLoadbalancerVersion       = VersionRanges{from(15, 4)}
	AccelnetVersion                 = VersionRanges{from(15, 4)}
)

func (v Version) before(o Version) bool {
	return v.Major < o.Major || v.Major == o.Major && v.Minor < o.Minor
}

func (r VersionRanges) has(v Version) bool {
	for _, one := range r {
		if !v.before(one.MinVersion) && !one.MaxVersion.before(v) {
			return true
		}
	}
	return false
}

// GetGlobals asks the service for its version.
func GetGlobals() (*Globals, error) {
	c, err := claimed()
	if err != nil {
		return nil, err
	}
	return &Globals{Version: c.Version}, nil
}

// claim is what the service says of itself: a version, and features of later ones that it has as well.
type claim struct {
	Version
	Features []string
}

func claimed() (c claim, err error) {
	err = with("hnsCall", func(ctx context.Context, client *client.Client) error {
		raw, err := client.HNS(ctx, "GET", "/globals/version", nil)
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &c)
	})
	return c, err
}

// AclFeatures are what rules can say.
type AclFeatures struct {
	AclAddressLists       bool `json:"AclAddressLists"`
	AclNoHostRulePriority bool `json:"AclHostRulePriority"`
	AclPortRanges         bool `json:"AclPortRanges"`
	AclRuleId             bool `json:"AclRuleId"`
}

// ApiSupport are the versions of the API.
type ApiSupport struct {
	V1 bool `json:"V1"`
	V2 bool `json:"V2"`
}

// SupportedFeatures are those of the service.
type SupportedFeatures struct {
	Acl                      AclFeatures `json:"ACL"`
	Api                      ApiSupport  `json:"API"`
	RemoteSubnet             bool        `json:"RemoteSubnet"`
	HostRoute                bool        `json:"HostRoute"`
	DSR                      bool        `json:"DSR"`
	Slash32EndpointPrefixes  bool        `json:"Slash32EndpointPrefixes"`
	AclSupportForProtocol252 bool        `json:"AclSupportForProtocol252"`
	SessionAffinity          bool        `json:"SessionAffinity"`
	IPv6DualStack            bool        `json:"IPv6DualStack"`
	SetPolicy                bool        `json:"SetPolicy"`
	VxlanPort                bool        `json:"VxlanPort"`
	L4Proxy                  bool        `json:"L4Proxy"`
	L4WfpProxy               bool        `json:"L4WfpProxy"`
	TierAcl                  bool        `json:"TierAcl"`
	NetworkACL               bool        `json:"NetworkACL"`
	NestedIpSet              bool        `json:"NestedIpSet"`
	DisableHostPort          bool        `json:"DisableHostPort"`
	ModifyLoadbalancer       bool        `json:"ModifyLoadbalancer"`
	Accelnet                 bool        `json:"Accelnet"`
}

func featuresOf(c claim) SupportedFeatures {
	v := c.Version
	acl := HNSVersion1803.has(v)
	return SupportedFeatures{
		Acl:          AclFeatures{acl, acl, acl, acl},
		Api:          ApiSupport{V1: true, V2: V2ApiSupport.has(v)},
		RemoteSubnet: RemoteSubnetVersion.has(v), HostRoute: HostRouteVersion.has(v), DSR: DSRVersion.has(v),
		Slash32EndpointPrefixes: Slash32EndpointPrefixesVersion.has(v), AclSupportForProtocol252: AclSupportForProtocol252Version.has(v),
		SessionAffinity: SessionAffinityVersion.has(v), IPv6DualStack: IPv6DualStackVersion.has(v), SetPolicy: SetPolicyVersion.has(v),
		VxlanPort: VxlanPortVersion.has(v), L4Proxy: L4ProxyPolicyVersion.has(v), L4WfpProxy: L4WfpProxyPolicyVersion.has(v),
		TierAcl: TierAclPolicyVersion.has(v), NetworkACL: NetworkACLPolicyVersion.has(v), NestedIpSet: NestedIpSetVersion.has(v),
		DisableHostPort: DisableHostPortVersion.has(v), ModifyLoadbalancer: ModifyLoadbalancerVersion.has(v) || slices.Contains(c.Features, document.FeatureModifyLoadbalancer), Accelnet: AccelnetVersion.has(v),
	}
}

// GetSupportedFeatures asks for the features of the service. Without an answer it has none.
func GetSupportedFeatures() SupportedFeatures {
	c, err := claimed()
	if err != nil {
		return SupportedFeatures{}
	}
	return featuresOf(c)
}

var cached = sync.OnceValues(func() (SupportedFeatures, error) { //nolint:gochecknoglobals // what this API promises
	c, err := claimed()
	if err != nil {
		return SupportedFeatures{}, err
	}
	return featuresOf(c), nil
})

// GetCachedSupportedFeatures asks once.
func GetCachedSupportedFeatures() (SupportedFeatures, error) { return cached() }

func supported(what string, has func(SupportedFeatures) bool) error {
	f, err := GetCachedSupportedFeatures()
	if err != nil {
		return err
	}
	if !has(f) {
		return platformDoesNotSupportError(what)
	}
	return nil
}

func platformDoesNotSupportError(feature string) error {
	return fmt.Errorf("platform does not support feature %s", feature)
}

// V2ApiSupported fails if the service has no version 2 of the API; those that follow do so for other features.
func V2ApiSupported() error {
	return supported("V2Api/Schema", func(f SupportedFeatures) bool { return f.Api.V2 })
}

// RemoteSubnetSupported is about the policy RemoteSubnetRoute.
func RemoteSubnetSupported() error {
	return supported("Remote Subnet", func(f SupportedFeatures) bool { return f.RemoteSubnet })
}

// HostRouteSupported is about the policy HostRoute.
func HostRouteSupported() error {
	return supported("Host Route", func(f SupportedFeatures) bool { return f.HostRoute })
}

// DSRSupported is about direct server return.
func DSRSupported() error {
	return supported("Direct Server Return (DSR)", func(f SupportedFeatures) bool { return f.DSR })
}

// Slash32EndpointPrefixesSupported is about endpoints with a /32.
func Slash32EndpointPrefixesSupported() error {
	return supported("Slash32 endpoint prefixes", func(f SupportedFeatures) bool { return f.Slash32EndpointPrefixes })
}

// AclSupportForProtocol252Supported is about rules for what is encapsulated.
func AclSupportForProtocol252Supported() error {
	return supported("AclSupportForProtocol252", func(f SupportedFeatures) bool { return f.AclSupportForProtocol252 })
}

// SessionAffinitySupported is about clients that stay with a back end.
func SessionAffinitySupported() error {
	return supported("Session Affinity", func(f SupportedFeatures) bool { return f.SessionAffinity })
}

// IPv6DualStackSupported is about load balancers in both families.
func IPv6DualStackSupported() error {
	return supported("IPv6 DualStack", func(f SupportedFeatures) bool { return f.IPv6DualStack })
}

// SetPolicySupported is about address sets.
func SetPolicySupported() error {
	return supported("SetPolicy", func(f SupportedFeatures) bool { return f.SetPolicy })
}

// VxlanPortSupported is about the policy VxlanPort.
func VxlanPortSupported() error {
	return supported("VXLAN port configuration", func(f SupportedFeatures) bool { return f.VxlanPort })
}

// L4proxyPolicySupported is about proxies of networks.
func L4proxyPolicySupported() error {
	return supported("L4ProxyPolicy", func(f SupportedFeatures) bool { return f.L4Proxy })
}

// L4WfpProxyPolicySupported is about side-cars.
func L4WfpProxyPolicySupported() error {
	return supported("L4WfpProxyPolicy", func(f SupportedFeatures) bool { return f.L4WfpProxy })
}

// TierAclPolicySupported is about tiers of rules.
func TierAclPolicySupported() error {
	return supported("TierAcl", func(f SupportedFeatures) bool { return f.TierAcl })
}

// NetworkACLPolicySupported is about rules of networks.
func NetworkACLPolicySupported() error {
	return supported("NetworkACL", func(f SupportedFeatures) bool { return f.NetworkACL })
}

// NestedIpSetSupported is about sets of sets.
func NestedIpSetSupported() error {
	return supported("NestedIpSet", func(f SupportedFeatures) bool { return f.NestedIpSet })
}

// DisableHostPortSupported is about networks without the host.
func DisableHostPortSupported() error {
	return supported("DisableHostPort", func(f SupportedFeatures) bool { return f.DisableHostPort })
}

// ModifyLoadbalancerSupported is about changing load balancers in place.
func ModifyLoadbalancerSupported() error {
	return supported("ModifyLoadbalancer", func(f SupportedFeatures) bool { return f.ModifyLoadbalancer })
}

// AccelnetSupported is about accelerated NICs.
func AccelnetSupported() error {
	return supported("Accelnet", func(f SupportedFeatures) bool { return f.Accelnet })
}
