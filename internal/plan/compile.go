package plan

import "github.com/bulkhead-net/bulkhead/hcn"

// Compile turns intent and facts into the whole plan. It is pure, and decides
// nothing that has to be remembered: choices (addresses, numbers, interface
// names) are in the rows already.
func Compile(in *Intent, f *Facts) *Plan {
	p := New()
	p.Recompile(in, f, DirtyAll(in))
	return p
}

// New is an empty plan.
func New() *Plan {
	return &Plan{
		Namespaces: map[hcn.GUID]*Namespace{},
		Switches:   map[hcn.GUID]*Switch{},
		Ports:      map[PortID]*Port{},
		Remotes:    map[hcn.GUID]*Remote{},
		Balancers:  map[hcn.GUID]*Balancer{},
		rules:      map[hcn.GUID]*networkRules{},
		policies:   map[hcn.GUID]*endpointPolicy{},
		sources:    map[sourceKey]map[hcn.GUID]struct{}{},
	}
}

func compileNamespace(n *NamespaceRow) *Namespace {
	if n == nil || n.Vanished || n.Doc.Type == hcn.NamespaceTypeHostDefault || n.Adopted != nil && n.Adopted.Inode == 0 {
		return nil
	}
	return &Namespace{ID: n.Doc.ID, Path: NamespacePath(n.Doc.ID), Sysctls: n.Sysctls, Adopted: n.Adopted}
}
