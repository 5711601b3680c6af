package overlay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// A check of the underlay: whoever wants one writes a key, under a lease that ends soon; the hosts that it names send each other
// frames and write what they have found, under the same lease. When the asker has it all, or has waited long enough, the lease goes,
// and all of it.

// checkRecord is the question.
type checkRecord struct {
	ID    string     `json:"id"`
	By    hcn.GUID   `json:"by"`
	Name  string     `json:"name"`
	Hosts []hcn.GUID `json:"hosts"`
	Ports []uint16   `json:"ports"`
}

// Bounds of a check: so many hosts send to each other, for so long.
const (
	MaxChecked   = 64
	MaxPorts     = 8
	checkTime    = 25 * time.Second
	checkLease   = 40 * time.Second
	betweenCheck = time.Second
	// tellBy is when a host says what it has found until then, if the check is not over: in time for who asked.
	tellBy = checkTime - 2*time.Second
	// When all have sent everything, each waits for what is on its way to it and says its last word; who asked waits for those.
	lastFrames = 250 * time.Millisecond
	checkGrace = 900 * time.Millisecond
	// maxPathError bounds what is said of one path: there are many.
	maxPathError = 64
)

func (r *checkRecord) check() error {
	if !isHex(r.ID, 32) || len(r.Hosts) > MaxChecked || len(r.Ports) == 0 || len(r.Ports) > MaxPorts {
		return fmt.Errorf("id %.40q, %d hosts, %d ports", r.ID, len(r.Hosts), len(r.Ports))
	}
	for _, id := range append(slices.Clip(r.Hosts), r.By) {
		if err := checkID("hosts", id); err != nil {
			return err
		}
	}
	return checkText("name", r.Name, 0)
}

// Sums are kinds of checksums, as bits.
type Sums uint8

// The kinds of a frame's UDP checksum.
const (
	// SumNone is zero, as tunnels over IPv4 send.
	SumNone Sums = 1 << iota
	// SumWhole was made by the sending program.
	SumWhole
	// SumLeft was left to the NIC, as tunnels over IPv6 send.
	SumLeft
)

// PathFound is what a host has found of the way to another.
type PathFound struct {
	Host hcn.GUID   `json:"host"`
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
	Port uint16     `json:"port"`
	NIC  string     `json:"nic,omitempty"`
	// MTU of that NIC; Size of the largest packet that the other host has answered, 0 for none.
	MTU  int `json:"mtu"`
	Size int `json:"size"`
	// Done: all was tried. Before that, what was not answered may arrive, and Size is a step on the way to one.
	Done bool `json:"done,omitempty"`
	// Error is why frames could not be sent.
	Error string `json:"error,omitempty"`
	// Answered are those of this host's frames that the other has answered. Heard are the other's that came; Let those of them that the
	// host's stack has let through to its tunnels, if Inside says that this could be seen; Bad those with a wrong checksum, Damaged those that
	// were changed.
	Answered Sums `json:"answered,omitempty"`
	Heard    Sums `json:"heard,omitempty"`
	Let      Sums `json:"let,omitempty"`
	Inside   bool `json:"inside,omitempty"`
	Bad      Sums `json:"bad,omitempty"`
	Damaged  Sums `json:"damaged,omitempty"`
}

// Checked is what a host says in a check.
type Checked struct {
	Check string `json:"check"`
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"` // why it could not take part
	// Held is how large the host's packets to the others may be by all checks until now; 0: as large as the NIC takes.
	Held  int         `json:"held,omitempty"`
	Paths []PathFound `json:"paths,omitempty"`
}

