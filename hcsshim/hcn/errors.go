package hcn

import (
	"errors"
	"fmt"
	"strings"

	document "github.com/bulkhead-net/bulkhead/hcn"
)

// ErrorCode is the code of an error, as Windows numbers it.
type ErrorCode uint32

// The codes that users of this API look for.
const (
	ERROR_NOT_FOUND                = ErrorCode(document.ErrElementNotFound & 0xFFFF)
	HCN_E_NETWORK_NOT_FOUND        = ErrorCode(document.ErrNetworkNotFound)
	HCN_E_ENDPOINT_NOT_FOUND       = ErrorCode(document.ErrEndpointNotFound)
	HCN_E_ADAPTER_NOT_FOUND        = ErrorCode(document.ErrAdapterNotFound)
	HCN_E_PORT_NOT_FOUND           = ErrorCode(document.ErrPortNotFound)
	HCN_E_INVALID_IP               = ErrorCode(document.ErrInvalidIP)
	HCN_E_PORT_ALREADY_EXISTS      = ErrorCode(document.ErrPortAlreadyExists)
	HCN_E_REQUEST_UNSUPPORTED      = ErrorCode(document.ErrRequestUnsupported)
	HCN_E_ADDR_INVALID_OR_RESERVED = ErrorCode(document.ErrAddrInvalidOrReserved)
	HCN_E_NOTIMPL                  = ErrorCode(document.ErrNotImplemented)
)

// HcnError is an error of the service.
type HcnError struct { //nolint:revive // its name in that API
	operation string
	code      ErrorCode
	err       *document.Error
}

// Error is in the words of Windows, with the code in them, since there are users who look for these; what the daemon says of it follows.
func (e *HcnError) Error() string {
	text, detail := e.err.Text, e.err.Detail
	if text == "" {
		text, detail = detail, ""
	}
	return strings.TrimSuffix(fmt.Sprintf("%s failed in Win32: %s (0x%x) %s", e.operation, text, uint32(e.code), detail), " ")
}

// Unwrap gives the daemon's own error.
func (e *HcnError) Unwrap() error { return e.err }

// Code of the error.
func (e *HcnError) Code() ErrorCode { return e.code }

// folded is the code as Windows' client has it: of a Win32 error its number alone.
func folded(c document.ErrorCode) ErrorCode {
	if c>>16 == 0x8007 {
		c &= 0xFFFF
	}
	return ErrorCode(c)
}

// CheckErrorWithCode tells whether an error has a code.
func CheckErrorWithCode(err error, code ErrorCode) bool {
	e, ok := errors.AsType[*HcnError](err)
	return ok && e.code == code
}

// IsElementNotFoundError tells whether the service has not found something.
func IsElementNotFoundError(err error) bool { return CheckErrorWithCode(err, ERROR_NOT_FOUND) }

// IsPortAlreadyExistsError tells whether a port is taken.
func IsPortAlreadyExistsError(err error) bool {
	return CheckErrorWithCode(err, HCN_E_PORT_ALREADY_EXISTS)
}

// IsNetworkNotFoundError tells whether the service has no such network.
func IsNetworkNotFoundError(err error) bool { return CheckErrorWithCode(err, HCN_E_NETWORK_NOT_FOUND) }

// IsEndpointNotFoundError tells whether the service has no such endpoint.
func IsEndpointNotFoundError(err error) bool {
	return CheckErrorWithCode(err, HCN_E_ENDPOINT_NOT_FOUND)
}

// IsPortNotFoundError tells whether the switch has no such port.
func IsPortNotFoundError(err error) bool { return CheckErrorWithCode(err, HCN_E_PORT_NOT_FOUND) }

// IsAdapterNotFoundError tells whether the host has no such NIC.
func IsAdapterNotFoundError(err error) bool { return CheckErrorWithCode(err, HCN_E_ADAPTER_NOT_FOUND) }

// IsInvalidIPError tells whether an address is none, or in no subnet.
func IsInvalidIPError(err error) bool { return CheckErrorWithCode(err, HCN_E_INVALID_IP) }

// IsNotImplemented tells whether the service does not do that.
func IsNotImplemented(err error) bool {
	return CheckErrorWithCode(err, HCN_E_NOTIMPL) || CheckErrorWithCode(err, HCN_E_REQUEST_UNSUPPORTED)
}

// IsNotFoundError tells whether an object is not there.
func IsNotFoundError(err error) bool {
	if e, ok := errors.AsType[*HcnError](err); ok {
		return e.err.HTTPStatus() == 404
	}
	for _, is := range []bool{
		isA[NetworkNotFoundError](err), isA[EndpointNotFoundError](err), isA[NamespaceNotFoundError](err),
		isA[LoadBalancerNotFoundError](err), isA[RouteNotFoundError](err),
	} {
		if is {
			return true
		}
	}
	return false
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// NetworkNotFoundError says that no network has a name or an ID.
type NetworkNotFoundError struct{ NetworkName, NetworkID string }

func (e NetworkNotFoundError) Error() string { return notFound("Network", e.NetworkName, e.NetworkID) }

// EndpointNotFoundError says that no endpoint has a name or an ID.
type EndpointNotFoundError struct{ EndpointName, EndpointID string }

func (e EndpointNotFoundError) Error() string {
	return notFound("Endpoint", e.EndpointName, e.EndpointID)
}

// NamespaceNotFoundError says that no namespace has an ID.
type NamespaceNotFoundError struct{ NamespaceID string }

func (e NamespaceNotFoundError) Error() string { return notFound("Namespace", "", e.NamespaceID) }

// LoadBalancerNotFoundError says that no load balancer has an ID.
type LoadBalancerNotFoundError struct{ LoadBalancerId string }

func (e LoadBalancerNotFoundError) Error() string {
	return fmt.Sprintf("LoadBalancer %q not found", e.LoadBalancerId)
}

// RouteNotFoundError says that no SDN route has an ID.
type RouteNotFoundError struct{ RouteId string }

func (e RouteNotFoundError) Error() string { return fmt.Sprintf("SDN Route %q not found", e.RouteId) }

// notFound is in the words that users of the Windows client compare.
func notFound(kind, name, id string) string {
	if name != "" {
		return fmt.Sprintf("%s name %q not found", kind, name)
	}
	return fmt.Sprintf("%s ID %q not found", kind, id)
}
