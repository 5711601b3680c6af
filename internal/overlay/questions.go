package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// What only another host knows is asked of it by way of etcd, to which all hosts have a connection that both ends have proved: whoever asks
// writes a key under a lease that ends soon, the other one answers under the same lease, and when the asker has that, or has waited
// long enough, the lease goes and both with it. Nothing of it is kept in the cache.

// question is the value of a question's key.
type question struct {
	Name string          `json:"name"` // of the host that asks
	Body json.RawMessage `json:"body"`
}

func (q *question) check() error { return checkText("name", q.Name, 0) }

// answer is that of its answer.
type answer struct {
	Error string          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

func (a *answer) check() error { return checkText("error", a.Error, 0) }

const (
	// askLease is how long a question stands if its asker is gone.
	askLease = 30 * time.Second
	// answerTime bounds what a host does for an answer.
	answerTime = 15 * time.Second
	// mostAsked is how many questions wait in a host; more are left unanswered.
	mostAsked = 16
)

// Answerer answers a question of another host.
type Answerer func(ctx context.Context, by string, body json.RawMessage) (any, error)

// asked is a question that waits.
type asked struct {
	parsed
	lease clientv3.LeaseID
	q     question
}

// ErrNoAnswer is when another host has said nothing in time.
var ErrNoAnswer = errors.New("no answer")

// Ask asks another host, until ctx ends. An error of its own is given in its words.
func (a *Agent) Ask(ctx context.Context, host hcn.GUID, body any) (json.RawMessage, error) {
	a.mu.Lock()
	it, away := a.cache.hosts[host], errors.Join(a.session, a.watching)
	id, got := hcn.NewGUID(), make(chan answer, 1)
	a.waiting[id] = got
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.waiting, id)
		a.mu.Unlock()
	}()
	switch {
	case away != nil:
		return nil, fmt.Errorf("%w: %w", ErrAway, away)
	case it == nil:
		return nil, fmt.Errorf("host %s: %w", host, ErrNotFound)
	}
	value := encode(&question{Name: a.self.Name, Body: json.RawMessage(encode(body))})
	lease, err := a.cli.Grant(ctx, int64(askLease/time.Second))
	if err != nil {
		return nil, a.away("ask host "+it.v.Name, err)
	}
	defer func() {
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
		defer cancel()
		if _, err := a.cli.Revoke(tctx, lease.ID); err != nil {
			a.log.Debug("take a question back", "error", err) // it ends by itself
		}
	}()
	res, err := a.cli.Txn(ctx).If(present(a.keys.host(host))).Then(clientv3.OpPut(a.keys.question(host, a.self.ID, id), value, clientv3.WithLease(lease.ID))).Commit()
	switch {
	case err != nil:
		return nil, a.away("ask host "+it.v.Name, err)
	case !res.Succeeded:
		return nil, fmt.Errorf("host %q is not there any more: %w", it.v.Name, ErrNotFound)
	}
	select {
	case an := <-got:
		if an.Error != "" {
			return nil, errors.New(an.Error)
		}
		return an.Body, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w of host %q: its daemon is away, or runs a version that answers none", ErrNoAnswer, it.v.Name)
	}
}

// HostOf is the host that has an endpoint of a network, as far as it counts.
func (a *Agent) HostOf(network, endpoint hcn.GUID) (Host, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	it, err := a.cache.endpoint(network, endpoint)
	if it == nil || err != nil {
		return Host{}, false
	}
	on := a.cache.hosts[it.v.Host]
	if on == nil {
		return Host{}, false
	}
	return on.v, true
}

// askEvent takes questions to this host in, and answers to it. Locked: a.mu.
func (a *Agent) askEvent(p parsed, e entry) {
	if e.deleted || p.host != a.self.ID {
		return
	}
	switch p.kind {
	case kindQuestion:
		q, err := decode[question](p.kind, e.value)
		if err != nil || q.check() != nil || a.cfg.Answer == nil {
			return // who asked is told that there is no answer
		}
		select {
		case a.asked <- asked{p, clientv3.LeaseID(e.lease), q}:
		default:
		}
	case kindAnswer:
		an, err := decode[answer](p.kind, e.value)
		if err == nil {
			err = an.check()
		}
		if err != nil {
			an = answer{Error: "its answer cannot be read: " + err.Error()}
		}
		if got := a.waiting[p.id]; got != nil {
			select {
			case got <- an:
			default:
			}
		}
	default: // no other is about questions
	}
}

// answerQuestions answers until ctx ends, one question after the other: whoever can write to etcd has this host do no more.
func (a *Agent) answerQuestions(ctx context.Context) {
	for {
		select {
		case q := <-a.asked:
			a.answer(ctx, q)
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) answer(ctx context.Context, q asked) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var an answer
	v, err := a.cfg.Answer(ctx, q.q.Name, q.q.Body)
	if err == nil {
		an.Body = json.RawMessage(encode(v))
	}
	if most := maxValue[kindAnswer] - 1024; err == nil && len(an.Body) > most {
		err = fmt.Errorf("the answer has more than %d bytes", most)
	}
	if err != nil {
		an = answer{Error: clipText(err.Error(), maxName)}
	}
	asks, says := a.keys.question(a.self.ID, q.other, q.id), a.keys.answer(q.other, a.self.ID, q.id)
	if _, err := a.cli.Txn(ctx).If(present(asks), absent(says)).Then(clientv3.OpPut(says, encode(&an), clientv3.WithLease(q.lease))).Commit(); err != nil && ctx.Err() == nil {
		a.log.Warn("answer another host's question", "by", q.other, "error", Explain(err))
	}
}
