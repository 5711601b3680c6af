package hcn

// ErrorCode is an HRESULT: facility 0x3B for the codes of the HCN error table, facility 7 for Win32 codes that clients know.
type ErrorCode uint32

// Codes of the HCN error table.
const (
	ErrNetworkNotFound                   ErrorCode = 0x803B0001
	ErrEndpointNotFound                  ErrorCode = 0x803B0002
	ErrLayerNotFound                     ErrorCode = 0x803B0003
	ErrSwitchNotFound                    ErrorCode = 0x803B0004
	ErrSubnetNotFound                    ErrorCode = 0x803B0005
	ErrAdapterNotFound                   ErrorCode = 0x803B0006
	ErrPortNotFound                      ErrorCode = 0x803B0007
	ErrPolicyNotFound                    ErrorCode = 0x803B0008
	ErrVFPPortSettingNotFound            ErrorCode = 0x803B0009
	ErrInvalidNetwork                    ErrorCode = 0x803B000A
	ErrInvalidNetworkType                ErrorCode = 0x803B000B
	ErrInvalidEndpoint                   ErrorCode = 0x803B000C
	ErrInvalidPolicy                     ErrorCode = 0x803B000D
	ErrInvalidPolicyType                 ErrorCode = 0x803B000E
	ErrInvalidRemoteEndpointOperation    ErrorCode = 0x803B000F
	ErrNetworkAlreadyExists              ErrorCode = 0x803B0010
	ErrLayerAlreadyExists                ErrorCode = 0x803B0011
	ErrPolicyAlreadyExists               ErrorCode = 0x803B0012
	ErrPortAlreadyExists                 ErrorCode = 0x803B0013
	ErrEndpointAlreadyAttached           ErrorCode = 0x803B0014
	ErrRequestUnsupported                ErrorCode = 0x803B0015
	ErrMappingNotSupported               ErrorCode = 0x803B0016
	ErrDegradedOperation                 ErrorCode = 0x803B0017
	ErrSharedSwitchModification          ErrorCode = 0x803B0018
	ErrGUIDConversionFailure             ErrorCode = 0x803B0019
	ErrRegKeyFailure                     ErrorCode = 0x803B001A
	ErrInvalidJSON                       ErrorCode = 0x803B001B
	ErrInvalidJSONReference              ErrorCode = 0x803B001C
	ErrEndpointSharingDisabled           ErrorCode = 0x803B001D
	ErrInvalidIP                         ErrorCode = 0x803B001E
	ErrSwitchExtensionNotFound           ErrorCode = 0x803B001F
	ErrManagerStopped                    ErrorCode = 0x803B0020
	ErrModuleNotFound                    ErrorCode = 0x803B0021
	ErrNoRequestHandlers                 ErrorCode = 0x803B0022
	ErrGuestRequestUnsupported           ErrorCode = 0x803B0023
	ErrRuntimeKeysFailed                 ErrorCode = 0x803B0024
	ErrNetAdapterTimeout                 ErrorCode = 0x803B0025
	ErrNetAdapterNotFound                ErrorCode = 0x803B0026
	ErrNetCompartmentNotFound            ErrorCode = 0x803B0027
	ErrNetInterfaceNotFound              ErrorCode = 0x803B0028
	ErrDefaultNamespaceExists            ErrorCode = 0x803B0029
	ErrICSDisabled                       ErrorCode = 0x803B002A
	ErrEndpointNamespaceAlreadyExists    ErrorCode = 0x803B002B
	ErrEntityHasReferences               ErrorCode = 0x803B002C
	ErrInvalidInternalPort               ErrorCode = 0x803B002D
	ErrNamespaceAttachFailed             ErrorCode = 0x803B002E
	ErrAddrInvalidOrReserved             ErrorCode = 0x803B002F
	ErrInvalidPrefix                     ErrorCode = 0x803B0030
	ErrObjectUsedAfterUnload             ErrorCode = 0x803B0031
	ErrInvalidSubnet                     ErrorCode = 0x803B0032
	ErrInvalidIPSubnet                   ErrorCode = 0x803B0033
	ErrEndpointNotAttached               ErrorCode = 0x803B0034
	ErrEndpointNotLocal                  ErrorCode = 0x803B0035
	ErrInterfaceParametersAlreadyApplied ErrorCode = 0x803B0036
	ErrVFPNotAllowed                     ErrorCode = 0x803B0037
)

// Codes outside the table that clients of HCN test for. Clients fold 0x8007xxxx to its low word.
const (
	ErrElementNotFound     ErrorCode = 0x80070490
	ErrObjectAlreadyExists ErrorCode = 0x80071392
	ErrFileExists          ErrorCode = 0x800700B7
	ErrNotImplemented      ErrorCode = 0x80004001
	ErrInvalidParameter    ErrorCode = 0x80070057
	ErrOutOfMemory         ErrorCode = 0x8007000E
	ErrUnspecified         ErrorCode = 0x80004005
	ErrSystemNotFound      ErrorCode = 0xC037010E
)

