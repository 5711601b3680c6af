// Package underlay finds out what the network between hosts does with the packets of tunnels: it sends real ones, of all sizes and with
// each kind of checksum, to other hosts that do the same at that time, and tells which arrived.
//
// Each frame that arrives is answered by a small one. So the sender finds the largest that passes by bisection, and what is told of the
// way back is told by the other host. Nothing here touches what others have: frames are of a virtual network that nobody has, and are
// read before anybody else looks at them.
package underlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Task is a part in a check: that of one host.
type Task struct {
	Check [16]byte
	Host  hcn.GUID
	Paths []Path
	// NICs are those by which frames may come in.
	NICs []string
	// Tunnels are the devices of tunnels, by UDP port, where there are any.
	Tunnels map[uint16]string
	// Settle is how long the others are given to begin; a second when 0.
	Settle time.Duration
}

// Path is a way to another host.
type Path struct {
	Host     hcn.GUID
	From, To netip.Addr
	Port     uint16
	// MTU of the NIC that it begins at.
	MTU int
}

// Found is what a path carried, as far as this host can tell.
type Found struct {
	Path
	// Done: all has been tried, and what was not answered does not arrive.
	Done bool
	// Answered are the kinds of checksums of those frames that the other host has answered.
	Answered Sum
	// Size is the largest packet of this host that it has answered; 0 for none.
	Size int
	// Error is why frames could not be sent; "" if they could.
	Error string
	// Heard are the kinds of checksums of the frames that came from the other host; HeardInside those of them that the host's own
	// stack let through to the device of the tunnels; Inside says whether there is one.
	Heard, HeardInside Sum
	Inside             bool
	// BadSum are those whose checksum was wrong, Damaged those whose content was.
	BadSum, Damaged Sum
}

// bounds of a check.
const (
	settle      = time.Second
	firstTries  = 6
	tries       = 3
	rounds      = 3
	firstWait   = 300 * time.Millisecond
	leastWait   = 60 * time.Millisecond
	mostAtOnce  = 32
	perSecond   = 1000 // frames that a host sends, and as many answers
	reportEvery = 250 * time.Millisecond
)

// Probe is a check that is under way.
type Probe struct {
	task    Task
	senders map[netip.Addr]*sender
	taps    []*tap
	// What may be sent now: asking waits for it, and must not take what answers need.
	asks, answers chan struct{}

	mu      sync.Mutex
	found   map[pathKey]*Found
	asked   map[askedKey]int // the size that the other host has asked about last
	waiting map[answerKey]chan struct{}
	changed bool
}

// pathKey names a path by what a frame that comes in says.
type pathKey struct {
	host hcn.GUID
	port uint16
}

type askedKey struct {
	pathKey
	sum Sum
}

type answerKey struct {
	pathKey
	sum  Sum
	size int
}

// Open opens what the check needs, in the network namespace of the calling thread.
func Open(t Task) (p *Probe, err error) {
	p = &Probe{
		task: t, senders: map[netip.Addr]*sender{}, asks: make(chan struct{}, 64), answers: make(chan struct{}, 256),
		found: map[pathKey]*Found{}, asked: map[askedKey]int{}, waiting: map[answerKey]chan struct{}{},
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for _, path := range t.Paths {
		p.found[pathKey{path.Host, path.Port}] = &Found{Path: path, Inside: t.Tunnels[path.Port] != ""}
		if p.senders[path.From] == nil {
			if p.senders[path.From], err = openSender(path.From); err != nil {
				return nil, err
			}
		}
	}
	for _, nic := range t.NICs {
		tap, err := openTap(nic, false)
		if err != nil {
			return nil, err
		}
		p.taps = append(p.taps, tap)
	}
	for _, device := range t.Tunnels {
		tap, err := openTap(device, true)
		if err != nil {
			return nil, err
		}
		p.taps = append(p.taps, tap)
	}
	return p, nil
}

func (p *Probe) close() {
	for _, s := range p.senders {
		if s != nil {
			s.close()
		}
	}
	for _, t := range p.taps {
		t.close()
	}
}

// Run sends, answers and listens until ctx ends. Report is called with all that was found, now and then while that changes, and with
// done from the time on at which this host has nothing more to send.
func (p *Probe) Run(ctx context.Context, report func(found []Found, done bool)) {
	defer p.close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { p.keepPace(ctx) })
	for _, t := range p.taps {
		wg.Go(func() { p.listen(ctx, t) })
	}
	sent := make(chan struct{})
	wg.Go(func() { defer close(sent); p.sendAll(ctx) })
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	done := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-sent:
			sent, done = nil, true
			report(p.take(), true)
		case <-tick.C:
			p.mu.Lock()
			changed := p.changed
			p.mu.Unlock()
			if changed {
				report(p.take(), done)
			}
		}
	}
}

