package engine

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// The tables of the store.
var (
	networkTable   = store.NewTable[plan.Network]("networks")
	endpointTable  = store.NewTable[plan.Endpoint]("endpoints")
	namespaceTable = store.NewTable[plan.NamespaceRow]("namespaces")
	containerTable = store.NewTable[containerRow]("containers")
	settingTable   = store.NewTable[string]("settings")
)

// state is the store in memory, with the indexes that keep every operation
// independent of how much there is. Rows are never changed in place: a change
// replaces the pointer.
type state struct {
	networks   map[hcn.GUID]*plan.Network
	endpoints  map[hcn.GUID]*plan.Endpoint
	namespaces map[hcn.GUID]*plan.NamespaceRow
	containers map[string]*containerRow
	settings   map[string]string
	farewells  map[hcn.GUID]*farewell
	routes     map[hcn.GUID]*plan.SDNRoute
	balancers  map[hcn.GUID]*plan.LoadBalancer
	guests     map[hcn.GUID]*guestRow

	seq uint64 // of the newest object
	rev uint64 // of the store's last change that concerns the plan

	byNetwork   map[hcn.GUID]map[hcn.GUID]*plan.Endpoint // endpoints by network
	byNamespace map[hcn.GUID]map[hcn.GUID]*plan.Endpoint // attached ones by namespace
	addrs       map[hcn.GUID]map[netip.Addr]hcn.GUID     // by network: address → endpoint
	macs        map[hcn.GUID]map[plan.MAC]hcn.GUID
	leased      map[hcn.GUID]struct{}       // endpoints that have their addresses from a LAN
	parked      map[hcn.GUID]struct{}       // endpoints whose vNIC waits for a runtime to move it
	lastAddr    map[netip.Prefix]netip.Addr // the newest pick in a subnet
	avoided     map[lanAddr]time.Time       // what somebody else on a LAN had
	netNames    map[string]hcn.GUID
	ctrNames    map[string]string
	ports       map[portKey]map[hcn.GUID]int                   // who publishes a port, and how often
	numbers     map[uint32]int                                 // how many namespaces have a number
	routesOf    map[hcn.GUID]map[hcn.GUID]*plan.SDNRoute       // by the endpoints in their documents
	byBackend   map[hcn.GUID]map[hcn.GUID]*plan.LoadBalancer   // so, too
	bySource    map[netip.Addr]map[hcn.GUID]*plan.LoadBalancer // by their SourceVIP
	frontends   map[plan.Frontend]hcn.GUID                     // whose service is what
	services    int                                            // of all load balancers
	served      int                                            // back ends of all services together
	inside      map[hcn.GUID]map[uint16]hcn.GUID               // by network: whose port on its own address is what
	lastInside  map[hcn.GUID]uint16                            // the newest pick of those
	machines    map[hcn.GUID]string                            // containers by the VMs that they have
	guestOf     map[hcn.GUID]hcn.GUID                          // guest network services by VM
	vmPorts     map[hcn.GUID]hcn.GUID                          // endpoints by the IDs of their ports of VMs
	byMachine   map[hcn.GUID]map[hcn.GUID]struct{}             // and by the VMs

	// remotes are the facts of control planes, kept in no store, with who told them; elsewhere says by network and address
	// whose they are.
	remotes map[hcn.GUID]*plan.Remote
	// secure are the keys of the cluster, nil until they are told.
	secure    *plan.Secure
	toldBy    map[hcn.GUID]string
	elsewhere map[hcn.GUID]map[netip.Addr]hcn.GUID

	// shared are load balancers of other hosts of the cluster, kept in no store; sharedBy has them by back ends, sharedAt says by network
	// whose service is what.
	shared                       map[hcn.GUID]*plan.LoadBalancer
	sharedBy                     map[hcn.GUID]map[hcn.GUID]*plan.LoadBalancer
	sharedAt                     map[hcn.GUID]map[plan.Frontend]hcn.GUID
	sharedServices, sharedServed int

	aside []asideRow
}

type portKey struct {
	proto uint8
	port  uint16
}

