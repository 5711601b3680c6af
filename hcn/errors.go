package hcn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Name is the code's name in the HCN error table.
func (c ErrorCode) Name() string {
	if e, ok := errorTable[c]; ok {
		return e.name
	}
	return fmt.Sprintf("0x%08X", uint32(c))
}

// Text is the sentence of the table. Some clients search error strings for it, so it always comes first.
func (c ErrorCode) Text() string { return errorTable[c].text }

// Error lets a bare code be a target of errors.Is.
func (c ErrorCode) Error() string { return c.Text() }

// HTTPStatus is the status of a REST answer that carries this code.
func (c ErrorCode) HTTPStatus() int {
	switch c {
	case ErrNetworkNotFound, ErrEndpointNotFound, ErrLayerNotFound, ErrSwitchNotFound, ErrSubnetNotFound, ErrAdapterNotFound,
		ErrPortNotFound, ErrPolicyNotFound, ErrVFPPortSettingNotFound, ErrSwitchExtensionNotFound, ErrModuleNotFound,
		ErrNetAdapterNotFound, ErrNetCompartmentNotFound, ErrNetInterfaceNotFound, ErrElementNotFound, ErrSystemNotFound:
		return http.StatusNotFound
	case ErrNetworkAlreadyExists, ErrLayerAlreadyExists, ErrPolicyAlreadyExists, ErrPortAlreadyExists,
		ErrEndpointAlreadyAttached, ErrEndpointNamespaceAlreadyExists, ErrEntityHasReferences, ErrDefaultNamespaceExists,
		ErrInterfaceParametersAlreadyApplied, ErrObjectAlreadyExists, ErrFileExists, ErrSharedSwitchModification,
		ErrEndpointSharingDisabled, ErrEndpointNotAttached, ErrDegradedOperation:
		return http.StatusConflict
	case ErrInvalidNetwork, ErrInvalidNetworkType, ErrInvalidEndpoint, ErrInvalidPolicy, ErrInvalidPolicyType,
		ErrInvalidRemoteEndpointOperation, ErrGUIDConversionFailure, ErrInvalidJSON, ErrInvalidJSONReference, ErrInvalidIP,
		ErrInvalidInternalPort, ErrAddrInvalidOrReserved, ErrInvalidPrefix, ErrInvalidSubnet, ErrInvalidIPSubnet,
		ErrEndpointNotLocal, ErrInvalidParameter, ErrMappingNotSupported:
		return http.StatusBadRequest
	case ErrRequestUnsupported, ErrGuestRequestUnsupported, ErrNotImplemented:
		return http.StatusNotImplemented
	case ErrManagerStopped:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// Error is what every operation of the API fails with: the code, the sentence of the HCN error table, and then our own words
// on which object and field is meant, what is wrong with it, and what to do.
type Error struct {
	Code   ErrorCode
	Text   string
	Detail string
	cause  error
}

// Errorf makes an Error. Format and args are those of fmt.Errorf, %w included.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Text: code.Text(), Detail: err.Error(), cause: err}
}

func (e *Error) Error() string {
	switch {
	case e.Detail == "":
		return e.Text
	case e.Text == "":
		return e.Detail
	}
	return e.Text + " " + e.Detail
}

// Unwrap leads to what the detail wrapped with %w.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is this error's code, so that errors.Is(err, hcn.ErrNetworkNotFound) works.
func (e *Error) Is(target error) bool {
	c, ok := target.(ErrorCode)
	return ok && c == e.Code
}

// HTTPStatus is the status of a REST answer that carries this error.
func (e *Error) HTTPStatus() int { return e.Code.HTTPStatus() }

// errorRecord is the body of a failed call. Success is always there: clients look at it first.
type errorRecord struct {
	Success   bool
	Error     string
	ErrorCode uint32
}

// MarshalJSON writes the error record. The sentence of the table is followed by a blank even without detail, as on Windows.
func (e *Error) MarshalJSON() ([]byte, error) {
	return json.Marshal(errorRecord{Error: e.Text + " " + e.Detail, ErrorCode: uint32(e.Code)})
}

// UnmarshalJSON reads an error record, splitting the sentence of the table from the detail.
func (e *Error) UnmarshalJSON(b []byte) error {
	var r errorRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return err
	}
	*e = Error{Code: ErrorCode(r.ErrorCode)}
	e.Text, e.Detail = splitText(e.Code.Text(), r.Error)
	return nil
}

func splitText(text, s string) (string, string) {
	if text != "" && len(s) >= len(text) && s[:len(text)] == text {
		rest := s[len(text):]
		if rest != "" && rest[0] == ' ' {
			rest = rest[1:]
		}
		return text, rest
	}
	return "", s
}

// AsError makes an *Error of any error: the one inside it, with the words around it kept, or E_FAIL.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		if code, ok := errors.AsType[ErrorCode](err); ok {
			return &Error{Code: code, Text: code.Text(), Detail: strings.Replace(err.Error(), code.Text(), "", 1), cause: err}
		}
		return Errorf(ErrUnspecified, "%w", err)
	}
	if direct, ok := err.(*Error); ok { //nolint:errorlint // asks whether err itself is one, not whether it holds one
		return direct
	}
	// The sentence moves to the front; the words that callers put around the error stay around its detail.
	return &Error{Code: e.Code, Text: e.Text, Detail: strings.Replace(err.Error(), e.Error(), e.Detail, 1), cause: err}
}

// CodeOf is the code an error carries, or E_FAIL.
func CodeOf(err error) ErrorCode { return AsError(err).Code }

// quote shows a client's string in an error: escaped, and cut when long, since a detail ends up in terminals and logs.
func quote(s string) string {
	const limit = 80
	if len(s) <= limit {
		return strconv.Quote(s)
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}
