package api

import (
	"errors"
	"fmt"
	"net/http"
)

// The kinds of error that /v1 answers with.
const (
	KindInvalid     = "invalid"     // the request is wrong: 400
	KindNotFound    = "not-found"   // 404
	KindConflict    = "conflict"    // the state of things forbids it: 409
	KindUnsupported = "unsupported" // 501
	KindUnavailable = "unavailable" // try again: 503
	KindInternal    = "internal"    // 500
)

// Error is what an operation of /v1 fails with: what was being done and what is
// wrong, and what to do next.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"error"`
	Next    string `json:"next,omitempty"` // a command or a change that helps
	cause   error
}

// Errorf makes an Error; format and args are those of fmt.Errorf, %w included.
func Errorf(kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), cause: err}
}

// Hint adds what to do next.
func (e *Error) Hint(format string, args ...any) *Error {
	e.Next = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.cause }

// HTTPStatus of the answer that carries this error.
func (e *Error) HTTPStatus() int {
	switch e.Kind {
	case KindInvalid:
		return http.StatusBadRequest
	case KindNotFound:
		return http.StatusNotFound
	case KindConflict:
		return http.StatusConflict
	case KindUnsupported:
		return http.StatusNotImplemented
	case KindUnavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// IsKind tells whether err holds an Error of this kind.
func IsKind(err error, kind string) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}
