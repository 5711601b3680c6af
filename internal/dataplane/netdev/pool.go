package netdev

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// pool holds a few network namespaces that are complete but for their name: making one is half of an attach. They hang
// on nothing but file descriptors, so they end with the daemon, however it ends, and there is nothing to prune. Once
// it is known what the ports of this host look like, there is a veth pair in each (see spare): a daemon that only restarts makes
// no devices.
type pool struct {
	n     *Netdev
	size  int
	conn  *conn // in the host's network namespace
	stop  chan struct{}
	done  chan struct{}
	taken chan struct{} // holds at most one wake-up

	mu    sync.Mutex
	ready []*space // without a pair
	pairs []*spare
	// promised are spares whose ID somebody has.
	promised map[plan.PortID]*spare
	// model is what pairs are made like; nil before the first compartment that was made with an endpoint.
	model *model
	// devices are the switch sides of all spares, those that are just being made too.
	devices map[string]bool
}

// refillAfter keeps the refill out of the way of a burst of attaches, which would only compete with it.
const refillAfter = 20 * time.Millisecond

// newPool starts a pool; one of size 0 stays empty.
func newPool(n *Netdev, size int, c *conn) *pool {
	p := &pool{
		n: n, size: size, conn: c, stop: make(chan struct{}), done: make(chan struct{}), taken: make(chan struct{}, 1),
		promised: map[plan.PortID]*spare{}, devices: map[string]bool{},
	}
	if size == 0 {
		close(p.done)
	}
	return p
}

// start fills the pool.
func (p *pool) start() {
	if p.size > 0 {
		p.taken <- struct{}{}
		go p.run()
	}
}

func (p *pool) close() {
	close(p.stop)
	<-p.done
	for _, s := range p.ready {
		s.close()
	}
	for _, s := range p.pairs {
		p.n.drop(s)
	}
	for _, s := range p.promised {
		p.n.drop(s)
	}
}

// take gives a plain namespace, or nil when none is ready.
func (p *pool) take() *space {
	if p.size == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.again()
	if len(p.ready) == 0 {
		return nil
	}
	s := p.ready[len(p.ready)-1]
	p.ready = p.ready[:len(p.ready)-1]
	return s
}

// promise keeps a spare for whoever gets its ID. There are no more promises at a time than namespaces in the pool.
func (p *pool) promise() hcn.GUID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pairs) == 0 || len(p.promised) >= p.size {
		return ""
	}
	s := p.pairs[len(p.pairs)-1]
	p.pairs = p.pairs[:len(p.pairs)-1]
	s.until = time.Now().Add(promiseLife)
	p.promised[s.id] = s
	p.again()
	return s.endpoint
}

// giveBack ends a promise that was not claimed.
func (p *pool) giveBack(id plan.PortID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.promised[id]; s != nil {
		delete(p.promised, id)
		p.pairs = append(p.pairs, s)
	}
}

// claim gives the spare that was promised to a port, or nil.
func (p *pool) claim(id plan.PortID) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.promised[id]
	delete(p.promised, id)
	if s != nil {
		delete(p.devices, s.near.name)
	}
	return s
}

// like has pairs made like this from now on.
func (p *pool) like(m model) {
	if p.size == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.model == nil || *p.model != m {
		p.model = &m
		p.again()
	}
}

// note takes down the name of a spare that is about to be made.
func (p *pool) note(device string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices[device] = true
}

func (p *pool) forget(device string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.devices, device)
}

// has tells whether a device is the switch side of a spare.
func (p *pool) has(device string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.devices[device]
}

func (p *pool) run() {
	defer close(p.done)
	for {
		var expire <-chan time.Time
		if wait, any := p.nextEnd(); any {
			expire = time.After(wait)
		}
		select {
		case <-p.stop:
			return
		case <-expire:
			p.expire(time.Now())
			continue
		case <-p.taken:
		}
		// Wait until nothing has been taken for a while, then fill up, or until something is.
		select {
		case <-p.stop:
			return
		case <-p.taken:
			p.again()
		case <-time.After(refillAfter):
			p.fill()
		}
	}
}

// nextEnd is how long the oldest promise still lasts.
func (p *pool) nextEnd() (wait time.Duration, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.promised {
		if left := max(0, time.Until(s.until)); !any || left < wait {
			wait, any = left, true
		}
	}
	return wait, any
}

// expire gives up the spares that nobody came for.
func (p *pool) expire(now time.Time) {
	p.mu.Lock()
	var gone []*spare
	maps.DeleteFunc(p.promised, func(_ plan.PortID, s *spare) bool {
		over := !now.Before(s.until)
		if over {
			gone = append(gone, s)
		}
		return over
	})
	p.mu.Unlock()
	for _, s := range gone {
		p.n.drop(s)
	}
}

func (p *pool) again() {
	select {
	case p.taken <- struct{}{}:
	default:
	}
}

// fill adds namespaces, and then pairs, until there are enough, or somebody wants the processor for an attach.
func (p *pool) fill() {
	for len(p.taken) == 0 {
		select {
		case <-p.stop:
			return
		default:
		}
		plain, m := p.lacks()
		if !plain && m == nil {
			return
		}
		s, err := p.n.newNamespace()
		if err == nil && !plain {
			err = p.addPair(s, *m)
			s = nil
		}
		if err != nil {
			p.n.log.Warn("namespace pool stays short", "error", err)
			return
		}
		if s != nil {
			p.mu.Lock()
			p.ready = append(p.ready, s)
			p.mu.Unlock()
		}
	}
}

func (p *pool) addPair(in *space, m model) error {
	s, err := p.n.newSpare(in, m)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.pairs = append(p.pairs, s)
	p.mu.Unlock()
	return nil
}

// lacks tells what has to be made next: a plain namespace, or one with a pair like the model, or nothing.
func (p *pool) lacks() (plain bool, m *model) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) < p.size {
		return true, nil
	}
	if p.model != nil && len(p.pairs) < (p.size+1)/2 {
		return false, p.model
	}
	return false, nil
}

// newNamespace makes a network namespace that is not bound yet: loopback up, born-with settings made, a socket open.
func (n *Netdev) newNamespace() (*space, error) {
	s := &space{fd: -1, own: true, next: 2}
	err := n.home.elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error { return n.furnish(s) })
	if err != nil {
		return nil, err
	}
	return s, nil
}
