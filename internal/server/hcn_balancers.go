package server

import (
	"context"
	"reflect"

	"github.com/bulkhead-net/bulkhead/hcn"
)

func (s *Server) balancerKind() kind {
	b := s.backend
	return kind{
		singular: "load balancer", document: reflect.TypeFor[hcn.HostComputeLoadBalancer](),
		modify:    reflect.TypeFor[hcn.HostComputeLoadBalancer](), // a modify request is the whole document
		enumerate: func(f hcn.Filter) []hcn.GUID { return b.LoadBalancers(f) },
		get: func(id hcn.GUID) (view, error) {
			doc, err := b.LoadBalancer(id)
			if err != nil {
				return nil, err
			}
			return balancerView(doc), nil
		},
		create: func(ctx context.Context, c creation) (view, error) {
			doc, err := balancerDocument(c)
			if err != nil {
				return nil, err
			}
			made, err := b.CreateLoadBalancer(ctx, c.id, *doc)
			return balancerView(made), err
		},
		change: func(ctx context.Context, id hcn.GUID, body []byte) ([]string, error) {
			var ignored []string
			v1, err := hcn.IsV1(body)
			if err != nil {
				return nil, err
			}
			doc, err := balancerDocument(creation{body: body, v1: v1, ignored: &ignored})
			if err != nil {
				return nil, err
			}
			return ignored, b.ModifyLoadBalancer(ctx, id, *doc)
		},
		remove: b.DeleteLoadBalancer,
	}
}

func balancerDocument(c creation) (*hcn.HostComputeLoadBalancer, error) {
	doc, err := listDocument(c, hcn.LoadBalancerFromV1)
	if err == nil && c.ignored != nil {
		*c.ignored = append(*c.ignored, doc.Ignored()...)
	}
	return doc, err
}

func balancerView(doc hcn.HostComputeLoadBalancer) view { return listView(doc, hcn.LoadBalancerToV1) }

// listDocument reads what version 1 has as a policy list.
func listDocument[T any](c creation, fromV1 func(*hcn.HNSPolicyList) (*T, error)) (*T, error) {
	if !c.v1 {
		return decodeNoting[T](c)
	}
	v, err := decodeNoting[hcn.HNSPolicyList](c)
	if err != nil {
		return nil, err
	}
	return fromV1(v)
}

func listView[T any](doc T, toV1 func(*T) *hcn.HNSPolicyList) view {
	return func(_ hcn.HostComputeQuery, v1 bool) any {
		if v1 {
			return toV1(&doc)
		}
		return doc
	}
}
