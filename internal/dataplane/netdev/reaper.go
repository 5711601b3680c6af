package netdev

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// reaper deletes dying links and compartments on one goroutine. Deleting a veth pair waits about 30 ms for an RCU grace
// period, however many go at once; while one batch waits, the next gathers. Which links are dying stands in the kernel
// (their group), so after a crash nothing has to be remembered: Finish.Sync finds them and wakes the reaper.
type reaper struct {
	n    *Netdev
	stop chan struct{}
	done chan struct{}
	kick chan struct{} // holds at most one wake-up

	mu sync.Mutex
	// asked counts requests, served those that were worked off.
	asked, served uint64
	// progress is closed and replaced whenever served moves.
	progress chan struct{}
	paths    map[string]bool // compartments to remove
	links    map[int]string  // names of the links to delete, by index
}

func newReaper(n *Netdev) *reaper {
	r := &reaper{
		n: n, stop: make(chan struct{}), done: make(chan struct{}), kick: make(chan struct{}, 1),
		progress: make(chan struct{}), paths: map[string]bool{}, links: map[int]string{},
	}
	go r.run()
	return r
}

// close finishes what was asked for and ends the goroutine.
func (r *reaper) close() {
	close(r.stop)
	<-r.done
}

func (r *reaper) wake() {
	r.mu.Lock()
	r.asked++
	r.mu.Unlock()
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// link asks for the deletion of a link that is in the dying group.
func (r *reaper) link(l link) {
	r.mu.Lock()
	r.links[l.index] = l.name
	r.mu.Unlock()
	r.wake()
}

// namespace asks for the removal of a compartment.
func (r *reaper) namespace(path string) {
	r.mu.Lock()
	r.paths[path] = true
	r.mu.Unlock()
	r.wake()
}

// dying tells that a compartment is about to be removed.
func (r *reaper) dying(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.paths[path]
}

// wait returns when all that was asked for so far has been worked off.
func (r *reaper) wait(ctx context.Context) error {
	r.mu.Lock()
	until := r.asked
	r.mu.Unlock()
	for {
		r.mu.Lock()
		served, progress := r.served, r.progress
		r.mu.Unlock()
		if served >= until {
			return nil
		}
		select {
		case <-progress:
		case <-r.done:
			return errors.New("closed while links were being removed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *reaper) run() {
	defer close(r.done)
	for {
		select {
		case <-r.kick:
			r.round()
		case <-r.stop:
			select {
			case <-r.kick:
				r.round()
			default:
			}
			return
		}
	}
}

func (r *reaper) round() {
	r.mu.Lock()
	until := r.asked
	paths := slices.Sorted(maps.Keys(r.paths))
	links := r.links
	r.links = map[int]string{}
	r.mu.Unlock()

	// Links first: closing a compartment would make the kernel take its links one by one.
	if err := r.n.deleteDying(links); err != nil {
		// They stay in the dying group; the next Finish.Sync asks again.
		r.n.log.Warn("dying links stay for now", "error", err)
	}
	for _, p := range paths {
		r.n.watch.expect(p)
		if err := r.n.home.do(func() error { return r.n.removeNamespace(p) }); err != nil {
			r.n.log.Warn("compartment stays for now", "path", p, "error", err)
		}
	}

	r.mu.Lock()
	for _, p := range paths {
		delete(r.paths, p)
	}
	r.served = until
	close(r.progress)
	r.progress = make(chan struct{})
	r.mu.Unlock()
}

// deleteDying deletes links of the dying group: one by its index, several by the group in one message, unless somebody
// else has put a link into it. Only for that is the host listed, which takes a while when there are thousands.
func (n *Netdev) deleteDying(dying map[int]string) error {
	if len(dying) > 1 {
		links, err := n.grim.listLinks()
		if err != nil {
			return err
		}
		foreign := slices.ContainsFunc(links, func(l link) bool { return l.group == groupDying && !l.ours() })
		if !foreign {
			return n.grim.write(deleteGroup(groupDying))
		}
	}
	var ws []write
	for index, name := range dying {
		ws = append(ws, deleteLink(link{index: index, name: name}))
	}
	return n.grim.write(ws...)
}