func (c *Checked) check() error {
	if !isHex(c.Check, 32) || len(c.Paths) > MaxChecked*MaxPorts {
		return fmt.Errorf("check %.40q with %d paths", c.Check, len(c.Paths))
	}
	if err := checkText("error", c.Error, 0); err != nil {
		return err
	}
	if c.Held < 0 || c.Held > 1<<16 {
		return fmt.Errorf("packets of %d", c.Held)
	}
	for i := range c.Paths {
		p := &c.Paths[i]
		if err := errors.Join(checkID("host", p.Host), checkText("error", p.Error, 0), checkText("nic", p.NIC, 0), checkUnicast(p.From), checkUnicast(p.To)); err != nil {
			return err
		}
		if len(p.Error) > maxPathError {
			return fmt.Errorf("an error of %d characters", len(p.Error))
		}
		if p.MTU < 0 || p.MTU > 1<<16 || p.Size < 0 || p.Size > p.MTU {
			return fmt.Errorf("a size of %d at a NIC of %d", p.Size, p.MTU)
		}
	}
	return nil
}

// CheckTask is what a host is to do in a check.
type CheckTask struct {
	Check [16]byte
	Self  Host
	Peers []Host
	Ports []uint16
}

// Prober sends the frames of a check until ctx ends. It reports all that it has found, again when that changes, and says when it has
// sent everything. What it reported is not its own any more.
type Prober func(ctx context.Context, t CheckTask, report func(found []PathFound, done bool)) error

// answerChecks takes part in checks until ctx ends.
func (a *Agent) answerChecks(ctx context.Context) {
	var last string
	for {
		a.mu.Lock()
		it, moved := a.cache.check, a.checks
		a.mu.Unlock()
		if it != nil && it.v.ID != last && slices.Contains(it.v.Hosts, a.self.ID) {
			last = it.v.ID
			a.takePart(ctx, it)
			if !sleep(ctx, betweenCheck) { // whoever can write to etcd does not have hosts send without a pause
				return
			}
			continue
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// takePart sends frames for a check, and writes what comes of it, for as long as the check is there.
func (a *Agent) takePart(ctx context.Context, it *item[checkRecord]) {
	ctx, cancel := context.WithTimeout(ctx, checkLease)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer cancel()
		for a.stillAsked(ctx, it.v.ID) {
			continue
		}
	})
	part := &checkPart{now: Checked{Check: it.v.ID}, sent: make(chan struct{})}
	wg.Go(func() { a.tellChecked(ctx, it, part) })
	err := a.cfg.Probe(ctx, a.taskOf(&it.v), part.found)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("take part in a check of the underlay", "error", err)
		part.failed(err)
	}
}

// checkPart is what a host has found.
type checkPart struct {
	mu   sync.Mutex
	now  Checked
	sent chan struct{} // closed when it has sent everything
}

func (p *checkPart) found(paths []PathFound, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Paths = paths
	for i := range paths {
		paths[i].Error = clipText(paths[i].Error, maxPathError)
	}
	p.done(done)
}

func (p *checkPart) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Error = clipText(err.Error(), maxName)
	p.done(true)
}

// done tells that it has sent everything. Locked: p.mu.
func (p *checkPart) done(done bool) {
	if done && !p.now.Done {
		p.now.Done = true
		close(p.sent)
	}
}

// tellChecked writes what a host has found: when it has sent everything, and when all have, for until then there is more to hear. Each
// host reads what each writes, so that is all, but for a check that takes too long.
func (a *Agent) tellChecked(ctx context.Context, it *item[checkRecord], p *checkPart) {
	tctx, cancel := context.WithTimeout(ctx, tellBy)
	defer cancel()
	select {
	case <-p.sent:
		a.writeChecked(ctx, it, a.soFar(p))
	case <-tctx.Done():
	}
	for all := false; !all && tctx.Err() == nil; {
		var moved <-chan struct{}
		if _, all, moved = a.found(&it.v); all {
			sleep(ctx, lastFrames)
			break
		}
		select {
		case <-moved:
		case <-tctx.Done():
		}
	}
	if ctx.Err() == nil {
		a.writeChecked(ctx, it, a.soFar(p))
	}
}

// soFar is what has been found until now, and is kept at once.
func (a *Agent) soFar(p *checkPart) Checked {
	p.mu.Lock()
	now := p.now
	p.mu.Unlock()
	if a.cfg.Measured != nil {
		now.Held = a.cfg.Measured(now.Paths)
	}
	return now
}

