package proto

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

func TestFrames(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	want := Exec{Process: "x", TTY: true, Spec: json.RawMessage(`{"args":["a"]}`)}
	if err := WriteFrame(&b, want); err != nil {
		t.Fatal(err)
	}
	var got Exec
	if err := ReadFrame(&b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Process != want.Process || !got.TTY || string(got.Spec) != string(want.Spec) {
		t.Errorf("read %+v, wrote %+v", got, want)
	}
	if err := WriteFrame(&b, strings.Repeat("x", MaxFrame)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("wrote a frame that is too large: %v", err)
	}
}

func frame(n uint32, body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, n), body...)
}

func TestFramesOfAHostileGuest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		bytes []byte
		want  error
	}{
		"nothing":              {nil, io.EOF},
		"half a length":        {[]byte{0, 0}, io.ErrUnexpectedEOF},
		"cut short":            {frame(10, `{"a"`), io.ErrUnexpectedEOF},
		"a bit too large":      {frame(MaxFrame+1, ""), ErrTooLarge},
		"4 GiB":                {frame(1<<32-1, ""), ErrTooLarge},
		"the most, of nothing": {frame(MaxFrame, ""), io.ErrUnexpectedEOF},
		"no JSON":              {frame(3, "abc"), ErrMalformed},
		"another type":         {frame(3, "[1]"), ErrMalformed},
		"empty":                {frame(0, ""), ErrMalformed},
		"deep":                 {frame(40_000, strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000)), ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var a answer
			if err := ReadFrame(bytes.NewReader(tc.bytes), &a); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frame(2, "{}"))
	f.Add(frame(1<<32-1, "{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a answer
		err := ReadFrame(bytes.NewReader(data), &a)
		if err == nil && len(data) < 4 {
			t.Errorf("%q is no frame", data)
		}
	})
}

// pair is a client, and the other end of its connection.
func pair(t *testing.T) (*Client, net.Conn) {
	t.Helper()
	host, guest := net.Pipe()
	c, err := NewClient(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = guest.Close() })
	return c, guest
}

type handler func(ctx context.Context, op string, body json.RawMessage) (any, func(net.Conn), error)

func (h handler) Handle(ctx context.Context, op string, body json.RawMessage) (any, func(net.Conn), error) {
	return h(ctx, op, body)
}