// take is all that was found until now.
func (p *Probe) take() []Found {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed = false
	out := make([]Found, 0, len(p.task.Paths))
	for _, path := range p.task.Paths {
		out = append(out, *p.found[pathKey{path.Host, path.Port}])
	}
	return out
}

// keepPace gives out permissions to send.
func (p *Probe) keepPace(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, budget := range []chan struct{}{p.asks, p.answers} {
			for range perSecond / 100 {
				select {
				case budget <- struct{}{}:
				default:
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Probe) sendAll(ctx context.Context) {
	if p.task.Settle == 0 {
		p.task.Settle = settle
	}
	if !sleep(ctx, p.task.Settle) {
		return
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, mostAtOnce)
	for _, i := range rand.Perm(len(p.task.Paths)) { // lest all hosts begin with the same
		path := p.task.Paths[i]
		places <- struct{}{}
		wg.Go(func() {
			p.walk(ctx, path)
			p.walked(ctx, path)
			<-places
		})
	}
	wg.Wait()
}

// walked notes that all has been tried.
func (p *Probe) walked(ctx context.Context, path Path) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.found[pathKey{path.Host, path.Port}].Done, p.changed = true, true
}

// walk finds out what a path carries.
func (p *Probe) walk(ctx context.Context, path Path) {
	small := smallest(path.To)
	var passed Sum
	var mu sync.Mutex
	var wg sync.WaitGroup
	rtt := firstWait
	for _, sum := range sumsOf(path.From) {
		wg.Go(func() {
			begin := time.Now()
			if p.ask(ctx, path, sum, small, firstTries, firstWait) {
				mu.Lock()
				passed, rtt = passed|sum, min(rtt, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if passed == 0 || ctx.Err() != nil {
		return
	}
	// The size is that of packets as tunnels send them, if those pass.
	kinds := sumsOf(path.From)
	sum := kinds[slices.IndexFunc(kinds, func(s Sum) bool { return passed&s != 0 })]
	wait := min(max(4*rtt, leastWait), time.Second)
	passes := func(size int) bool { return p.ask(ctx, path, sum, size, tries, wait) }
	low := small
	for range rounds {
		if passes(path.MTU) {
			return
		}
		for high := path.MTU; high-low > 1 && ctx.Err() == nil; {
			if mid := (low + high) / 2; passes(mid) {
				low = mid
			} else {
				high = mid
			}
		}
		// What was lost for another reason than its size, such as a host that is busy, passes with patience: then it was not the size.
		if low+1 >= path.MTU || !p.ask(ctx, path, sum, low+1, 2, time.Second) {
			return
		}
		low++
	}
}

// ask sends a frame until it is answered, a few times.
func (p *Probe) ask(ctx context.Context, path Path, sum Sum, size, times int, wait time.Duration) bool {
	at := answerKey{pathKey{path.Host, path.Port}, sum, size}
	answered := make(chan struct{})
	p.mu.Lock()
	p.waiting[at] = answered
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, at)
		p.mu.Unlock()
	}()
	n := note{kind: kindProbe, sum: sum, size: uint16(size), check: p.task.Check, from: p.task.Host}
	payload := n.encode(path.To, size)
	for range times {
		select {
		case <-p.asks:
		case <-ctx.Done():
			return false
		}
		err := p.senders[path.From].send(sum, netip.AddrPortFrom(path.To, path.Port), payload)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNREFUSED) {
			p.failed(at.pathKey, err)
			if errors.Is(err, unix.EMSGSIZE) {
				return false
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-answered:
			timer.Stop()
			return true
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
	return false
}

// failed notes why a frame did not leave. That it is too large for the NIC is what is looked for.
func (p *Probe) failed(at pathKey, err error) {
	if errors.Is(err, unix.EMSGSIZE) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.found[at]; f.Error == "" {
		f.Error, p.changed = fmt.Sprintf("send: %v", err), true
	}
}

// listen takes in what comes by one device.
func (p *Probe) listen(ctx context.Context, t *tap) {
	for ctx.Err() == nil {
		pk, err := t.read()
		switch {
		case errors.Is(err, errDamaged) && t.device, errors.Is(err, errForeign), errors.Is(err, errQuiet):
			continue
		case err != nil: // the device is gone, which the others see by what they do not hear
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		if t.device {
			p.inside(&pk)
		} else {
			p.arrived(&pk)
		}
	}
}

// inside notes a frame that the host's stack let through.
func (p *Probe) inside(pk *packet) {
	if pk.check != p.task.Check || pk.kind != kindProbe {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, f := range p.found { // the inner frame does not say by which port it came: it is all the same to the firewall
		if at.host == pk.from {
			p.add(&f.HeardInside, pk.sum)
		}
	}
}

// add notes a kind of checksum. Locked: p.mu.
func (p *Probe) add(set *Sum, s Sum) {
	p.changed = p.changed || *set&s == 0
	*set |= s
}

// arrived takes a frame in that came from the host of a path, and answers it.
func (p *Probe) arrived(pk *packet) {
	p.mu.Lock()
	at := pathKey{pk.from, pk.port}
	f := p.found[at]
	if f == nil || pk.check != p.task.Check || pk.src != f.To || pk.dst != f.From {
		p.mu.Unlock()
		return
	}
	switch {
	case pk.kind == kindAnswer:
		if !pk.damaged && !pk.badSum { // its own way of a checksum is not that which it tells of
			p.answered(f, answerKey{at, pk.sum, int(pk.note.size)})
		}
	case pk.damaged:
		p.add(&f.Damaged, pk.sum)
	case pk.badSum:
		p.add(&f.BadSum, pk.sum)
	case pk.size == int(pk.note.size):
		p.add(&f.Heard, pk.sum)
		ask := askedKey{at, pk.sum}
		again := p.asked[ask] == pk.size
		p.asked[ask] = pk.size
		p.mu.Unlock()
		p.answer(f.Path, pk.note, again)
		return
	}
	p.mu.Unlock()
}

// answered ends the wait for an answer. Locked: p.mu.
func (p *Probe) answered(f *Found, at answerKey) {
	if at.size > f.MTU || at.size < smallest(f.To) {
		return
	}
	p.add(&f.Answered, at.sum)
	if at.size > f.Size {
		f.Size, p.changed = at.size, true
	}
	if wait := p.waiting[at]; wait != nil {
		close(wait)
		delete(p.waiting, at)
	}
}

// answer says that a frame arrived, by one of its kind; to who asks again by one of every kind: one of them will get through if any
// does.
func (p *Probe) answer(path Path, n note, again bool) {
	n.kind, n.from = kindAnswer, p.task.Host
	payload := n.encode(path.To, 0)
	kinds := []Sum{n.sum}
	if again {
		kinds = sumsOf(path.From)
	}
	for _, sum := range kinds {
		select {
		case <-p.answers:
		default: // who asks too fast asks again
			return
		}
		_ = p.senders[path.From].send(sum, netip.AddrPortFrom(path.To, path.Port), payload) // asked again without an answer
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
