package hcn

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// EndpointPolicyType names a policy of an endpoint.
type EndpointPolicyType string

// The endpoint policies of the HCN schema.
const (
	PortMapping                 EndpointPolicyType = "PortMapping"
	OutBoundNAT                 EndpointPolicyType = "OutBoundNAT"
	ACL                         EndpointPolicyType = "ACL"
	TierAcl                     EndpointPolicyType = "TierAcl"
	QOS                         EndpointPolicyType = "QOS"
	L2Driver                    EndpointPolicyType = "L2Driver"
	SDNRoute                    EndpointPolicyType = "SDNRoute"
	ProviderAddress             EndpointPolicyType = "ProviderAddress"
	L4Proxy                     EndpointPolicyType = "L4Proxy"
	L4WFPPROXY                  EndpointPolicyType = "L4WFPPROXY"
	PortName                    EndpointPolicyType = "PortName"
	EncapOverhead               EndpointPolicyType = "EncapOverhead"
	EndpointInterfaceConstraint EndpointPolicyType = "InterfaceConstraint"
	InterfaceParameters         EndpointPolicyType = "InterfaceParameters"
	EndpointVLAN                EndpointPolicyType = "VLAN"
	Iov                         EndpointPolicyType = "Iov"
	Encryption                  EndpointPolicyType = "Encryption"
)

