package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// fakeContainer is a container's process and what it has of a monitor. Its first
// argument is the program: "run" goes on, "exit N" ends at once, "echo X" writes
// X and ends, "stubborn" heeds only SIGKILL.
type fakeContainer struct {
	status   string
	code     int
	pid      int
	started  time.Time
	finished time.Time
	cfg      api.SandboxConfig
	conns    []*fakeConn
	runs     int // how often a process was let go
	frozen   bool
	pending  []string // signals that came while it was frozen
}

func (c *fakeContainer) end(code int) {
	for _, k := range c.conns {
		close(k.out)
	}
	c.conns = nil
	if c.status == api.StatusRunning {
		c.status, c.code, c.finished = api.StatusExited, code, time.Now()
	}
}

func (c *fakeContainer) write(s string) {
	for _, k := range c.conns {
		k.out <- s
	}
}

// sandbox is one daemon's way to the containers.
type sandbox struct {
	w     *world
	gen   int
	exits *[]chan api.SandboxExit
}

func (s sandbox) enter() (func(), error) {
	s.w.mu.Lock()
	if s.gen != s.w.gen {
		s.w.mu.Unlock()
		return nil, errKilled
	}
	return s.w.mu.Unlock, nil
}

func (s sandbox) Check(cfg api.SandboxConfig) ([]string, error) {
	if cfg.Spec.User == "nobody-knows" {
		return nil, errors.New("user: nobody knows it")
	}
	if cfg.Spec.Isolation == isolationVM {
		return nil, s.w.noVM
	}
	return nil, nil
}

func (s sandbox) Create(_ context.Context, cfg api.SandboxConfig) error {
	if s.w.onCreate != nil {
		s.w.onCreate()
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if !slices.Contains(slices.Collect(maps.Values(s.w.kernel[0])), cfg.NetnsPath) {
		return fmt.Errorf("no compartment at %s", cfg.NetnsPath)
	}
	if c := s.w.ctrs[cfg.ID]; c != nil && c.status == api.StatusRunning {
		return errors.New("it runs")
	}
	runs := 0
	if c := s.w.ctrs[cfg.ID]; c != nil {
		runs = c.runs
	}
	s.w.ctrs[cfg.ID] = &fakeContainer{status: api.StatusCreated, cfg: cfg, runs: runs}
	s.w.disk[cfg.ID] = true
	return nil
}

func (s sandbox) Start(_ context.Context, id string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	c := s.w.ctrs[id]
	if c == nil || c.status != api.StatusCreated {
		return errors.New("it is not created")
	}
	if s.w.startErr != nil {
		return s.w.startErr
	}
	s.w.clock++
	c.status, c.started, c.pid = api.StatusRunning, time.Now(), s.w.clock
	c.runs++
	if s.w.onStart != nil {
		s.w.onStart()
	}
	args := append(slices.Clone(c.cfg.Spec.Args), "", "")
	switch args[0] {
	case "exit":
		code, _ := strconv.Atoi(args[1])
		c.end(code)
		s.publish(id)
	case "echo":
		c.write(args[1])
		c.end(0)
		s.publish(id)
	}
	return nil
}

func (s sandbox) publish(id string) {
	for _, ch := range *s.exits {
		ch <- api.SandboxExit{ID: id}
	}
}

func (s sandbox) RefreshEtc(id, hosts, resolvConf string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if c := s.w.ctrs[id]; c != nil {
		c.cfg.Hosts, c.cfg.ResolvConf = hosts, resolvConf
	}
	return nil
}

func (s sandbox) Pause(_ context.Context, id string) error  { return s.freeze(id, true) }
func (s sandbox) Resume(_ context.Context, id string) error { return s.freeze(id, false) }

func (s sandbox) freeze(id string, freeze bool) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	c := s.w.ctrs[id]
	if c == nil || c.status != api.StatusRunning {
		return errors.New("it does not run")
	}
	c.frozen = freeze
	for !freeze && len(c.pending) > 0 && c.status == api.StatusRunning {
		signal := c.pending[0]
		c.pending = c.pending[1:]
		if err := s.signal(id, c, signal); err != nil {
			return err
		}
	}
	return nil
}

func (s sandbox) Kill(_ context.Context, id, signal string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	c := s.w.ctrs[id]
	if c == nil || c.status != api.StatusRunning {
		return errors.New("it does not run")
	}
	if c.frozen { // a frozen process takes a signal when it goes on
		c.pending = append(c.pending, signal)
		return nil
	}
	return s.signal(id, c, signal)
}

// signal is what a process makes of one. Locked: s.w.mu.
func (s sandbox) signal(id string, c *fakeContainer, signal string) error {
	switch {
	case signal == "SIGKILL":
		c.end(137)
	case signal == "SIGTERM" && len(c.cfg.Spec.Args) > 0 && c.cfg.Spec.Args[0] == "stubborn":
		return nil
	case signal == "SIGTERM":
		c.end(143)
	case signal == "SIGHUP":
		return nil
	default:
		return fmt.Errorf("%q is no signal", signal)
	}
	s.publish(id)
	return nil
}

func (s sandbox) Delete(_ context.Context, id string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if c := s.w.ctrs[id]; c != nil {
		c.end(137)
		delete(s.w.ctrs, id)
	}
	return nil
}

func (s sandbox) Remove(ctx context.Context, id string) error {
	if err := s.Delete(ctx, id); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	delete(s.w.disk, id)
	return nil
}

