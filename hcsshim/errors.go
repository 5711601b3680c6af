package hcsshim

import (
	"context"
	"errors"
	"fmt"

	document "github.com/bulkhead-net/bulkhead/hcn"
)

// Errors that users of this API look for.
var (
	ErrComputeSystemDoesNotExist = errors.New("the container does not exist")
	ErrElementNotFound           = errors.New("the object was not found")
	ErrNotSupported              = errors.New("the request is not supported")
	ErrInvalidData               = errors.New("the request is invalid")
	ErrTimeout                   = errors.New("the call took too long")
	ErrPlatformNotSupported      = errors.New("the platform does not support the request")
	ErrorEmptyMacAddressList     = errors.New("the list of management MACs is empty")
)

// EndpointNotFoundError says that no endpoint has a name.
type EndpointNotFoundError struct {
	EndpointName string
}

func (e EndpointNotFoundError) Error() string {
	return fmt.Sprintf("no endpoint has the name %q: not found", e.EndpointName)
}

// NetworkNotFoundError says that no network has a name.
type NetworkNotFoundError struct {
	NetworkName string
}

func (e NetworkNotFoundError) Error() string {
	return fmt.Sprintf("no network has the name %q: not found", e.NetworkName)
}

// IsNotExist tells that an object or a container is not there.
func IsNotExist(err error) bool {
	if _, ok := errors.AsType[EndpointNotFoundError](err); ok {
		return true
	}
	if _, ok := errors.AsType[NetworkNotFoundError](err); ok {
		return true
	}
	if e, ok := errors.AsType[*document.Error](err); ok && (e.HTTPStatus() == 404 || e.Code == document.ErrSystemNotFound) {
		return true
	}
	return errors.Is(err, ErrComputeSystemDoesNotExist) || errors.Is(err, ErrElementNotFound)
}

// IsTimeout tells that a call took too long.
func IsTimeout(err error) bool {
	return errors.Is(err, ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
}

// IsNotSupported tells that the daemon does not do that, or not in this form.
func IsNotSupported(err error) bool {
	if e, ok := errors.AsType[*document.Error](err); ok && (e.Code == document.ErrNotImplemented || e.Code == document.ErrRequestUnsupported) {
		return true
	}
	return errors.Is(err, ErrNotSupported) || errors.Is(err, ErrPlatformNotSupported) || errors.Is(err, ErrInvalidData)
}
