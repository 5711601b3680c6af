package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// layers of the kernel, by applier.
var layers = [5]string{"devices", "switch", "nat", "up", "names"}

// world is what outlives the daemon: a kernel as the appliers see it, and the
// processes of containers. A daemon reaches it through fakes that carry its
// generation; when it is killed, they do nothing any more.
type world struct {
	mu     sync.Mutex
	gen    int
	kernel [len(layers)]map[object]string
	writes []string
	facts  plan.Facts
	ctrs   map[string]*fakeContainer
	disk   map[string]bool // writable layers, by container
	held   map[hostPort]string
	served map[hostPort]bool   // held, and translated
	host   map[hostPort]string // ports of the host's own processes
	// fail makes a write of an applier fail; a nil object asks about the whole call.
	fail func(applier int, k *object) error
	// startErr is what the sandbox answers to a start, if set.
	startErr error
	onStart  func()   // when a process is let go
	dialled  []string // from inside VMs
	noVM     error    // why there are no VMs
	noKernel error    // what the host's kernel, and the installed one, lack
	guest    guestFault
	// onCreate is called outside the lock and may take its time.
	onCreate func()
	clock    int
	lan      *lan
	// netns are the network namespaces of other runtimes, by path.
	netns map[string]uint64
	// compartments are the paths of those that are ours, or held by us, by inode.
	compartments map[uint64]string
}

func (w *world) identify(path string) (uint64, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	inode, ok := w.netns[path]
	if !ok {
		return 0, "", fmt.Errorf("%s does not exist", path)
	}
	return inode, w.compartments[inode], nil
}

// moved are the names in their network namespaces of vNICs that a runtime has taken, by the path of the namespace.
func (w *world) moved(_, path string) (string, uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if inode, ok := w.netns[path]; ok {
		return "eth0", inode, nil
	}
	return "", 0, nil
}

var errKilled = errors.New("this daemon is dead")

func newWorld() *world {
	w := &world{ctrs: map[string]*fakeContainer{}, disk: map[string]bool{}, held: map[hostPort]string{}, served: map[hostPort]bool{}, host: map[hostPort]string{}, lan: newLANServer(), netns: map[string]uint64{}, compartments: map[uint64]string{}}
	w.reboot()
	return w
}

// reboot takes away all that a restart of the host does.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.kernel {
		w.kernel[i] = map[object]string{}
	}
	w.clock++
	w.facts.BootID, w.facts.UplinkMTU = fmt.Sprintf("boot-%d", w.clock), cmp.Or(w.facts.UplinkMTU, 1500)
	for _, c := range w.ctrs {
		c.end(0)
	}
	clear(w.ctrs)
}

// text prints the kernel.
func (w *world) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return kernelText(w.kernel)
}

func kernelText(kernel [5]map[object]string) string {
	var b strings.Builder
	for i, m := range kernel {
		keys := slices.SortedFunc(maps.Keys(m), func(x, y object) int { return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(x.id, y.id)) })
		for _, k := range keys {
			fmt.Fprintf(&b, "%s %s %s: %s\n", stepName(i), k.kind, k.id, m[k])
		}
	}
	return b.String()
}

// servicesText has what pointers point to, for a plan that is made anew has others.
func servicesText(list []plan.Service) string {
	var b strings.Builder
	for _, s := range list {
		source := s.Source
		s.Source = nil
		fmt.Fprintf(&b, "%v", s)
		if source != nil {
			fmt.Fprintf(&b, " as %v", *source)
		}
	}
	return b.String()
}

