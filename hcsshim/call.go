package hcsshim

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// patience is how long a call may take: this API has no contexts.
const patience = 2 * time.Minute

// socketEnv names another socket than the default one.
const socketEnv = "BULKHEAD_HOST"

// call makes one of version 1. request is a document, or empty; out gets the Output of the answer, if there is one.
func call(method, path, request string, out any) error {
	socket := os.Getenv(socketEnv)
	if socket == "" {
		socket = client.DefaultSocket
	}
	c, err := client.New(socket)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var body json.RawMessage
	if request != "" {
		if body = json.RawMessage(request); !json.Valid(body) {
			return fmt.Errorf("%s %s: the request is no JSON: %w", method, path, ErrInvalidData)
		}
	}
	answer, err := c.HNS(ctx, method, path, body)
	switch {
	case api.IsKind(err, api.KindUnavailable):
		return fmt.Errorf("failed during hnsCallRawResponse: hnsCall failed in Win32: The interface is unknown. (0x6b5) %w", err)
	case err != nil:
		return fmt.Errorf("hns failed with error : %w", err) // the words that users of this API compare
	}
	if len(answer) == 0 || out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	return nil
}

// answered is the document that a call answers with.
func answered[T any](method, path, request string) (*T, error) {
	out := new(T)
	if err := call(method, path, request, out); err != nil {
		return nil, err
	}
	return out, nil
}

// listed is the same of several.
func listed[T any](method, path, request string) ([]T, error) {
	var out []T
	if err := call(method, path, request, &out); err != nil {
		return nil, err
	}
	return out, nil
}

func encoded(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// below is the path of what a caller has named: each of its parts is one.
func below(kind, path string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return "/" + kind + "/" + strings.Join(parts, "/")
}