// errorTable gives each code the name and the text that clients search for. Texts end with a full stop.
var errorTable = map[ErrorCode]struct{ name, text string }{
	ErrNetworkNotFound:                   {"HCN_E_NETWORK_NOT_FOUND", "The network was not found."},
	ErrEndpointNotFound:                  {"HCN_E_ENDPOINT_NOT_FOUND", "The endpoint was not found."},
	ErrLayerNotFound:                     {"HCN_E_LAYER_NOT_FOUND", "The network's underlying layer was not found."},
	ErrSwitchNotFound:                    {"HCN_E_SWITCH_NOT_FOUND", "The virtual switch was not found."},
	ErrSubnetNotFound:                    {"HCN_E_SUBNET_NOT_FOUND", "The network does not have a subnet for this endpoint."},
	ErrAdapterNotFound:                   {"HCN_E_ADAPTER_NOT_FOUND", "An adapter was not found."},
	ErrPortNotFound:                      {"HCN_E_PORT_NOT_FOUND", "The switch-port was not found."},
	ErrPolicyNotFound:                    {"HCN_E_POLICY_NOT_FOUND", "An expected policy was not found."},
	ErrVFPPortSettingNotFound:            {"HCN_E_VFP_PORTSETTING_NOT_FOUND", "A required VFP port setting was not found."},
	ErrInvalidNetwork:                    {"HCN_E_INVALID_NETWORK", "The provided network configuration is invalid or missing parameters."},
	ErrInvalidNetworkType:                {"HCN_E_INVALID_NETWORK_TYPE", "Invalid network type."},
	ErrInvalidEndpoint:                   {"HCN_E_INVALID_ENDPOINT", "The provided endpoint configuration is invalid or missing parameters."},
	ErrInvalidPolicy:                     {"HCN_E_INVALID_POLICY", "The provided policy configuration is invalid or missing parameters."},
	ErrInvalidPolicyType:                 {"HCN_E_INVALID_POLICY_TYPE", "Invalid policy type."},
	ErrInvalidRemoteEndpointOperation:    {"HCN_E_INVALID_REMOTE_ENDPOINT_OPERATION", "This requested operation is invalid for a remote endpoint."},
	ErrNetworkAlreadyExists:              {"HCN_E_NETWORK_ALREADY_EXISTS", "A network with this name already exists."},
	ErrLayerAlreadyExists:                {"HCN_E_LAYER_ALREADY_EXISTS", "A network with this name already exists."},
	ErrPolicyAlreadyExists:               {"HCN_E_POLICY_ALREADY_EXISTS", "Policy information already exists on this object."},
	ErrPortAlreadyExists:                 {"HCN_E_PORT_ALREADY_EXISTS", "The specified port already exists."},
	ErrEndpointAlreadyAttached:           {"HCN_E_ENDPOINT_ALREADY_ATTACHED", "This endpoint is already attached to the switch."},
	ErrRequestUnsupported:                {"HCN_E_REQUEST_UNSUPPORTED", "The specified request is unsupported."},
	ErrMappingNotSupported:               {"HCN_E_MAPPING_NOT_SUPPORTED", "Port mapping is not supported on the given network."},
	ErrDegradedOperation:                 {"HCN_E_DEGRADED_OPERATION", "There was an operation attempted on a degraded object."},
	ErrSharedSwitchModification:          {"HCN_E_SHARED_SWITCH_MODIFICATION", "Cannot modify a switch shared by multiple networks."},
	ErrGUIDConversionFailure:             {"HCN_E_GUID_CONVERSION_FAILURE", "Failed to interpret a parameter as a GUID."},
	ErrRegKeyFailure:                     {"HCN_E_REGKEY_FAILURE", "Failed to process registry key."},
	ErrInvalidJSON:                       {"HCN_E_INVALID_JSON", "Invalid JSON document string."},
	ErrInvalidJSONReference:              {"HCN_E_INVALID_JSON_REFERENCE", "The reference is invalid in the JSON document."},
	ErrEndpointSharingDisabled:           {"HCN_E_ENDPOINT_SHARING_DISABLED", "Endpoint sharing is disabled."},
	ErrInvalidIP:                         {"HCN_E_INVALID_IP", "IP address is either invalid or not part of any configured subnet(s)."},
	ErrSwitchExtensionNotFound:           {"HCN_E_SWITCH_EXTENSION_NOT_FOUND", "The specified switch extension does not exist on this switch."},
	ErrManagerStopped:                    {"HCN_E_MANAGER_STOPPED", "Operation cannot be performed while service is stopping."},
	ErrModuleNotFound:                    {"GCN_E_MODULE_NOT_FOUND", "Operation cannot be performed while service module not found."},
	ErrNoRequestHandlers:                 {"GCN_E_NO_REQUEST_HANDLERS", "Request Handlers not present to handle the JSON request."},
	ErrGuestRequestUnsupported:           {"GCN_E_REQUEST_UNSUPPORTED", "The specified request is unsupported."},
	ErrRuntimeKeysFailed:                 {"GCN_E_RUNTIMEKEYS_FAILED", "Add runtime keys to container failed."},
	ErrNetAdapterTimeout:                 {"GCN_E_NETADAPTER_TIMEOUT", "Timeout while waiting for network adapter with the given instance id."},
	ErrNetAdapterNotFound:                {"GCN_E_NETADAPTER_NOT_FOUND", "Network adapter not found for the given instance id."},
	ErrNetCompartmentNotFound:            {"GCN_E_NETCOMPARTMENT_NOT_FOUND", "Network compartment not found for the given id."},
	ErrNetInterfaceNotFound:              {"GCN_E_NETINTERFACE_NOT_FOUND", "Network interface not found for the given id."},
	ErrDefaultNamespaceExists:            {"GCN_E_DEFAULTNAMESPACE_EXISTS", "Default Namespace already exists."},
	ErrICSDisabled:                       {"HCN_E_ICS_DISABLED", "Internet Connection Sharing service (SharedAccess) is disabled and cannot be started."},
	ErrEndpointNamespaceAlreadyExists:    {"HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS", "This requested operation is invalid as endpoint is already part of a network namespace."},
	ErrEntityHasReferences:               {"HCN_E_ENTITY_HAS_REFERENCES", "The specified entity cannot be removed while it still has references."},
	ErrInvalidInternalPort:               {"HCN_E_INVALID_INTERNAL_PORT", "The internal port must exist and cannot be zero."},
	ErrNamespaceAttachFailed:             {"HCN_E_NAMESPACE_ATTACH_FAILED", "The requested operation for attach namespace failed."},
	ErrAddrInvalidOrReserved:             {"HCN_E_ADDR_INVALID_OR_RESERVED", "An address provided is invalid or reserved."},
	ErrInvalidPrefix:                     {"HCN_E_INVALID_PREFIX", "The prefix provided is invalid."},
	ErrObjectUsedAfterUnload:             {"HCN_E_OBJECT_USED_AFTER_UNLOAD", "A call was performed against an object that was torn down."},
	ErrInvalidSubnet:                     {"HCN_E_INVALID_SUBNET", "The provided subnet configuration is invalid or missing parameters."},
	ErrInvalidIPSubnet:                   {"HCN_E_INVALID_IP_SUBNET", "The provided IP subnet configuration is invalid or missing parameters."},
	ErrEndpointNotAttached:               {"HCN_E_ENDPOINT_NOT_ATTACHED", "The endpoint must be attached to complete the operation."},
	ErrEndpointNotLocal:                  {"HCN_E_ENDPOINT_NOT_LOCAL", "The endpoint must be local to complete the operation."},
	ErrInterfaceParametersAlreadyApplied: {"HCN_INTERFACEPARAMETERS_ALREADY_APPLIED", "Cannot apply more than one InterfaceParameters policy."},
	ErrVFPNotAllowed:                     {"HCN_E_VFP_NOT_ALLOWED", "A network of this type can not be created because VFP is not available."},
	ErrElementNotFound:                   {"ERROR_NOT_FOUND", "Element not found."},
	ErrObjectAlreadyExists:               {"ERROR_OBJECT_ALREADY_EXISTS", "The object already exists."},
	ErrFileExists:                        {"ERROR_ALREADY_EXISTS", "Cannot create a file when that file already exists."},
	ErrNotImplemented:                    {"E_NOTIMPL", "Not implemented."},
	ErrInvalidParameter:                  {"E_INVALIDARG", "The parameter is incorrect."},
	ErrOutOfMemory:                       {"E_OUTOFMEMORY", "Not enough memory resources are available to complete this operation."},
	ErrUnspecified:                       {"E_FAIL", "Unspecified error."},
	ErrSystemNotFound:                    {"HCS_E_SYSTEM_NOT_FOUND", "A virtual machine or container with the specified identifier does not exist."},
}

// ErrorCodes lists every code this package knows, in no order.
func ErrorCodes() []ErrorCode {
	codes := make([]ErrorCode, 0, len(errorTable))
	for c := range errorTable {
		codes = append(codes, c)
	}
	return codes
}
