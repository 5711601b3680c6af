package overlay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

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
	checkGrace   = 700 * time.Millisecond
	betweenCheck = time.Second
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
	Check string      `json:"check"`
	Done  bool        `json:"done"`
	Error string      `json:"error,omitempty"` // why it could not take part
	Paths []PathFound `json:"paths,omitempty"`
}

func (c *Checked) check() error {
	if !isHex(c.Check, 32) || len(c.Paths) > MaxChecked*MaxPorts {
		return fmt.Errorf("check %.40q with %d paths", c.Check, len(c.Paths))
	}
	if err := checkText("error", c.Error, 0); err != nil {
		return err
	}
	for i := range c.Paths {
		p := &c.Paths[i]
		if err := errors.Join(checkID("host", p.Host), checkText("error", p.Error, 0), checkText("nic", p.NIC, 0), checkUnicast(p.From), checkUnicast(p.To)); err != nil {
			return err
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
// sent everything.
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
	var newest []PathFound // once it has sent everything: before that, sizes are steps on the way to one
	err := a.cfg.Probe(ctx, a.taskOf(&it.v), func(found []PathFound, done bool) {
		if done {
			newest = found
		}
		a.writeChecked(ctx, it, Checked{Check: it.v.ID, Done: done, Paths: found})
	})
	if err != nil && ctx.Err() == nil {
		a.log.Warn("take part in a check of the underlay", "error", err)
		a.writeChecked(ctx, it, Checked{Check: it.v.ID, Done: true, Error: clipText(err.Error())})
	}
	if a.cfg.Measured != nil && len(newest) > 0 {
		a.cfg.Measured(newest)
	}
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

// clipText is what fits the bound of a text.
func clipText(s string) string { return s[:min(len(s), maxName)] }

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
