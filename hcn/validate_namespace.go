package hcn

// Validate checks a namespace that is to be created.
func (n *HostComputeNamespace) Validate() error {
	const code = ErrInvalidParameter
	if int(n.Type) >= len(namespaceTypeNames) {
		return invalid(code, "Type", "%d is not known", n.Type)
	}
	if err := checkName(code, n.Name); err != nil {
		return err
	}
	if err := checkText(code, "Owner", n.Owner); err != nil {
		return err
	}
	if err := checkOpaque(code, n.AdditionalParams); err != nil {
		return err
	}
	if err := checkCount(code, "Resources", len(n.Resources), maxBackends); err != nil {
		return err
	}
	for i, r := range n.Resources {
		if err := r.validate(indexed("Resources", i)); err != nil {
			return err
		}
	}
	return nil
}

func (r NamespaceResource) validate(path string) error {
	if r.Type == NamespaceResourceTypeEndpoint {
		if id, err := ParseGUID(r.Data.ID); err != nil || id.IsZero() {
			return invalid(ErrGUIDConversionFailure, path+".Data.ID", "%s is not the GUID of an endpoint", quote(r.Data.ID))
		}
		return nil
	}
	if r.Type != NamespaceResourceTypeContainer {
		return invalid(ErrInvalidParameter, path+".Type", "%d is not known: use Container or Endpoint", r.Type)
	}
	if r.Data.ID == "" {
		return invalid(ErrInvalidParameter, path+".Data.ID", "it is empty: give the container's ID")
	}
	return checkText(ErrInvalidParameter, path+".Data.ID", r.Data.ID)
}

// Endpoints lists the endpoints in the namespace.
func (n *HostComputeNamespace) Endpoints() []GUID {
	var out []GUID
	for _, r := range n.Resources {
		if r.Type == NamespaceResourceTypeEndpoint {
			if id, err := ParseGUID(r.Data.ID); err == nil {
				out = append(out, id)
			}
		}
	}
	return out
}

// Containers lists the containers in the namespace.
func (n *HostComputeNamespace) Containers() []string {
	var out []string
	for _, r := range n.Resources {
		if r.Type == NamespaceResourceTypeContainer {
			out = append(out, r.Data.ID)
		}
	}
	return out
}