func newState() *state {
	return &state{
		networks: map[hcn.GUID]*plan.Network{}, endpoints: map[hcn.GUID]*plan.Endpoint{},
		namespaces: map[hcn.GUID]*plan.NamespaceRow{}, containers: map[string]*containerRow{},
		settings: map[string]string{}, farewells: map[hcn.GUID]*farewell{}, routes: map[hcn.GUID]*plan.SDNRoute{},
		routesOf: map[hcn.GUID]map[hcn.GUID]*plan.SDNRoute{}, leased: map[hcn.GUID]struct{}{}, parked: map[hcn.GUID]struct{}{},
		byNetwork: map[hcn.GUID]map[hcn.GUID]*plan.Endpoint{}, byNamespace: map[hcn.GUID]map[hcn.GUID]*plan.Endpoint{},
		addrs: map[hcn.GUID]map[netip.Addr]hcn.GUID{}, macs: map[hcn.GUID]map[plan.MAC]hcn.GUID{},
		lastAddr: map[netip.Prefix]netip.Addr{}, avoided: map[lanAddr]time.Time{}, netNames: map[string]hcn.GUID{}, ctrNames: map[string]string{},
		ports: map[portKey]map[hcn.GUID]int{}, numbers: map[uint32]int{},
		balancers: map[hcn.GUID]*plan.LoadBalancer{}, byBackend: map[hcn.GUID]map[hcn.GUID]*plan.LoadBalancer{}, bySource: map[netip.Addr]map[hcn.GUID]*plan.LoadBalancer{}, frontends: map[plan.Frontend]hcn.GUID{},
		guests: map[hcn.GUID]*guestRow{}, machines: map[hcn.GUID]string{}, guestOf: map[hcn.GUID]hcn.GUID{},
		vmPorts: map[hcn.GUID]hcn.GUID{}, byMachine: map[hcn.GUID]map[hcn.GUID]struct{}{},
		inside: map[hcn.GUID]map[uint16]hcn.GUID{}, lastInside: map[hcn.GUID]uint16{},
		remotes: map[hcn.GUID]*plan.Remote{}, toldBy: map[hcn.GUID]string{}, elsewhere: map[hcn.GUID]map[netip.Addr]hcn.GUID{},
		shared: map[hcn.GUID]*plan.LoadBalancer{}, sharedBy: map[hcn.GUID]map[hcn.GUID]*plan.LoadBalancer{}, sharedAt: map[hcn.GUID]map[plan.Frontend]hcn.GUID{},
	}
}

func (s *state) intent() *plan.Intent {
	return &plan.Intent{
		Networks: s.networks, Endpoints: s.endpoints, Namespaces: s.namespaces, Routes: s.routesOf, Remotes: s.remotes,
		Balancers: s.balancers, ByBackend: s.byBackend, Shared: s.shared, SharedBy: s.sharedBy, Frontends: s.frontends, Secure: s.secure,
		BySource: s.bySource, Holders: s.addrs,
	}
}

// load reads the store that outlives a run of the host, and the one that does not,
// if there is one. The second may be gone: then an endpoint is in a namespace that
// is not there, which it thereby has left.
func load(lasting, passing *store.DB) (*state, error) {
	s := newState()
	for _, db := range []*store.DB{lasting, passing} {
		if db == nil {
			continue
		}
		if err := s.read(db); err != nil {
			return nil, err
		}
		rev, err := db.Revision()
		if err != nil {
			return nil, err
		}
		s.rev += rev
	}
	for id, ep := range maps.Clone(s.endpoints) {
		if ep.Attach != nil && s.namespaces[ep.Attach.Namespace] == nil {
			row := detached(ep)
			row.Doc.State = hcn.EndpointCreated // nobody detached it: it was never attached in this run
			s.setEndpoint(id, row)
		}
	}
	return s, nil
}

