package netdev

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pool holds a few network namespaces that are complete but for their name: making one is half of an attach. They hang
// on nothing but file descriptors, so they end with the daemon, however it ends, and there is nothing to prune.
type pool struct {
	n     *Netdev
	size  int
	stop  chan struct{}
	done  chan struct{}
	taken chan struct{} // holds at most one wake-up

	mu    sync.Mutex
	ready []*space
}

// refillAfter keeps the refill out of the way of a burst of attaches, which would only compete with it.
const refillAfter = 20 * time.Millisecond

// newPool starts a pool; one of size 0 stays empty.
func newPool(n *Netdev, size int) *pool {
	p := &pool{n: n, size: size, stop: make(chan struct{}), done: make(chan struct{}), taken: make(chan struct{}, 1)}
	if size == 0 {
		close(p.done)
		return p
	}
	p.taken <- struct{}{}
	go p.run()
	return p
}

func (p *pool) close() {
	close(p.stop)
	<-p.done
	for _, s := range p.ready {
		s.close()
	}
}

// take gives a namespace, or nil when none is ready.
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

func (p *pool) run() {
	defer close(p.done)
	for {
		select {
		case <-p.stop:
			return
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

func (p *pool) again() {
	select {
	case p.taken <- struct{}{}:
	default:
	}
}

// fill adds namespaces until there are enough, or somebody wants the processor for an attach.
func (p *pool) fill() {
	for len(p.taken) == 0 && p.lacks() {
		select {
		case <-p.stop:
			return
		default:
		}
		s, err := p.n.newNamespace()
		if err != nil {
			p.n.log.Warn("namespace pool stays short", "error", err)
			return
		}
		p.mu.Lock()
		p.ready = append(p.ready, s)
		p.mu.Unlock()
	}
}

func (p *pool) lacks() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready) < p.size
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
