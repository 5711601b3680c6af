package hcn

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
)

// Decode reads one document: a JSON object and nothing after it. Its errors say where the text is wrong.
func Decode[T any](data []byte) (*T, error) {
	doc := new(T)
	if t := bytes.TrimLeft(data, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return nil, Errorf(ErrInvalidJSON, "the document must be a JSON object, it starts with %s", quote(string(head(t))))
	}
	if err := CheckDepth(data); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, doc); err != nil {
		return nil, misfit(ErrInvalidJSON, reflect.TypeFor[T](), data, err)
	}
	return doc, nil
}

func head(b []byte) []byte {
	if len(b) > 12 {
		return b[:12]
	}
	return b
}

// jsonError turns an error of encoding/json into one of ours; errors that our own types raised keep their code.
func jsonError(code ErrorCode, err error) error {
	if ours, ok := errors.AsType[*Error](err); ok {
		return ours
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return Errorf(code, "at byte %d: %w", syntax.Offset, err)
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return Errorf(code, "%s (byte %d)", placed(kind.Field, MisfitJSON(kind)), kind.Offset)
	}
	return Errorf(code, "%w", err)
}

// IsV1 reports whether a document is of version 1: one without SchemaVersion, or with a Major of 1. A create of such a
// document is a v1 create even when it comes in by the v2 entry (HCN schema).
func IsV1(data []byte) (bool, error) {
	probe, err := Decode[struct{ SchemaVersion *Version }](data)
	if err != nil {
		return false, err
	}
	if v := probe.SchemaVersion; v != nil {
		return v.Major < 2, v.check()
	}
	return true, nil
}