func (s *state) read(db *store.DB) error {
	// Networks first: an endpoint without its network would be in nobody's way, and
	// in everybody's.
	return errors.Join(
		readTable(s, db, networkTable, func(k string, r plan.Network) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			s.setNetwork(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, endpointTable, func(k string, r plan.Endpoint) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			if n := r.Doc.HostComputeNetwork; s.isAside("network", string(n)) && !fits(&r, s.networks[n]) {
				return fmt.Errorf("its network %s cannot be read", n)
			}
			s.setEndpoint(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, balancerTable, func(k string, r plan.LoadBalancer) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			s.setBalancer(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, namespaceTable, func(k string, r plan.NamespaceRow) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			s.setNamespace(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, containerTable, func(k string, r containerRow) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			if other, ok := s.ctrNames[r.Doc.Name]; ok {
				return fmt.Errorf("container %.12s is called %s by now", other, r.Doc.Name)
			}
			s.setContainer(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, farewellTable, func(k string, r farewell) error {
			if err := itself(k, r.Want.Endpoint); err != nil {
				return err
			}
			s.farewells[r.Want.Endpoint] = &r
			return nil
		}),
		readTable(s, db, routeTable, func(k string, r plan.SDNRoute) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			s.setRoute(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, guestTable, func(k string, r guestRow) error {
			if err := itself(k, r.Doc.ID); err != nil {
				return err
			}
			s.setGuest(r.Doc.ID, &r)
			return nil
		}),
		readTable(s, db, settingTable, func(k, v string) error { s.settings[k] = v; return nil }),
	)
}

// movePassing moves namespaces to the store that ends with them: versions before
// had one store.
func movePassing(lasting, passing *store.DB) error {
	rows := map[string]plan.NamespaceRow{}
	// What is aside there, load finds.
	_, err := namespaceTable.Read(lasting, func(k string, r plan.NamespaceRow) error { rows[k] = r; return nil })
	if err != nil || len(rows) == 0 || passing == nil {
		return err
	}
	_, err = passing.Update(func(tx *store.Tx) error {
		for k, r := range rows {
			if err := namespaceTable.Put(tx, k, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = lasting.Update(func(tx *store.Tx) error {
		for k := range rows {
			if err := namespaceTable.Delete(tx, k); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

func insert[K, L comparable, V any](m map[K]map[L]V, k K, l L, v V) {
	if m[k] == nil {
		m[k] = map[L]V{}
	}
	m[k][l] = v
}

func drop[K, L comparable, V any](m map[K]map[L]V, k K, l L) {
	delete(m[k], l)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func (s *state) setNetwork(id hcn.GUID, row *plan.Network) {
	if old := s.networks[id]; old != nil {
		delete(s.networks, id)
		if s.netNames[old.Doc.Name] == id {
			delete(s.netNames, old.Doc.Name)
		}
		drop(s.macs, id, old.GatewayMAC)
	}
	if row == nil {
		return
	}
	s.networks[id] = row
	if row.Doc.Name != "" {
		s.netNames[row.Doc.Name] = id
	}
	insert(s.macs, id, row.GatewayMAC, id)
	s.seq = max(s.seq, row.Seq)
}

func (s *state) setEndpoint(id hcn.GUID, row *plan.Endpoint) {
	s.setPort(id, s.endpoints[id], row)
	if old := s.endpoints[id]; old != nil {
		net := old.Doc.HostComputeNetwork
		delete(s.endpoints, id)
		delete(s.leased, id)
		delete(s.parked, id)
		drop(s.byNetwork, net, id)
		if old.Attach != nil {
			drop(s.byNamespace, old.Attach.Namespace, id)
		}
		for _, a := range old.Addrs {
			drop(s.addrs, net, a.Addr())
		}
		if s.macs[net][old.MAC] == id {
			drop(s.macs, net, old.MAC)
		}
		for _, f := range plan.Forwards(old) {
			k := portKey{f.Protocol, f.Port}
			if s.ports[k][id]--; s.ports[k][id] <= 0 {
				drop(s.ports, k, id)
			}
		}
	}
	if row == nil {
		return
	}
	net := row.Doc.HostComputeNetwork
	s.endpoints[id] = row
	insert(s.byNetwork, net, id, row)
	if row.Leased {
		s.leased[id] = struct{}{}
	}
	if row.Attach != nil && row.Attach.Parked {
		s.parked[id] = struct{}{}
	}
	if row.Attach != nil {
		insert(s.byNamespace, row.Attach.Namespace, id, row)
	}
	for _, a := range row.Addrs {
		insert(s.addrs, net, a.Addr(), id)
	}
	// A machine outside of the network is met by the host, whatever its MAC: clients give all of them that of the host.
	if n := s.networks[net]; n == nil || !row.Doc.ByHost(&n.Doc) {
		insert(s.macs, net, row.MAC, id)
	}
	for _, f := range plan.Forwards(row) {
		k := portKey{f.Protocol, f.Port}
		insert(s.ports, k, id, s.ports[k][id]+1)
	}
	s.seq = max(s.seq, row.Seq)
}

func (s *state) setNamespace(id hcn.GUID, row *plan.NamespaceRow) {
	if old := s.namespaces[id]; old != nil {
		delete(s.namespaces, id)
		if s.numbers[old.Number]--; s.numbers[old.Number] <= 0 {
			delete(s.numbers, old.Number)
		}
	}
	if row == nil {
		return
	}
	s.namespaces[id] = row
	s.numbers[row.Number]++
	s.seq = max(s.seq, row.Seq)
}

func (s *state) setContainer(id string, row *containerRow) {
	if old := s.containers[id]; old != nil {
		delete(s.containers, id)
		delete(s.ctrNames, old.Doc.Name)
		if old.Shares == "" {
			delete(s.machines, s.machineOf(old))
		}
	}
	if row == nil {
		return
	}
	s.containers[id] = row
	s.ctrNames[row.Doc.Name] = id
	if machine := s.machineOf(row); machine != "" && row.Shares == "" {
		s.machines[machine] = id
	}
	s.seq = max(s.seq, row.Seq)
}

// markMade takes along what the loop has found out about compartments since.
func (t *txn) markMade() {
	made := t.e.made
	for id := range maps.Clone(made) {
		if old := t.st.namespaces[id]; old != nil && !old.Made {
			row := *old
			row.Made = true
			t.setNamespace(id, &row)
		}
		delete(made, id)
		t.undo = append(t.undo, func() { made[id] = struct{}{} })
	}
}

func (t *txn) nextSeq() uint64 { return t.st.seq + 1 }

func (t *txn) putNetwork(id hcn.GUID, row *plan.Network) {
	old := t.st.networks[id]
	t.st.setNetwork(id, row)
	t.undo = append(t.undo, func() { t.st.setNetwork(id, old) })
	t.dirty.Networks[id] = struct{}{}
	t.save = append(t.save, saveRow(networkTable, false, string(id), row, old))
}

func (t *txn) putEndpoint(id hcn.GUID, row *plan.Endpoint) {
	old := t.st.endpoints[id]
	t.attachEvent(old, row)
	t.st.setEndpoint(id, row)
	t.undo = append(t.undo, func() { t.st.setEndpoint(id, old) })
	t.dirty.Endpoints[id] = struct{}{}
	if old != nil && old.Attach != nil && (row == nil || row.Attach == nil) {
		defer t.vacated(old.Attach.Namespace)
	}
	// An endpoint never changes between the stores: its ID is free before it is made.
	passing := row != nil && row.Boot != "" || row == nil && old != nil && old.Boot != ""
	t.save = append(t.save, saveRow(endpointTable, passing, string(id), row, old))
}

func (t *txn) putNamespace(id hcn.GUID, row *plan.NamespaceRow) {
	t.dirty.Namespaces[id] = struct{}{}
	t.setNamespace(id, row)
}

// setNamespace changes what the plan does not read.
func (t *txn) setNamespace(id hcn.GUID, row *plan.NamespaceRow) {
	old := t.st.namespaces[id]
	t.st.setNamespace(id, row)
	t.undo = append(t.undo, func() { t.st.setNamespace(id, old) })
	t.save = append(t.save, saveRow(namespaceTable, true, string(id), row, old))
}

func (t *txn) putContainer(id string, row *containerRow) {
	old := t.st.containers[id]
	t.st.setContainer(id, row)
	t.undo = append(t.undo, func() { t.st.setContainer(id, old) })
	t.save = append(t.save, saveRow(containerTable, false, id, row, old))
}

func (t *txn) putSetting(key, value string) {
	old, had := t.st.settings[key]
	t.st.settings[key] = value
	t.undo = append(t.undo, func() {
		if had {
			t.st.settings[key] = old
		} else {
			delete(t.st.settings, key)
		}
	})
	was := &old
	if !had {
		was = nil
	}
	t.save = append(t.save, saveRow(settingTable, false, key, &value, was))
}

func saveRow[T any](table store.Table[T], passing bool, key string, row, old *T) saving {
	return saving{
		passing: passing,
		put:     func(tx *store.Tx) error { return putOrDelete(table, tx, key, row) },
		back:    func(tx *store.Tx) error { return putOrDelete(table, tx, key, old) },
	}
}

func putOrDelete[T any](table store.Table[T], tx *store.Tx, key string, row *T) error {
	if row == nil {
		return table.Delete(tx, key)
	}
	return table.Put(tx, key, *row)
}