// wanted is what the appliers have to bring about for a plan.
func wanted(p *plan.Plan) (kernel [5]map[object]string) {
	for i := range kernel {
		kernel[i] = map[object]string{}
	}
	for id, n := range p.Namespaces {
		kernel[0][namespaceObject(id)] = n.Path
	}
	for id, s := range p.Switches {
		kernel[1][object{"network", string(id)}] = fmt.Sprintf("%d %s %v mtu %d sets %v", s.Number, s.Mode, s.Subnets, s.MTU, s.Sets)
	}
	for id, b := range p.Balancers {
		kernel[1][balancerObject(id)] = fmt.Sprintf("switch %d %s", b.Switch, servicesText(b.Services))
	}
	for id, port := range p.Ports {
		k := object{"port", string(id)}
		kernel[0][k] = fmt.Sprintf("%s %s in %q mtu %d %v %v", port.VNIC.Device, port.MAC, port.VNIC.Namespace, port.VNIC.MTU, port.VNIC.Addrs, port.VNIC.Routes)
		kernel[1][k] = fmt.Sprintf("switch %d %s %v in %s out %s isolated %t", port.Switch, port.MAC, port.Addrs,
			rulesText(port.Policy.In), rulesText(port.Policy.Out), port.Policy.Isolated)
		if len(port.Forwards) > 0 {
			kernel[2][k] = fmt.Sprint(port.Forwards)
		}
		kernel[3][k] = "up"
		if len(port.Names) > 0 {
			kernel[4][k] = fmt.Sprint(port.Names)
		}
	}
	return kernel
}

func rulesText(l *plan.RuleList) string {
	if l == nil {
		return "all"
	}
	var out []string
	for _, r := range l.Rules {
		out = append(out, r.Source.Text)
	}
	return strings.Join(out, ", ") + ", else " + l.Default.String()
}

// applier is one of the five; gen ties it to a daemon.
type applier struct {
	w   *world
	gen int
	i   int
}

func (a applier) begin() error {
	if a.gen != a.w.gen {
		return errKilled
	}
	if a.w.fail != nil {
		return a.w.fail(a.i, nil)
	}
	return nil
}

// put writes one thing, "" removes it.
func (a applier) put(layer int, k object, text string) error {
	if a.w.kernel[layer][k] == text {
		return nil
	}
	if a.gen != a.w.gen {
		return errKilled
	}
	if a.w.fail != nil {
		if err := a.w.fail(a.i, &k); err != nil {
			return &plan.ObjectError{Kind: k.kind, ID: k.id, Err: err}
		}
	}
	a.w.writes = append(a.w.writes, fmt.Sprintf("%s %s %s: %s", layers[layer], k.kind, k.id, text))
	if text == "" {
		delete(a.w.kernel[layer], k)
	} else {
		a.w.kernel[layer][k] = text
	}
	return nil
}

// cutter is an applier that cuts off what goes, as those of the switch and the translation do.
type cutter struct{ applier }

func (c cutter) Cut(_ context.Context, d *plan.Delta) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if err := c.begin(); err != nil {
		return err
	}
	var errs []error
	for id, ch := range d.Ports {
		if ch.New == nil {
			errs = append(errs, c.put(c.i, object{"port", string(id)}, ""))
		}
	}
	return errors.Join(errs...)
}

func (a applier) compartmentThere(p *plan.Port) bool {
	if p == nil || p.VNIC.Home() == "" {
		return true
	}
	for _, path := range a.w.kernel[0] {
		if path == p.VNIC.Namespace {
			return true
		}
	}
	return false
}

// Update follows the real ones: devices makes compartments and devices, up takes
// them away.
func (a applier) Update(_ context.Context, p *plan.Plan, d *plan.Delta) error {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	if err := a.begin(); err != nil {
		return err
	}
	var errs []error
	want := wanted(p)[a.i]
	for _, k := range touchedObjects(d) {
		port, isPort := d.Ports[plan.PortID(k.id)]
		removed := k.kind == "port" && isPort && port.New == nil ||
			k.kind == "namespace" && d.Namespaces[hcn.GUID(k.id)].New == nil ||
			k.kind == "network" && d.Switches[hcn.GUID(k.id)].New == nil
		if a.i == 0 && removed {
			continue
		}
		if a.i == 0 && k.kind == "port" && !a.compartmentThere(port.New) {
			errs = append(errs, &plan.ObjectError{Kind: "port", ID: k.id, Err: errors.New("the compartment has vanished")})
			continue
		}
		errs = append(errs, a.put(a.i, k, want[k]))
		var was, is []plan.Forward
		if isPort && removed {
			was = port.Old.Forwards
		}
		if isPort && port.New != nil {
			is = port.New.Forwards
		}
		if b, ok := d.Balancers[hcn.GUID(k.id)]; ok && k.kind == "loadbalancer" {
			if b.Old != nil {
				was = b.Old.Forwards
			}
			if b.New != nil {
				is = b.New.Forwards
			}
		}
		if a.i == 2 {
			a.w.serve(was, is)
		}
		if a.i == 3 && removed {
			errs = append(errs, a.put(0, k, ""))
		}
	}
	return errors.Join(errs...)
}