func TestCalls(t *testing.T) {
	t.Parallel()
	c, guest := pair(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = Serve(context.Background(), guest, handler(func(_ context.Context, op string, body json.RawMessage) (any, func(net.Conn), error) {
			switch op {
			case OpHello:
				return Welcome{Version: Version, Kernel: "6.1"}, nil, nil
			case OpStdio:
				return nil, func(s net.Conn) {
					_, _ = io.Copy(s, s) // until the host has no more
					_ = s.Close()
				}, nil
			}
			return nil, nil, errors.New("no " + op + " of " + string(body))
		}))
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var w Welcome
	if err := c.Call(ctx, OpHello, Hello{}, &w); err != nil || w.Kernel != "6.1" {
		t.Fatalf("hello: %+v, %v", w, err)
	}
	err := c.Call(ctx, "x", Process{"p"}, nil)
	if said, ok := errors.AsType[*Error](err); !ok || said.Message != `no x of {"process":"p"}` {
		t.Errorf("the guest's refusal came as %v", err)
	}
	s, err := c.Stream(ctx, OpStdio, Stdio{Process: "p", FD: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789", 100_000) // more than a window
	go func() { _, _ = io.WriteString(s, text); _ = s.Close() }()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != text {
		t.Errorf("%d bytes of %d came back: %v", len(got), len(text), err)
	}
	_ = c.Close()
	select {
	case <-served:
	case <-ctx.Done():
		t.Error("the guest goes on serving a host that is gone")
	}
}

// TestSilentGuest holds that a call ends with its caller's patience, whatever the guest does not do.
func TestSilentGuest(t *testing.T) {
	t.Parallel()
	for name, guest := range map[string]func(net.Conn){
		"reads nothing":   func(net.Conn) {},
		"answers nothing": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"takes the stream": func(c net.Conn) {
			s, err := yamux.Server(c, config())
			if err != nil {
				return
			}
			for {
				if _, err := s.Accept(); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, conn := pair(t)
			go guest(conn)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := c.Call(ctx, OpHello, Hello{}, nil)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 20*time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		})
	}
}

// TestHostileGuest holds that what a guest makes up ends the session with it, and nothing else.
func TestHostileGuest(t *testing.T) {
	t.Parallel()
	for name, guest := range map[string]func(net.Conn){
		"noise":   func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{0xa5}, 1<<16)) },
		"the end": func(c net.Conn) { _ = c.Close() },
		"opens a stream": func(c net.Conn) {
			if s, err := yamux.Server(c, config()); err == nil {
				_, _ = s.Open()
			}
		},
		// Each would be a goroutine of the host's that waits for the guest to read.
		"pings": func(c net.Conn) {
			for ping := bytes.Repeat([]byte{0, typePing, 0, flagSYN, 0, 0, 0, 0, 0, 0, 0, 0}, 1000); ; {
				if _, err := c.Write(ping); err != nil {
					return
				}
			}
		},
		"pings a byte at a time": func(c net.Conn) {
			for _, b := range []byte{0, typePing, 0, flagSYN, 0, 0, 0, 0, 0, 0, 0, 0} {
				_, _ = c.Write([]byte{b})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, conn := pair(t)
			go guest(conn)
			select {
			case <-c.Done():
			case <-time.After(30 * time.Second):
				t.Fatal("the host goes on speaking with it")
			}
			err := c.Call(t.Context(), OpHello, nil, nil)
			if err == nil {
				t.Error("a call was answered")
			}
			if want := map[string]error{"opens a stream": ErrStream, "pings": ErrPing, "pings a byte at a time": ErrPing}[name]; !errors.Is(err, want) && want != nil {
				t.Errorf("it is said that %v, not that %v", err, want)
			}
		})
	}
}

// TestGuard holds that it sees frames for what they are, however they are cut, and lets an agent's through.
func TestGuard(t *testing.T) {
	t.Parallel()
	data := append([]byte{0, typeData, 0, 2, 0, 0, 0, 1, 0, 0, 0, 16}, "\x00\x02\x00\x01 no ping ..."...)
	window := []byte{0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 1, 0} // an acknowledgement, whose length is no body
	good := slices.Concat(data, window, data, []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, window)
	for _, step := range []int{1, 2, 5, 12, 13, 26, len(good)} {
		for name, tc := range map[string]struct {
			tail []byte
			want error
		}{"good": {nil, io.EOF}, "ping": {[]byte{0, typePing, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, ErrPing}, "stream": {[]byte{0, 1, 0, flagSYN, 0, 0, 0, 2, 0, 0, 0, 0}, ErrStream}} {
			g := &guard{ReadWriteCloser: rwc{bytes.NewReader(slices.Concat(good, tc.tail))}}
			buf := make([]byte, step)
			total, err := 0, error(nil)
			for err == nil {
				var n int
				n, err = g.Read(buf)
				total += n
			}
			if !errors.Is(err, tc.want) || tc.tail == nil && total != len(good) {
				t.Errorf("%s in steps of %d: %d bytes, %v", name, step, total, err)
			}
		}
	}
}

type rwc struct{ io.Reader }

func (rwc) Write(p []byte) (int, error) { return len(p), nil }
func (rwc) Close() error                { return nil }

// TestHostileAnswers are malformed ones, to a call.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	long, err := json.Marshal(answer{Error: strings.Repeat("x", 10*maxMessage)})
	if err != nil {
		t.Fatal(err)
	}
	const rude = `{"error":"\u001b[2J\u0007no\n"}`
	for name, tc := range map[string]struct {
		says []byte
		want error
	}{
		"too large":     {frame(MaxFrame+1, ""), ErrTooLarge},
		"no JSON":       {frame(1, "{"), ErrMalformed},
		"another type":  {frame(13, `{"body":"no"}`), ErrMalformed},
		"none":          {nil, io.EOF},
		"long":          {frame(uint32(len(long)), string(long)), nil},
		"for terminals": {frame(uint32(len(rude)), rude), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, conn := pair(t)
			go func() {
				session, err := yamux.Server(conn, config())
				if err != nil {
					return
				}
				s, err := session.Accept()
				if err != nil {
					return
				}
				_, _ = s.Write(tc.says)
				_ = s.Close()
				_, _ = io.Copy(io.Discard, s)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			var w Welcome
			err := c.Call(ctx, OpHello, Hello{}, &w)
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			said, ok := errors.AsType[*Error](err)
			if name == "long" && (!ok || len(said.Message) != maxMessage) {
				t.Errorf("a long message came as %.100v", err)
			}
			if name == "for terminals" && (!ok || said.Message != " [2J no ") {
				t.Errorf("what a terminal obeys came as %q", err)
			}
		})
	}
}

