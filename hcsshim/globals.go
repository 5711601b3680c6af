package hcsshim

// HNSGlobals are what the service says of itself.
type HNSGlobals struct {
	Version HNSVersion `json:"Version"`
}

// HNSVersion is the version of the service.
type HNSVersion struct {
	Major int `json:"Major"`
	Minor int `json:"Minor"`
}

// HNSVersion1803 is the first one with the features below.
var HNSVersion1803 = HNSVersion{Major: 7, Minor: 2}

// GetHNSGlobals asks the service for its version.
func GetHNSGlobals() (*HNSGlobals, error) {
	v, err := answered[HNSVersion]("GET", "/globals/version", "")
	if err != nil {
		return nil, err
	}
	return &HNSGlobals{Version: *v}, nil
}

// HNSSupportedFeatures are features by the service's version.
type HNSSupportedFeatures struct {
	Acl HNSAclFeatures `json:"ACL"`
}

// HNSAclFeatures are those of rules.
type HNSAclFeatures struct {
	AclAddressLists       bool `json:"AclAddressLists"`
	AclNoHostRulePriority bool `json:"AclHostRulePriority"`
	AclPortRanges         bool `json:"AclPortRanges"`
	AclRuleId             bool `json:"AclRuleId"`
}

// GetHNSSupportedFeatures tells which features the service has: none if it cannot be asked.
func GetHNSSupportedFeatures() HNSSupportedFeatures {
	g, err := GetHNSGlobals()
	if err != nil {
		return HNSSupportedFeatures{}
	}
	has := g.Version.Major > HNSVersion1803.Major || g.Version.Major == HNSVersion1803.Major && g.Version.Minor >= HNSVersion1803.Minor
	return HNSSupportedFeatures{Acl: HNSAclFeatures{AclAddressLists: has, AclNoHostRulePriority: has, AclPortRanges: has, AclRuleId: has}}
}

// HNSNnvManagementMacAddress is a MAC of the management of accelerated networking.
type HNSNnvManagementMacAddress struct {
	MacAddress string `json:",omitempty"`
}

// HNSNnvManagementMacList is a list of them. The daemon has no such networking, and refuses what is asked of it with "not implemented".
type HNSNnvManagementMacList struct {
	MacAddressList []HNSNnvManagementMacAddress `json:",omitempty"`
}

// Set sends the list to the service.
func (nnvManagementMacList *HNSNnvManagementMacList) Set() (*HNSNnvManagementMacList, error) {
	text, err := encoded(nnvManagementMacList)
	if err != nil {
		return nil, err
	}
	return answered[HNSNnvManagementMacList]("POST", "/accelnet/", text)
}

// SetNnvManagementMacAddresses sends a list of MACs to the service.
func SetNnvManagementMacAddresses(managementMacAddresses []string) (*HNSNnvManagementMacList, error) {
	if len(managementMacAddresses) == 0 {
		return nil, ErrorEmptyMacAddressList
	}
	list := &HNSNnvManagementMacList{}
	for _, mac := range managementMacAddresses {
		list.MacAddressList = append(list.MacAddressList, HNSNnvManagementMacAddress{MacAddress: mac})
	}
	return list.Set()
}

// GetNnvManagementMacAddresses asks the service for the list.
func GetNnvManagementMacAddresses() (*HNSNnvManagementMacList, error) {
	return answered[HNSNnvManagementMacList]("GET", "/accelnet/", "")
}

// DeleteNnvManagementMacAddresses has the service forget the list.
func DeleteNnvManagementMacAddresses() (*HNSNnvManagementMacList, error) {
	return answered[HNSNnvManagementMacList]("DELETE", "/accelnet/", "")
}
