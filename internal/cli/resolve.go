package cli

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// HCN names objects by GUIDs and lists GUIDs. This file makes documents of them,
// and lets people use names.

// kindOf is how a client reads one kind of HCN object.
type kindOf[T any] struct {
	what, ls string
	list     func(context.Context, hcn.HostComputeQuery) ([]hcn.GUID, error)
	get      func(context.Context, hcn.GUID) (*T, error)
}

func networks(c *client.Client) kindOf[hcn.HostComputeNetwork] {
	return kindOf[hcn.HostComputeNetwork]{"network", "network ls", c.EnumerateNetworks, c.Network}
}

func endpoints(c *client.Client) kindOf[hcn.HostComputeEndpoint] {
	return kindOf[hcn.HostComputeEndpoint]{"endpoint", "endpoint ls", c.EnumerateEndpoints, c.Endpoint}
}

func namespaces(c *client.Client) kindOf[hcn.HostComputeNamespace] {
	return kindOf[hcn.HostComputeNamespace]{"namespace", "namespace ls", c.EnumerateNamespaces, c.Namespace}
}

func balancers(c *client.Client) kindOf[hcn.HostComputeLoadBalancer] {
	return kindOf[hcn.HostComputeLoadBalancer]{"load balancer", "loadbalancer ls", c.EnumerateLoadBalancers, c.LoadBalancer}
}

// all gives the documents that match. What is deleted in between is left out.
func (k kindOf[T]) all(ctx context.Context, q hcn.HostComputeQuery) ([]T, error) {
	ids, err := k.list(ctx, q)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(ids))
	for _, id := range ids {
		doc, err := k.get(ctx, id)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, *doc)
	}
	return out, nil
}

// find picks the one object that a word of the command line means: its ID, its
// name, or a beginning of its ID that only it has.
func (k kindOf[T]) find(ctx context.Context, word string) (*T, error) {
	if id, err := hcn.ParseGUID(word); err == nil {
		if doc, err := k.get(ctx, id); !isNotFound(err) {
			return doc, err
		}
	}
	ids, err := k.list(ctx, client.Filter(map[string]string{"Name": word}))
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		if ids, err = k.beginning(ctx, word); err != nil {
			return nil, err
		}
	}
	switch len(ids) {
	case 0:
		return nil, api.Errorf(api.KindNotFound, "no %s is called %q or has such an ID", k.what, word).Hint("bulkhead %s", k.ls)
	case 1:
		return k.get(ctx, ids[0])
	}
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = string(id)
	}
	return nil, api.Errorf(api.KindConflict, "%q means %s: %s", word, plural(len(ids), k.what), strings.Join(texts, ", ")).Hint("use the ID")
}

func (k kindOf[T]) beginning(ctx context.Context, word string) ([]hcn.GUID, error) {
	if len(word) < 4 {
		return nil, nil
	}
	ids, err := k.list(ctx, hcn.HostComputeQuery{})
	var out []hcn.GUID
	for _, id := range ids {
		if strings.HasPrefix(string(id), strings.ToUpper(word)) {
			out = append(out, id)
		}
	}
	return out, err
}

// isNotFound tells whether an error of either API says that something is not there.
func isNotFound(err error) bool {
	var e *hcn.Error
	return api.IsKind(err, api.KindNotFound) || errors.As(err, &e) && e.HTTPStatus() == http.StatusNotFound
}

// nameOr is an object's name, or its ID where it has none.
func nameOr(name string, id hcn.GUID) string {
	if name != "" {
		return name
	}
	return string(id)
}

// onNetwork selects the endpoints of a network.
func onNetwork(id hcn.GUID) hcn.HostComputeQuery {
	return client.Filter(map[string]string{"HostComputeNetwork": string(id)})
}

// remove deletes what a word means.
func (k kindOf[T]) remove(ctx context.Context, word string, id func(*T) hcn.GUID, remove func(context.Context, hcn.GUID) error) error {
	doc, err := k.find(ctx, word)
	if err != nil {
		return orUnreadable(ctx, word, err, remove)
	}
	return remove(ctx, id(doc))
}

// orUnreadable deletes by its ID what cannot be shown: a row that the daemon could not read (see doctor). notFound is
// what was said of it; any other error is returned as it is.
func orUnreadable(ctx context.Context, word string, notFound error, remove func(context.Context, hcn.GUID) error) error {
	id, err := hcn.ParseGUID(word)
	if err != nil || !isNotFound(notFound) {
		return notFound
	}
	if err := remove(ctx, id); !isNotFound(err) {
		return err
	}
	return notFound
}
