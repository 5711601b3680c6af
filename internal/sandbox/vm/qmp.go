package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxQMPLine bounds what QEMU may say at once: a guest may have taken it.
const maxQMPLine = 1 << 20

// qmpWrite is how long QEMU may leave a command unread.
const qmpWrite = 30 * time.Second

// QMP speaks QEMU's machine protocol on a socket.
type QMP struct {
	conn *net.UnixConn
	mu   sync.Mutex // one command at a time
	next int

	state   sync.Mutex
	answers map[string]chan qmpAnswer
	err     error
	ended   chan struct{}
	// full tells that QEMU has stopped the VM since there was no room for what it writes to a disk.
	full chan struct{}
}

type qmpAnswer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    string          `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	QMP   json.RawMessage `json:"QMP"`
}

// NewQMP takes over the connection. It greets with the first command.
func NewQMP(conn *net.UnixConn) *QMP {
	q := &QMP{conn: conn, answers: map[string]chan qmpAnswer{}, ended: make(chan struct{}), full: make(chan struct{}, 1)}
	go q.read()
	return q
}

// Close ends it.
func (q *QMP) Close() error { return q.conn.Close() }

func (q *QMP) read() {
	r := bufio.NewReaderSize(q.conn, 64<<10)
	var err error
	for err == nil {
		var line []byte
		if line, err = readLine(r); err != nil {
			break
		}
		var a qmpAnswer
		if err = json.Unmarshal(line, &a); err != nil {
			err = fmt.Errorf("QEMU says no JSON: %w", err)
			break
		}
		if a.ID == "" { // the greeting, or an event
			q.hear(a)
			continue
		}
		q.state.Lock()
		ch := q.answers[a.ID]
		delete(q.answers, a.ID)
		q.state.Unlock()
		if ch != nil {
			ch <- a
		}
	}
	q.state.Lock()
	q.err = err
	q.state.Unlock()
	close(q.ended)
}

// hear takes note of an event.
func (q *QMP) hear(a qmpAnswer) {
	var data struct {
		Action string `json:"action"`
	}
	if a.Event != "BLOCK_IO_ERROR" || json.Unmarshal(a.Data, &data) != nil || data.Action != "stop" {
		return
	}
	select {
	case q.full <- struct{}{}:
	default:
	}
}

// Full tells that there was no room for what the VM writes to a disk, and that QEMU has stopped it therefore.
func (q *QMP) Full() <-chan struct{} { return q.full }

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxQMPLine {
			return nil, errors.New("QEMU says a line without end")
		}
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// Do runs a command, and puts its result into out unless that is nil.
func (q *QMP) Do(ctx context.Context, command string, args, out any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.next == 0 {
		if err := q.do(ctx, "qmp_capabilities", nil, nil, -1); err != nil {
			return err
		}
	}
	return q.do(ctx, command, args, out, -1)
}

// SendFile gives QEMU a descriptor by a name, which later commands refer to.
func (q *QMP) SendFile(ctx context.Context, name string, fd int) error {
	return q.send(ctx, "getfd", map[string]any{"fdname": name}, fd)
}

// AddFile gives QEMU a descriptor as the one of a set, which it opens by the name /dev/fdset/SET.
func (q *QMP) AddFile(ctx context.Context, set, fd int) error {
	return q.send(ctx, "add-fd", map[string]any{"fdset-id": set}, fd)
}

func (q *QMP) send(ctx context.Context, command string, args any, fd int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.next == 0 {
		if err := q.do(ctx, "qmp_capabilities", nil, nil, -1); err != nil {
			return err
		}
	}
	return q.do(ctx, command, args, nil, fd)
}

func (q *QMP) do(ctx context.Context, command string, args, out any, fd int) error {
	q.next++
	id := strconv.Itoa(q.next)
	msg := map[string]any{"execute": command, "id": id}
	if args != nil {
		msg["arguments"] = args
	}
	line, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("QEMU: %s: %w", command, err)
	}
	ch := make(chan qmpAnswer, 1)
	q.state.Lock()
	q.answers[id] = ch
	q.state.Unlock()
	defer func() {
		q.state.Lock()
		delete(q.answers, id)
		q.state.Unlock()
	}()
	_ = q.conn.SetWriteDeadline(time.Now().Add(qmpWrite)) // a QEMU that does not read keeps nobody
	if fd >= 0 {
		_, _, err = q.conn.WriteMsgUnix(append(line, '\n'), unix.UnixRights(fd), nil)
	} else {
		_, err = q.conn.Write(append(line, '\n'))
	}
	if err != nil {
		// What was written of the command is no line, so nothing more can be said to it.
		_ = q.conn.Close()
		return fmt.Errorf("QEMU: %s: %w", command, err)
	}
	select {
	case a := <-ch:
		if a.Error != nil {
			return fmt.Errorf("QEMU: %s: %.500s", command, a.Error.Desc)
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(a.Return, out); err != nil {
			return fmt.Errorf("QEMU: %s: %w", command, err)
		}
		return nil
	case <-q.ended:
		q.state.Lock()
		defer q.state.Unlock()
		if errors.Is(q.err, io.EOF) {
			return fmt.Errorf("QEMU: %s: QEMU has ended", command)
		}
		return fmt.Errorf("QEMU: %s: %w", command, q.err)
	case <-ctx.Done():
		return fmt.Errorf("QEMU: %s: %w", command, context.Cause(ctx))
	}
}
