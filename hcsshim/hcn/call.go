package hcn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	document "github.com/bulkhead-net/bulkhead/hcn"
)

// patience is how long a call may take: this API has no contexts.
const patience = 2 * time.Minute

// socketEnv names another socket than the default one.
const socketEnv = "BULKHEAD_HOST"

// SchemaVersion of a document.
type SchemaVersion = Version

// V2SchemaVersion is that of version 2.
func V2SchemaVersion() SchemaVersion { return SchemaVersion{Major: 2} }

// RequestType says what a request to modify does.
type RequestType string

// The requests.
var (
	RequestTypeAdd     RequestType = "Add"
	RequestTypeRemove  RequestType = "Remove"
	RequestTypeUpdate  RequestType = "Update"
	RequestTypeRefresh RequestType = "Refresh"
)

// HostComputeQueryFlags say how much is shown.
type HostComputeQueryFlags uint32

// The flags of a query.
var (
	HostComputeQueryFlagsNone     HostComputeQueryFlags
	HostComputeQueryFlagsDetailed HostComputeQueryFlags = 1
)

// HostComputeQuery selects objects: Filter is a JSON object of members and the values that they have.
type HostComputeQuery struct {
	SchemaVersion SchemaVersion
	Flags         HostComputeQueryFlags
	Filter        string `json:",omitempty"`
}

func defaultQuery() HostComputeQuery { return HostComputeQuery{SchemaVersion: V2SchemaVersion()} }

func filtered(member, value string) HostComputeQuery {
	q := defaultQuery()
	b, _ := json.Marshal(map[string]string{member: value}) // strings always encode
	q.Filter = string(b)
	return q
}

// with makes one call of the daemon.
func with(operation string, call func(ctx context.Context, c *client.Client) error) error {
	socket := os.Getenv(socketEnv)
	if socket == "" {
		socket = client.DefaultSocket
	}
	c, err := client.New(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return wrap(operation, call(ctx, c))
}

func send(operation, method, path string, query url.Values, in, out any) error {
	var body json.RawMessage
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	return with(operation, func(ctx context.Context, c *client.Client) error {
		answer, err := c.HCN(ctx, method, path, query, body)
		if err != nil || out == nil {
			return err
		}
		return json.Unmarshal(answer, out)
	})
}

func queryText(q HostComputeQuery) (url.Values, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	return url.Values{"query": {string(b)}}, nil
}

// list shows what a query selects. What goes meanwhile is left out.
func list[T any](kind string, q HostComputeQuery) ([]T, error) {
	values, err := queryText(q)
	if err != nil {
		return nil, err
	}
	var ids []string
	if err := send("hcnEnumerate"+noun[kind]+"s", http.MethodGet, "/"+kind, values, nil, &ids); err != nil {
		return nil, err
	}
	detail, err := queryText(HostComputeQuery{SchemaVersion: q.SchemaVersion, Flags: q.Flags})
	if err != nil {
		return nil, err
	}
	var out []T
	for _, id := range ids {
		var doc T
		err := send("hcnQuery"+noun[kind]+"Properties", http.MethodGet, "/"+kind+"/"+url.PathEscape(id), detail, nil, &doc)
		if IsNotFoundError(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, doc)
	}
	return out, nil
}

// first is the one object that a query selects.
func first[T any](kind string, q HostComputeQuery, none error) (*T, error) {
	all, err := list[T](kind, q)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, none
	}
	return &all[0], nil
}

func create[T any](kind string, doc *T) (*T, error) {
	made := new(T)
	if err := send("hcnCreate"+noun[kind], http.MethodPost, "/"+kind, nil, doc, made); err != nil {
		return nil, err
	}
	return made, nil
}

func remove(kind, id string) error {
	return send("hcnDelete"+noun[kind], http.MethodDelete, "/"+kind+"/"+url.PathEscape(id), nil, nil, nil)
}

func modify(kind, id string, request any) error {
	return send("hcnModify"+noun[kind], http.MethodPost, "/"+kind+"/"+url.PathEscape(id)+"/modify", nil, request, nil)
}

// settings encodes those of a request.
func settings(v any) (json.RawMessage, error) { return json.Marshal(v) }

// noun is what the kinds of objects are called in the names of Windows' functions, which begin its errors.
var noun = map[string]string{networks: "Network", endpoints: "Endpoint", namespaces: "Namespace", loadBalancers: "LoadBalancer", sdnRoutes: "SdnRoute"}

// wrap gives an error of the daemon the type that users of this API look for.
func wrap(operation string, err error) error {
	if e, ok := errors.AsType[*document.Error](err); ok {
		return &HcnError{operation: operation, code: folded(e.Code), err: e}
	}
	if api.IsKind(err, api.KindUnavailable) { // as Windows says it of a service that does not run, which users look for in the text
		return fmt.Errorf("%s failed in Win32: The interface is unknown. (0x6b5) %w", operation, err)
	}
	return err
}
