package hcn

import "encoding/json"

// Version is a schema or API version.
type Version struct {
	Major uint32
	Minor uint32
}

// SchemaVersion is the version of a document's shape.
type SchemaVersion = Version

// check refuses versions that nobody has defined: they may mean something else.
func (v Version) check() error {
	if v.Major > 2 {
		return invalid(ErrRequestUnsupported, "SchemaVersion", "version %d.%d is not known: use Major 2", v.Major, v.Minor)
	}
	return nil
}

// V2 is the schema version that this package writes. A document without Major 2 is read as version 1 (HCN schema).
func V2() SchemaVersion { return SchemaVersion{Major: 2} }

// Health is what a service reports about an object to a query with the Detailed flag.
type Health struct {
	Data  json.RawMessage `json:",omitempty"`
	Extra *ExtraHealth    `json:",omitempty"`
}

// ExtraHealth holds the parts of Health that name other objects.
type ExtraHealth struct {
	Resources        json.RawMessage `json:",omitempty"`
	SharedContainers json.RawMessage `json:",omitempty"`
	LayeredOn        string          `json:",omitempty"`
	SwitchGuid       string          `json:",omitempty"`
	UtilityVM        string          `json:",omitempty"`
	VirtualMachine   string          `json:",omitempty"`
}

// Dns is what a compartment's resolver is set up with.
type Dns struct {
	Domain     string   `json:",omitempty"`
	Search     []string `json:",omitempty"`
	ServerList []string `json:",omitempty"`
	Options    []string `json:",omitempty"`
}

// Route is a route in a compartment, or the default route that names a subnet's gateway.
type Route struct {
	NextHop           string `json:",omitempty"`
	DestinationPrefix string `json:",omitempty"`
	Metric            uint16 `json:",omitempty"`
}

// MacRange is an inclusive range of hardware addresses.
type MacRange struct {
	StartMacAddress MAC `json:",omitempty"`
	EndMacAddress   MAC `json:",omitempty"`
}

// MacPool is where the addresses of a network's endpoints come from.
type MacPool struct {
	Ranges []MacRange `json:",omitempty"`
}
