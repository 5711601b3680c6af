package engine

import (
	"errors"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// object names a thing of the plan: what a caller waits for, and what an error
// of an applier is about. The kind is part of the name because the documents of
// different kinds may carry one GUID.
type object struct{ kind, id string }

func portObject(endpoint hcn.GUID) object {
	return object{"port", string(plan.EndpointPortID(endpoint))}
}

func namespaceObject(id hcn.GUID) object { return object{"namespace", string(id)} }

// networkObjects are a network's switch and the switch's own ports.
func networkObjects(id hcn.GUID) []object {
	return []object{
		{"network", string(id)},
		{"port", string(plan.HostPortID(id))},
		{"port", string(plan.ResolverPortID(id))},
	}
}

// objectsOf are those of a network, with what it shares with others of its kind.
func objectsOf(doc *hcn.HostComputeNetwork) []object {
	out := networkObjects(doc.ID)
	if doc.Type == hcn.Overlay {
		out = append(out, object{"port", string(plan.TunnelPortOf(doc))})
	}
	return out
}

func touchedObjects(d *plan.Delta) []object {
	out := make([]object, 0, len(d.Namespaces)+len(d.Switches)+len(d.Ports)+len(d.Balancers))
	for id := range d.Namespaces {
		out = append(out, namespaceObject(id))
	}
	for id := range d.Switches {
		out = append(out, object{"network", string(id)})
	}
	for id := range d.Ports {
		out = append(out, object{"port", string(id)})
	}
	for id := range d.Balancers {
		out = append(out, balancerObject(id))
	}
	return out
}

// split sorts the errors of an applier by object; rest belongs to none.
func split(err error) (objects map[object]error, rest error) {
	objects = map[object]error{}
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, err := range joined.Unwrap() {
				walk(err)
			}
			return
		}
		if o, ok := errors.AsType[*plan.ObjectError](err); ok {
			k := object{o.Kind, o.ID}
			objects[k] = errors.Join(objects[k], o.Err)
			return
		}
		rest = errors.Join(rest, err)
	}
	walk(err)
	return objects, rest
}

// strike takes an object that an applier failed for out of the delta, so that
// the appliers after it leave it alone: no port comes up without its program.
// What hangs on the object goes with it and has its error. Removals stay: they
// go on to the end whatever else fails.
func strike(d *plan.Delta, k object, err error, errs map[object]error) {
	errs[k] = errors.Join(errs[k], err)
	var hangs func(p *plan.Port) bool
	switch k.kind {
	case "port":
		if c, ok := d.Ports[plan.PortID(k.id)]; ok && c.New != nil {
			delete(d.Ports, plan.PortID(k.id))
		}
		return
	case "loadbalancer":
		if c, ok := d.Balancers[hcn.GUID(k.id)]; ok && c.New != nil {
			delete(d.Balancers, hcn.GUID(k.id))
		}
		return
	case "network":
		id := hcn.GUID(k.id)
		if c, ok := d.Switches[id]; ok && c.New != nil {
			delete(d.Switches, id)
		}
		hangs = func(p *plan.Port) bool { return p.Network == id }
	case "namespace":
		id := hcn.GUID(k.id)
		if c, ok := d.Namespaces[id]; ok && c.New != nil {
			delete(d.Namespaces, id)
		}
		hangs = func(p *plan.Port) bool { return p.VNIC.Namespace == plan.NamespacePath(id) }
	default:
		return
	}
	for id, c := range d.Ports {
		if c.New != nil && hangs(c.New) {
			delete(d.Ports, id)
			p := object{"port", string(id)}
			errs[p] = errors.Join(errs[p], err)
		}
	}
}

// strikeAll does so for everything that is to come or to change.
func strikeAll(d *plan.Delta, err error, errs map[object]error) {
	for id, c := range d.Namespaces {
		if c.New != nil {
			strike(d, namespaceObject(id), err, errs)
		}
	}
	for id, c := range d.Switches {
		if c.New != nil {
			strike(d, object{"network", string(id)}, err, errs)
		}
	}
	for id, c := range d.Ports {
		if c.New != nil {
			strike(d, object{"port", string(id)}, err, errs)
		}
	}
	for id, c := range d.Balancers {
		if c.New != nil {
			strike(d, balancerObject(id), err, errs)
		}
	}
}