// serve is what becomes of the ports of forwards that go and come.
func (w *world) serve(was, is []plan.Forward) {
	for _, f := range was {
		// The translation gives up what it does not serve; by now somebody else may have it.
		stays := slices.ContainsFunc(is, func(g plan.Forward) bool { return hostPortOf(g) == hostPortOf(f) })
		if k := hostPortOf(f); w.served[k] && !stays {
			delete(w.held, k)
			delete(w.served, k)
		}
	}
	for _, f := range is {
		if !isNoHosts(f) {
			w.served[hostPortOf(f)] = true
		}
	}
}

// Preview says what Update would write.
func (a applier) Preview(_ context.Context, p *plan.Plan, d *plan.Delta) ([]plan.Write, error) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	if err := a.begin(); err != nil {
		return nil, err
	}
	var out []plan.Write
	note := func(layer int, k object, text string) {
		if have := a.w.kernel[layer][k]; have != text {
			sign := plan.Adds
			switch {
			case text == "":
				sign = plan.Removes
			case have != "":
				sign = plan.Changes
			}
			out = append(out, plan.Write{Owner: k.id, Object: layers[layer], Sign: sign, Text: fmt.Sprintf("%s %s: %s", k.kind, k.id, text)})
		}
	}
	want := wanted(p)[a.i]
	for _, k := range touchedObjects(d) {
		removed := want[k] == ""
		if a.i != 0 || !removed {
			note(a.i, k, want[k])
		}
		if a.i == 3 && removed {
			note(0, k, "")
		}
	}
	return out, nil
}

// Sync compares everything.
func (a applier) Sync(_ context.Context, p *plan.Plan) (drift []plan.Drift, err error) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	if err := a.begin(); err != nil {
		return nil, err
	}
	var errs []error
	all := wanted(p)
	want, have := all[a.i], maps.Clone(a.w.kernel[a.i])
	keys := slices.SortedFunc(maps.Keys(want), func(x, y object) int { return cmp.Compare(x.kind, y.kind) }) // namespaces first
	for _, k := range keys {
		if have[k] == want[k] {
			continue
		}
		d := plan.Drift{Object: k.kind + " " + k.id, ID: k.id, Found: "missing"}
		if k.kind == "namespace" {
			d.Found = "vanished"
			if k.id != string(plan.ResolverNamespace) {
				drift = append(drift, d)
				continue
			}
		}
		if a.i == 0 && k.kind == "port" && !a.compartmentThere(p.Ports[plan.PortID(k.id)]) {
			continue
		}
		drift = append(drift, d)
		errs = append(errs, a.put(a.i, k, want[k]))
	}
	if a.i == 0 {
		return drift, errors.Join(errs...)
	}
	for k := range have {
		if want[k] == "" {
			errs = append(errs, a.put(a.i, k, ""))
		}
	}
	if a.i == 3 {
		for k := range maps.Clone(a.w.kernel[0]) {
			if all[0][k] == "" {
				errs = append(errs, a.put(0, k, ""))
			}
		}
	}
	return drift, errors.Join(errs...)
}

// reserver is what holds the host's ports; it dies with its daemon.
type reserver struct {
	w   *world
	gen int
}

func (k hostPort) meets(o hostPort) bool {
	return k.proto == o.proto && k.port == o.port && k.bind.Is4() == o.bind.Is4() &&
		(k.bind == o.bind || k.bind.IsUnspecified() || o.bind.IsUnspecified())
}

// noHostAddress is one that the fake host does not have. Nor has it virtual addresses.
var noHostAddress = netip.MustParseAddr("203.0.113.9")

func isNoHosts(f plan.Forward) bool {
	return f.Bind == noHostAddress || f.Scope == plan.ScopeAddress && (netip.MustParsePrefix("10.96.0.0/16").Contains(f.Bind) || netip.MustParsePrefix("fd00:96::/64").Contains(f.Bind))
}

