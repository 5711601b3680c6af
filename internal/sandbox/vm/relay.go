package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// serveClients answers those that start further processes, and the shims of containers that are in the same VM.
func serveClients(ctx context.Context, l net.Listener, g guest, d *disks, look func(context.Context, proto.Look) (proto.NICs, error)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for n := 1; ; n++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		r := &relay{guest: g, disks: d, look: look, prefix: strconv.Itoa(n) + "-"}
		wg.Go(func() {
			_ = proto.Serve(ctx, c, r)
			r.end()
		})
	}
}

// relay asks the guest on behalf of a client. The names of the client's processes are its own; those that it leaves behind are ended.
type relay struct {
	guest  guest
	disks  *disks // those of the VM; nil: a client can have none
	prefix string
	mu     sync.Mutex
	begun  map[string]bool
	own    bool     // it has a container of its own, which its further processes are for
	roots  []string // the disks that were plugged in for it
	// look tells the guest's NICs; nil: this shim has no VM.
	look func(context.Context, proto.Look) (proto.NICs, error)
}

// Handle implements proto.Handler.
func (r *relay) Handle(ctx context.Context, op string, body json.RawMessage) (any, func(net.Conn), error) {
	if op == proto.OpNICs && r.look != nil {
		var l proto.Look
		if err := json.Unmarshal(body, &l); err != nil {
			return nil, nil, fmt.Errorf("read the request: %w", err)
		}
		nics, err := r.look(ctx, l)
		return nics, nil, err
	}
	if op == proto.OpDial || op == proto.OpRead {
		return r.reach(ctx, op, body)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, nil, fmt.Errorf("read the request: %w", err)
	}
	var name string
	if err := json.Unmarshal(fields["process"], &name); err != nil {
		return nil, nil, fmt.Errorf("read the request: %w", err)
	}
	name = r.prefix + name
	fields["process"], _ = json.Marshal(name) // a string
	switch op {
	case proto.OpExec, proto.OpRun:
		if err := r.begin(op, name, fields); err != nil {
			return nil, nil, err
		}
		if err := r.root(ctx, fields); err != nil {
			return nil, nil, err
		}
	case proto.OpStdio, proto.OpSignal, proto.OpResize, proto.OpWait, proto.OpFiles:
	default:
		return nil, nil, fmt.Errorf("%s is nothing to ask the shim for", op)
	}
	var result json.RawMessage
	if op == proto.OpStdio {
		c, err := r.guest.Stream(ctx, op, fields, nil)
		if err != nil {
			return nil, nil, err
		}
		return nil, func(client net.Conn) { joinUntil(ctx, client, c) }, nil
	}
	if err := r.guest.Call(ctx, op, fields, outOf(op, &result)); err != nil {
		return nil, nil, err
	}
	if op == proto.OpWait {
		r.mu.Lock()
		delete(r.begun, name)
		r.mu.Unlock()
	}
	if result == nil {
		return nil, nil, nil
	}
	return result, nil, nil
}

// reach connects a client with a socket or a file in the container, or with what its compartment reaches. A client that goes takes its
// connection along, whatever the guest does.
func (r *relay) reach(ctx context.Context, op string, body json.RawMessage) (any, func(net.Conn), error) {
	var d proto.Dial // as is Read
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, nil, fmt.Errorf("read the request: %w", err)
	}
	r.mu.Lock()
	if d.Process = mainProcess; r.own {
		d.Process = r.prefix + mainProcess
	}
	r.mu.Unlock()
	limited, cancel := within(ctx, answerWait)
	defer cancel()
	var out any
	switch {
	case op == proto.OpRead:
		out = new(proto.Content)
	case d.Network != "":
		out = new(proto.Dialled)
	}
	c, err := r.guest.Stream(limited, op, d, out)
	if err != nil {
		return nil, nil, err
	}
	return out, func(client net.Conn) { joinUntil(ctx, client, c) }, nil
}

// begin notes what is to be started, and names the container that it is for.
func (r *relay) begin(op, name string, fields map[string]json.RawMessage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begun == nil {
		r.begun = map[string]bool{}
	}
	r.begun[name] = true
	if op == proto.OpRun {
		r.own = true
		return nil
	}
	if !r.own {
		return nil
	}
	var container string
	if err := json.Unmarshal(fields["container"], &container); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	fields["container"], _ = json.Marshal(r.prefix + container) // a string
	return nil
}

// root plugs in the disk of a member, which its place names.
func (r *relay) root(ctx context.Context, fields map[string]json.RawMessage) error {
	delete(fields, "root")
	if fields["place"] == nil {
		return nil
	}
	var place string
	if err := json.Unmarshal(fields["place"], &place); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	if err := proto.CheckName(place); err != nil {
		return err
	}
	if r.disks == nil {
		return errors.New("this VM has no disks for others")
	}
	serial, err := r.disks.plug(ctx, filepath.Join(membersRoot, place, memberDisk))
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roots = append(r.roots, serial)
	fields["root"], _ = json.Marshal(serial) // a string
	return nil
}

// outOf is where an answer goes, if there is one.
func outOf(op string, result *json.RawMessage) any {
	if op == proto.OpWait {
		return result
	}
	return nil
}

// end kills what the client has left behind.
func (r *relay) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.begun {
		ctx, cancel := context.WithTimeout(context.Background(), haltWait)
		_ = r.guest.Call(ctx, proto.OpSignal, proto.Signal{Process: name, Signal: int(unix.SIGKILL), Tree: true}, nil)
		_ = r.guest.Call(ctx, proto.OpWait, proto.Process{Process: name}, nil)
		cancel()
	}
	for _, serial := range r.roots {
		ctx, cancel := context.WithTimeout(context.Background(), haltWait)
		_ = r.disks.unplug(ctx, serial) // its next start says it
		cancel()
	}
}

// joinUntil joins a client with the guest, whose stream ends with the client even if the guest has nothing to say.
func joinUntil(ctx context.Context, client, guest net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = guest.SetDeadline(time.Unix(1, 0)) })()
	join(client, guest)
}

// join carries between two streams, in both directions, each to its end.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(a, b); _ = a.Close() })
	wg.Go(func() { _, _ = io.Copy(b, a); _ = b.Close() })
	wg.Wait()
}