// stillAsked waits for a change, and tells whether the check is still there.
func (a *Agent) stillAsked(ctx context.Context, id string) bool {
	a.mu.Lock()
	it, moved := a.cache.check, a.checks
	a.mu.Unlock()
	if it == nil || it.v.ID != id {
		return false
	}
	select {
	case <-moved:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *Agent) taskOf(r *checkRecord) CheckTask {
	t := CheckTask{Self: a.Self(), Ports: r.Ports}
	_, _ = hex.Decode(t.Check[:], []byte(r.ID)) // checked when it was read
	for _, h := range a.Hosts() {
		if h.ID != a.self.ID && slices.Contains(r.Hosts, h.ID) {
			t.Peers = append(t.Peers, h)
		}
	}
	return t
}

func (a *Agent) writeChecked(ctx context.Context, it *item[checkRecord], c Checked) {
	tctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	key := a.keys.checked(a.self.ID)
	_, err := a.cli.Txn(tctx).If(clientv3.Compare(clientv3.CreateRevision(a.keys.check()), "=", it.created)).
		Then(clientv3.OpPut(key, encode(&c), clientv3.WithLease(clientv3.LeaseID(it.lease)))).Commit()
	if err != nil && ctx.Err() == nil {
		a.log.Warn("tell what a check has found", "error", Explain(err))
	}
}

// clipText is what fits the bound of a text, on one line.
func clipText(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// Check has hosts send each other frames, and gives what each has found. One that said nothing in time is not in it.
func (a *Agent) Check(ctx context.Context, hosts []hcn.GUID, ports []uint16) (map[hcn.GUID]Checked, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime+2*opTimeout)
	defer cancel()
	if len(hosts) > MaxChecked {
		return nil, fmt.Errorf("a check is of %d hosts at most, and these are %d: name those that are to be checked", MaxChecked, len(hosts))
	}
	lease, err := a.cli.Grant(ctx, int64(checkLease/time.Second))
	if err != nil {
		return nil, a.away("ask for a check", err)
	}
	defer func() {
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
		defer cancel()
		if _, err := a.cli.Revoke(tctx, lease.ID); err != nil {
			a.log.Debug("end a check", "error", err) // it ends by itself
		}
	}()
	r := checkRecord{ID: randomHex(16), By: a.self.ID, Name: a.self.Name, Hosts: hosts, Ports: ports}
	key := a.keys.check()
	res, err := a.cli.Txn(ctx).If(absent(key)).Then(clientv3.OpPut(key, encode(&r), clientv3.WithLease(lease.ID))).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return nil, a.away("ask for a check", err)
	}
	if !res.Succeeded {
		by := "another host"
		if kvs := res.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			if o, err := decode[checkRecord](kindCheck, kvs[0].Value); err == nil && o.check() == nil {
				by = fmt.Sprintf("host %q", o.Name)
			}
		}
		return nil, fmt.Errorf("%s checks the underlay just now: try again in half a minute: %w", by, ErrInUse)
	}
	return a.collect(ctx, &r)
}

// collect waits until all hosts have sent what they have to, and gives what they found.
func (a *Agent) collect(ctx context.Context, r *checkRecord) (map[hcn.GUID]Checked, error) {
	tctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	for {
		found, done, moved := a.found(r)
		if done {
			sleep(ctx, checkGrace) // the last that each has heard
			found, _, _ = a.found(r)
		}
		if done || tctx.Err() != nil {
			return found, ctx.Err()
		}
		select {
		case <-moved:
		case <-tctx.Done():
		}
	}
}

// found is what hosts have told until now, whether all have told everything, and what is closed when there is more.
func (a *Agent) found(r *checkRecord) (out map[hcn.GUID]Checked, done bool, moved <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out, done = map[hcn.GUID]Checked{}, true
	for _, id := range r.Hosts {
		it := a.cache.checked[id]
		if it == nil || it.v.Check != r.ID {
			done = false
			continue
		}
		out[id] = it.v
		done = done && it.v.Done
	}
	return out, done, a.checks
}