// EndpointPolicy is a policy as it is on the wire. Settings stay the client's own, because a query must show them again;
// Decode gives them typed.
type EndpointPolicy struct {
	Type     EndpointPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// NetworkPolicyType names a policy of a network.
type NetworkPolicyType string

// The network policies of the HCN schema.
const (
	SourceMacAddress           NetworkPolicyType = "SourceMacAddress"
	NetAdapterName             NetworkPolicyType = "NetAdapterName"
	NetworkInterfaceConstraint NetworkPolicyType = "InterfaceConstraint"
	VSwitchExtension           NetworkPolicyType = "VSwitchExtension"
	NetworkProviderAddress     NetworkPolicyType = "ProviderAddress"
	DrMacAddress               NetworkPolicyType = "DrMacAddress"
	AutomaticDNS               NetworkPolicyType = "AutomaticDNS"
	RemoteSubnetRoute          NetworkPolicyType = "RemoteSubnetRoute"
	VxlanPort                  NetworkPolicyType = "VxlanPort"
	HostRoute                  NetworkPolicyType = "HostRoute"
	SetPolicy                  NetworkPolicyType = "SetPolicy"
	NetworkL4Proxy             NetworkPolicyType = "L4Proxy"
	LayerConstraint            NetworkPolicyType = "LayerConstraint"
	NetworkACL                 NetworkPolicyType = "NetworkACL"
)

// NetworkPolicy is a policy as it is on the wire.
type NetworkPolicy struct {
	Type     NetworkPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// SubnetPolicyType names a policy of a subnet.
type SubnetPolicyType string

// The subnet policies of the HCN schema.
const (
	VLAN SubnetPolicyType = "VLAN"
	VSID SubnetPolicyType = "VSID"
)

// SubnetPolicy is a policy as it is on the wire.
type SubnetPolicy struct {
	Type     SubnetPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// policyWire is what a policy looks like when it comes in: some clients name the settings Data.
type policyWire struct {
	Type     *string
	Settings json.RawMessage
	Data     json.RawMessage
}

// decodePolicy reads a policy of any kind. When there is neither Settings nor Data, the members beside Type are the
// settings: the vendor's own samples write subnet policies flat.
func decodePolicy(b []byte) (string, json.RawMessage, error) {
	if typ, settings, plain := plainPolicy(b); plain {
		return typ, settings, nil
	}
	var w policyWire
	if err := json.Unmarshal(b, &w); err != nil {
		return "", nil, Errorf(ErrInvalidPolicy, `a policy is {"Type":name,"Settings":object}: %s`, AsError(jsonError(ErrInvalidPolicy, err)).Detail)
	}
	typ := ""
	if w.Type != nil {
		typ = *w.Type
	}
	switch {
	case len(w.Settings) > 0 && string(w.Settings) != "null":
		return typ, w.Settings, nil
	case len(w.Data) > 0 && string(w.Data) != "null":
		return typ, w.Data, nil
	}
	var flat map[string]json.RawMessage
	if err := json.Unmarshal(b, &flat); err != nil {
		return "", nil, Errorf(ErrInvalidPolicy, "%w", err)
	}
	for name := range flat {
		if slices.ContainsFunc([]string{"Type", "Settings", "Data"}, func(s string) bool { return strings.EqualFold(s, name) }) {
			delete(flat, name)
		}
	}
	if len(flat) == 0 {
		return typ, nil, nil
	}
	settings, err := json.Marshal(flat)
	return typ, settings, err
}

// UnmarshalJSON reads the policy and spells its type as the schema does.
func (p *EndpointPolicy) UnmarshalJSON(b []byte) error {
	t, s, err := decodePolicy(b)
	*p = EndpointPolicy{Type: canonicalType(EndpointPolicyType(t), endpointSettings), Settings: s}
	if known, ok := endpointSettings[p.Type]; ok {
		p.Settings = canonicalize(s, known)
	}
	return err
}

// UnmarshalJSON reads the policy and spells its type as the schema does.
func (p *NetworkPolicy) UnmarshalJSON(b []byte) error {
	t, s, err := decodePolicy(b)
	*p = NetworkPolicy{Type: canonicalType(NetworkPolicyType(t), networkSettings), Settings: s}
	if known, ok := networkSettings[p.Type]; ok {
		p.Settings = canonicalize(s, known)
	}
	return err
}

// UnmarshalJSON reads the policy and spells its type as the schema does.
func (p *SubnetPolicy) UnmarshalJSON(b []byte) error {
	t, s, err := decodePolicy(b)
	*p = SubnetPolicy{Type: canonicalType(SubnetPolicyType(t), subnetSettings), Settings: s}
	if known, ok := subnetSettings[p.Type]; ok {
		p.Settings = canonicalize(s, known)
	}
	return err
}

// Decode gives the settings as a value of the type that belongs to the policy, for example PortMappingPolicySetting.
func (p EndpointPolicy) Decode() (any, error) {
	return decodeSettings(p.Type, p.Settings, endpointSettings)
}

// Decode gives the settings as a value of the type that belongs to the policy.
func (p NetworkPolicy) Decode() (any, error) {
	return decodeSettings(p.Type, p.Settings, networkSettings)
}

// Decode gives the settings as a value of the type that belongs to the policy.
func (p SubnetPolicy) Decode() (any, error) {
	return decodeSettings(p.Type, p.Settings, subnetSettings)
}

// NewEndpointPolicy makes a policy of typed settings.
func NewEndpointPolicy(t EndpointPolicyType, settings any) EndpointPolicy {
	return EndpointPolicy{Type: t, Settings: mustSettings(settings)}
}

// NewNetworkPolicy makes a policy of typed settings.
func NewNetworkPolicy(t NetworkPolicyType, settings any) NetworkPolicy {
	return NetworkPolicy{Type: t, Settings: mustSettings(settings)}
}

// NewSubnetPolicy makes a subnet policy of its settings.
func NewSubnetPolicy(t SubnetPolicyType, settings any) SubnetPolicy {
	return SubnetPolicy{Type: t, Settings: mustSettings(settings)}
}

// mustSettings cannot fail for the settings types of this package; anything else is a programming error.
func mustSettings(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic("hcn: settings that are not JSON: " + err.Error())
	}
	return b
}

// settingsType reads the settings of one policy type, and checks them.
type settingsType struct {
	decode   func(json.RawMessage) (any, error)
	validate func(v any, path string) error
	shape    reflect.Type
	fields   map[string]settingsField // by exact name
	members  []reflect.StructField
}

// settingsField is a member of settings. Those that are plain are on the wire as they are in Go: they have one spelling. Those that
// are direct are in the struct itself, under the name that they have in Go, and decode themselves or are not more than a text, a
// number or a truth.
type settingsField struct {
	index         []int
	plain, direct bool
}

func fieldsOf(shape reflect.Type) map[string]settingsField {
	out := map[string]settingsField{}
	for _, f := range fieldsByName(shape) {
		plain := f.Type.PkgPath() == "" && f.Type.Kind() != reflect.Struct && f.Type.Kind() != reflect.Pointer
		if k := f.Type.Kind(); plain && (k == reflect.Slice || k == reflect.Map) {
			plain = f.Type.Elem().PkgPath() == "" && f.Type.Elem().Kind() == reflect.String
		}
		out[f.Name] = settingsField{f.Index, plain, isDirect(f)}
	}
	return out
}

func isDirect(f reflect.StructField) bool {
	if name, options, _ := strings.Cut(f.Tag.Get("json"), ","); len(f.Index) > 1 || name != "" || strings.Contains(options, "string") {
		return false
	}
	pointer := reflect.PointerTo(f.Type)
	return pointer.Implements(reflect.TypeFor[json.Unmarshaler]()) || !pointer.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// setting describes a settings type to the tables below.
func setting[T validator]() settingsType {
	fields := fieldsOf(reflect.TypeFor[T]())
	_, special := any(new(T)).(json.Unmarshaler)
	special = special || reflect.TypeFor[T]().Kind() != reflect.Struct
	return settingsType{
		decode: func(b json.RawMessage) (any, error) {
			var v T
			if !special {
				if decodePlain(b, reflect.ValueOf(&v).Elem(), fields) {
					return v, nil
				}
				v = *new(T)
			}
			err := json.Unmarshal(b, &v)
			if err == nil {
				return v, nil
			}
			if whole, ok := wholeNumbers(b); ok {
				v = *new(T)
				err = json.Unmarshal(whole, &v)
			}
			return v, err
		},
		validate: func(v any, path string) error { return v.(T).validate(path) },
		shape:    reflect.TypeFor[T](),
		fields:   fields,
		members:  fieldsByName(reflect.TypeFor[T]()),
	}
}

// validator checks settings; path names them in errors.
type validator interface{ validate(path string) error }

// decodeSettings also takes absent settings: {} is what they mean.
func decodeSettings[K ~string](t K, raw json.RawMessage, table map[K]settingsType) (any, error) {
	s, ok := table[t]
	if !ok {
		return nil, unknownPolicy(t, table)
	}
	if len(raw) == 0 || string(raw) == "null" {
		raw = json.RawMessage("{}")
	}
	v, err := s.decode(raw)
	if err != nil {
		e := AsError(misfit(ErrInvalidPolicy, s.shape, raw, err))
		return nil, Errorf(ErrInvalidPolicy, "Settings%s", settingsPath(e.Detail, s.shape))
	}
	return v, nil
}

// settingsPath puts what is wrong with settings behind their name: a path into them, or text about all of them.
func settingsPath(detail string, shape reflect.Type) string {
	name := detail[:strings.IndexFunc(detail+":", func(r rune) bool { return strings.ContainsRune(":.[ ", r) })]
	if _, known := fieldName(shape, name); known {
		return "." + detail
	}
	return ": " + detail
}

func unknownPolicy[K ~string](t K, table map[K]settingsType) error {
	known := make([]string, 0, len(table))
	for k := range table {
		known = append(known, string(k))
	}
	slices.Sort(known)
	if t == "" {
		return Errorf(ErrInvalidPolicyType, "the policy has no Type: use one of %s", strings.Join(known, ", "))
	}
	return Errorf(ErrInvalidPolicyType, "%s is not a policy for this object: use one of %s", quote(string(t)),
		strings.Join(known, ", "))
}

func canonicalType[K ~string](t K, table map[K]settingsType) K {
	if _, ok := table[t]; ok {
		return t
	}
	for k := range table {
		if strings.EqualFold(string(k), string(t)) {
			return k
		}
	}
	return t
}