func (r reserver) Reserve(f plan.Forward, owner string) error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.reserve(f, owner)
}

func (r reserver) Retake(f plan.Forward, owner string) error { return r.Reserve(f, owner) }

func (r reserver) reserve(f plan.Forward, owner string) error {
	if r.gen != r.w.gen {
		return errKilled
	}
	k := hostPortOf(f)
	if isNoHosts(f) {
		return fmt.Errorf("reserve it: %w", plan.ErrNoHostAddress)
	}
	for o, who := range r.w.held {
		if k.meets(o) && who != owner {
			return fmt.Errorf("port %d is published by %s", k.port, who)
		}
	}
	for o, who := range r.w.host {
		if k.meets(o) {
			return fmt.Errorf("port %d is in use by process %s", k.port, who)
		}
	}
	if _, had := r.w.held[k]; !had {
		delete(r.w.served, k)
	}
	r.w.held[k] = owner
	return nil
}

func (r reserver) Release(f plan.Forward, owner string) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.gen == r.w.gen && r.w.held[hostPortOf(f)] == owner {
		delete(r.w.held, hostPortOf(f))
	}
}

func (r reserver) HostPick(owner string, fs ...plan.Forward) (uint16, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for port := uint16(50000); port < 50100; port++ {
		free := true
		for _, f := range fs {
			f.Port = port
			for o := range r.w.held {
				free = free && !hostPortOf(f).meets(o)
			}
			for o := range r.w.host {
				free = free && !hostPortOf(f).meets(o)
			}
		}
		if !free {
			continue
		}
		for _, f := range fs {
			f.Port = port
			if err := r.reserve(f, owner); err != nil {
				return 0, err
			}
		}
		return port, nil
	}
	return 0, errors.New("all are in use")
}

// takeHostPort has a process of the host bind a port.
func (w *world) takeHostPort(proto uint8, addr string, port uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.host[hostPort{proto, netip.MustParseAddr(addr), port}] = "nginx (pid 812)"
}

// kernels are the host's, the installed one of VMs, and one by the name of "kernel".
type kernels struct{ w *world }

func (k kernels) Host(string) error { return k.w.noKernel }

func (k kernels) Guest(_ context.Context, _, want string) (string, error) {
	switch {
	case want == "kernel", want == "" && k.w.noKernel != nil:
		return "sha256:2", nil
	case want != "":
		return "", api.Errorf(api.KindNotFound, "image %q is not here", want)
	}
	return "", nil
}

// images holds one image.
type images struct{}

func (images) Inspect(ref string) (api.Image, error) {
	if ref != "img" && ref != "sha256:1" {
		return api.Image{}, api.Errorf(api.KindNotFound, "image %q is not here", ref).Hint("bulkhead pull %s", ref)
	}
	return api.Image{ID: "sha256:1", Names: []string{"img"}, Config: api.ImageConfig{Cmd: []string{"run"}}}, nil
}

func (i images) List() ([]api.Image, error) {
	img, err := i.Inspect("img")
	return []api.Image{img}, err
}

func (images) Layers(_ context.Context, id string) ([]string, error) {
	if id == "sha256:2" {
		return []string{"/kernel"}, nil
	}
	return []string{"/layer"}, nil
}

func (i images) Pull(_ context.Context, r api.PullRequest, _ func(api.ImageProgress)) (api.Image, error) {
	return i.Inspect(r.Reference)
}

func (images) Push(context.Context, api.PullRequest, func(api.ImageProgress)) error { return nil }

func (i images) Import(context.Context, io.Reader, string, api.ImageConfig) (api.Image, error) {
	return i.Inspect("img")
}
func (images) Tag(string, string) error { return nil }

func (images) Remove(_ string, force bool, inUse []string) error {
	if len(inUse) > 0 && !force {
		return api.Errorf(api.KindConflict, "it is in use")
	}
	return nil
}
func (images) Prune([]string) ([]string, error) { return nil, nil }

func (images) Login(context.Context, api.LoginRequest) error { return nil }

func (images) Logout(string) error { return nil }