func (s sandbox) State(_ context.Context, id string) (api.SandboxState, error) {
	leave, err := s.enter()
	if err != nil {
		return api.SandboxState{}, err
	}
	defer leave()
	c := s.w.ctrs[id]
	if c == nil {
		return api.SandboxState{}, nil
	}
	return api.SandboxState{Status: c.status, PID: c.pid, ExitCode: c.code, Started: c.started, Finished: c.finished, Paused: c.frozen && c.status == api.StatusRunning}, nil
}

func (s sandbox) List(context.Context) ([]string, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	all := slices.Collect(maps.Keys(s.w.ctrs))
	all = slices.AppendSeq(all, maps.Keys(s.w.disk))
	slices.Sort(all)
	return slices.Compact(all), nil
}

func (s sandbox) Exits(ctx context.Context) <-chan api.SandboxExit {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	ch := make(chan api.SandboxExit, 1000)
	*s.exits = append(*s.exits, ch)
	return ch
}

// fakeConn is a connection to a container's output.
type fakeConn struct {
	out    chan string
	closed atomic.Bool
}

func (k *fakeConn) Run(ctx context.Context, st api.Streams) error {
	for {
		select {
		case text, ok := <-k.out:
			if !ok {
				return nil
			}
			if st.Stdout != nil {
				if _, err := io.WriteString(st.Stdout, text); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *fakeConn) Close() error { k.closed.Store(true); return nil }

func (s sandbox) Connect(_ context.Context, id string) (Attachment, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	c := s.w.ctrs[id]
	if c == nil || c.status == api.StatusExited {
		return nil, errors.New("it does not run")
	}
	k := &fakeConn{out: make(chan string, 100)}
	c.conns = append(c.conns, k)
	return k, nil
}

func (s sandbox) Attach(ctx context.Context, id string, st api.Streams) error {
	at, err := s.Connect(ctx, id)
	if err != nil {
		return err
	}
	return at.Run(ctx, st)
}

func (s sandbox) Volumes() ([]api.Volume, error) {
	return []api.Volume{{Name: "data"}, {Name: "spare"}}, nil
}

func (s sandbox) RemoveVolume(name string) (func() error, error) {
	if name != "data" && name != "spare" {
		return nil, api.Errorf(api.KindNotFound, "volume %q does not exist", name)
	}
	return func() error { return nil }, nil
}

func (s sandbox) Exec(context.Context, string, api.ExecSpec, api.Streams) (int, error) { return 7, nil }

func (s sandbox) Logs(_ context.Context, _ string, _ api.LogOptions, emit func(api.LogLine) error) error {
	return emit(api.LogLine{Line: "hello"})
}

func (s sandbox) Stats(context.Context, string) (api.Stats, error) {
	return api.Stats{Pids: 1}, nil
}

// Dial gives a connection on which a container says its ID.
func (s sandbox) Dial(_ context.Context, id, path string) (net.Conn, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if c := s.w.ctrs[id]; c == nil || c.status != api.StatusRunning {
		return nil, errors.New("it does not run")
	}
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, id+" "+path)
		_ = theirs.Close()
	}()
	return ours, nil
}

// DialNet is refused, and says who has asked for what.
func (s sandbox) DialNet(_ context.Context, id, network, address string, from uint16) (net.Conn, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if s.w.ctrs[id].status != api.StatusRunning {
		return nil, errors.New("it does not run")
	}
	s.w.dialled = append(s.w.dialled, fmt.Sprintf("%s %s %s %t", s.w.ctrs[id].cfg.Name, network, address, from != 0))
	return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
}

// guestFault is what is wrong with guests.
type guestFault struct {
	silent error           // none of them can be asked
	says   string          // what they could not do
	lacks  map[string]bool // MACs that they do not take over
	keeps  []api.GuestNIC  // what they do not let go of
}

// GuestNICs gives those that are in the kernel in a container's compartment.
func (s sandbox) GuestNICs(ctx context.Context, id string, r api.GuestNICsRequest) (api.GuestNICs, error) {
	for {
		got, err := s.guestNICs(id)
		if err != nil || !r.Wait || got.Seq != r.After {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (s sandbox) guestNICs(id string) (out api.GuestNICs, err error) {
	leave, err := s.enter()
	if err != nil {
		return out, err
	}
	defer leave()
	c := s.w.ctrs[id]
	if c == nil || c.status != api.StatusRunning || c.cfg.Spec.Isolation != isolationVM || s.w.guest.silent != nil {
		return out, errors.Join(errors.New("the VM does not answer"), s.w.guest.silent)
	}
	for k, text := range s.w.kernel[0] {
		if k.kind != "port" || !strings.Contains(text, fmt.Sprintf(" in %q ", c.cfg.NetnsPath)) {
			continue
		}
		words := strings.Fields(text)
		if n := (api.GuestNIC{Name: words[0], MAC: words[1]}); !s.w.guest.lacks[n.MAC] {
			out.NICs = append(out.NICs, n)
		}
	}
	out.NICs = append(out.NICs, s.w.guest.keeps...)
	slices.SortFunc(out.NICs, func(a, b api.GuestNIC) int { return strings.Compare(a.MAC, b.MAC) })
	out.Error = s.w.guest.says
	h := fnv.New64()
	_, _ = fmt.Fprint(h, out.NICs, out.Error)
	out.Seq = h.Sum64()
	return out, nil
}

// endContainer has a container's process end by itself.
func (e *env) endContainer(id string, code int) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if c := e.w.ctrs[id]; c != nil && c.status == api.StatusRunning {
		c.end(code)
		e.sb.publish(id)
	}
}