// TestAgain holds that a session follows another on the same line, whatever the one before has left on it.
func TestAgain(t *testing.T) {
	t.Parallel()
	host, guest := net.Pipe()
	p := &restored{ends: make(chan net.Conn, 1), now: guest}
	served := make(chan int, 1)
	go func() {
		line, n := NewLine(p), 0
		for over := true; over; n++ {
			s := line.Session()
			_ = Serve(context.Background(), s, resting{s.Rest, n})
			over = s.Over()
		}
		served <- n
	}()
	c, err := NewClient(host)
	if err != nil {
		t.Fatal(err)
	}
	session := -1
	if err := c.Call(t.Context(), "count", nil, &session); err != nil || session != 0 {
		t.Fatalf("session %d, %v", session, err)
	}
	if err := c.Call(t.Context(), OpRest, nil, nil); err != nil {
		t.Fatal(err)
	}
	host2, guest2 := net.Pipe()
	p.ends <- guest2
	_ = c.Close()
	for _, left := range []string{"\xff\xffbulkhead", string(again[:7]), "\x00\x01\x02"} {
		if _, err := io.WriteString(host2, left); err != nil {
			t.Fatal(err)
		}
	}
	if err := Again(host2); err != nil {
		t.Fatal(err)
	}
	if c, err = NewClient(host2); err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "count", nil, &session); err != nil || session != 1 {
		t.Errorf("session %d, %v", session, err)
	}
	_ = c.Close()
	if n := <-served; n != 2 {
		t.Errorf("%d sessions were served", n)
	}
}

// restored is a port that goes on with another host where its first one ends.
type restored struct {
	ends chan net.Conn
	mu   sync.Mutex
	now  net.Conn
}

func (r *restored) conn() net.Conn { r.mu.Lock(); defer r.mu.Unlock(); return r.now }

func (r *restored) Read(p []byte) (int, error) {
	n, err := r.conn().Read(p)
	if err == nil {
		return n, nil
	}
	select {
	case next := <-r.ends:
		r.mu.Lock()
		r.now = next
		r.mu.Unlock()
		return n, nil
	default:
		return n, err
	}
}

func (r *restored) Write(p []byte) (int, error) { return r.conn().Write(p) }
func (r *restored) Close() error                { return r.conn().Close() }

type resting struct {
	rest func()
	n    int
}

func (r resting) Handle(_ context.Context, op string, _ json.RawMessage) (any, func(net.Conn), error) {
	if op == OpRest {
		return nil, func(c net.Conn) { r.rest(); _ = c.Close() }, nil
	}
	return r.n, nil, nil
}
