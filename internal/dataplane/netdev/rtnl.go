package netdev

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn is an rtnetlink socket that sends several messages in one system call. The kernel works them off in order, tells of
// each that fails and acknowledges the last, so what configures a vNIC costs one round trip; that is why this does not go
// through netlink.Handle, which waits for each message.
type conn struct {
	mu     sync.Mutex
	fd     int
	portID uint32
	seq    uint32
	buf    []byte
	writes *atomic.Int64
	bufs   *sync.Pool
}

const (
	// batchSize bounds the messages in flight: what the kernel says of them must fit into the socket's receive buffer.
	batchSize = 32
	// replyTimeout is generous because another's batch deletion may hold the kernel's one configuration lock.
	replyTimeout = 30
	// dumpTries bounds the repetitions of a listing during which the kernel's tables changed.
	dumpTries = 10
	// noStats leaves the statistics out of link listings (RTEXT_FILTER_SKIP_STATS).
	noStats = 1 << 3
	// attrTypeMask takes the flags off an attribute's type (NLA_TYPE_MASK).
	attrTypeMask = 0x3fff
)

// write is one change to the kernel, with what it is for.
type write struct {
	doing string
	req   *nl.NetlinkRequest
	// what is the thing itself, without the verb, for a preview; "" for what belongs to a link's birth.
	what string
	// words gives both, for messages of which there are many: hardly any is ever spoken of.
	words func() (doing, what string)
	// fine holds results that are as good as success.
	fine []unix.Errno
}

// openConn opens a socket in the network namespace of the calling thread.
func (n *Netdev) openConn() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &conn{fd: fd, writes: n.writes, bufs: &n.bufs}
	if err := c.setup(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	if a, ok := sa.(*unix.SockaddrNetlink); ok {
		c.portID = a.Pid
	}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: replyTimeout}); err != nil {
		return err
	}
	// Errors carry the kernel's own words, and not a copy of the request.
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1); err != nil {
		return err
	}
	return unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
}

func (c *conn) close() {
	unix.Close(c.fd)
	if b := c.buf; b != nil {
		c.buf = nil
		c.bufs.Put(&b)
	}
}

// write applies all changes in order, also after one that fails, and returns what went wrong.
func (c *conn) write(ws ...write) error {
	var errs []error
	for len(ws) > 0 {
		part := ws[:min(len(ws), batchSize)]
		ws = ws[len(part):]
		if err := c.writePart(part); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c *conn) writePart(ws []write) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []byte
	first := c.seq + 1
	for i, w := range ws {
		c.seq++
		w.req.Seq = c.seq
		if i == len(ws)-1 {
			w.req.Flags |= unix.NLM_F_ACK
		} else {
			w.req.Flags &^= unix.NLM_F_ACK // as the library makes them
		}
		out = append(out, w.req.Serialize()...)
		for len(out)%unix.NLMSG_ALIGNTO != 0 {
			out = append(out, 0)
		}
	}
	c.writes.Add(int64(len(ws)))
	if err := c.send(out); err != nil {
		return ws[0].failed(err)
	}
	var errs []error
	for done := false; !done; {
		msgs, err := c.receive()
		if err != nil {
			return errors.Join(append(errs, ws[0].failed(fmt.Errorf("read the kernel's answer: %w", err)))...)
		}
		for _, m := range msgs {
			i := int(m.Header.Seq - first)
			if m.Header.Type != unix.NLMSG_ERROR || i < 0 || i >= len(ws) {
				continue // late answer to a request that was given up
			}
			done = done || i == len(ws)-1
			if err := answerError(m); err != nil && !ws[i].isFine(err) {
				errs = append(errs, ws[i].failed(err))
			}
		}
	}
	return errors.Join(errs...)
}

// says what the change is for, and what it is.
func (w write) says() (doing, what string) {
	if w.words != nil {
		return w.words()
	}
	return w.doing, w.what
}

// failed is an error of the change.
func (w write) failed(err error) error {
	doing, _ := w.says()
	return fmt.Errorf("%s: %w", doing, err)
}

func (w write) isFine(err error) bool {
	for _, e := range w.fine {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (c *conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive reads one datagram. The messages point into the socket's buffer and are valid until the next call.
func (c *conn) receive() ([]syscall.NetlinkMessage, error) { return c.read(0) }

// poll does the same when there is one, and else says EAGAIN.
func (c *conn) poll() ([]syscall.NetlinkMessage, error) { return c.read(unix.MSG_DONTWAIT) }

func (c *conn) read(flags int) ([]syscall.NetlinkMessage, error) {
	if c.buf == nil {
		if b, ok := c.bufs.Get().(*[]byte); ok {
			c.buf = *b
		} else {
			c.buf = make([]byte, 64<<10) // as large as the kernel's answers get
		}
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return syscall.ParseNetlinkMessage(c.buf[:n])
	}
}

// answerError decodes an acknowledgement: nil, or the error number with the kernel's explanation.
func answerError(m syscall.NetlinkMessage) error {
	if m.Header.Type == unix.NLMSG_DONE && len(m.Data) == 0 {
		return nil
	}
	if len(m.Data) < 4 {
		return errors.New("short answer from the kernel")
	}
	code := int32(nl.NativeEndian().Uint32(m.Data))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(-code))
	// Behind the code stands the header of the request, then attributes.
	const head = 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || len(m.Data) <= head {
		return err
	}
	eachAttr(m.Data[head:], func(kind uint16, value []byte) {
		if kind == nl.NLMSGERR_ATTR_MSG {
			err = fmt.Errorf("%w (%s)", err, unix.ByteSliceToString(value))
		}
	})
	return err
}

// dump lists objects, again when the kernel's tables changed meanwhile (NLM_F_DUMP_INTR) or the buffer ran over. each
// is called with every message of the try that succeeded; the messages are its own.
func (c *conn) dump(kind int, body ...nl.NetlinkRequestData) ([][]byte, error) {
	var err error
	for range dumpTries {
		var msgs [][]byte
		msgs, err = c.request(kind, unix.NLM_F_DUMP, body...)
		if err == nil {
			return msgs, nil
		}
		if !errors.Is(err, errInterrupted) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			break
		}
	}
	return nil, err
}

var errInterrupted = errors.New("the kernel's tables kept changing while they were listed")

// request asks for one object, or for all with NLM_F_DUMP.
func (c *conn) request(kind, flags int, body ...nl.NetlinkRequestData) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	req := nl.NewNetlinkRequest(kind, flags)
	if flags&unix.NLM_F_DUMP == 0 {
		req.Flags |= unix.NLM_F_ACK
	}
	for _, b := range body {
		req.AddData(b)
	}
	c.seq++
	req.Seq = c.seq
	if err := c.send(req.Serialize()); err != nil {
		return nil, err
	}
	var out [][]byte
	interrupted := false
	for {
		msgs, err := c.receive()
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			if m.Header.Seq != c.seq {
				continue
			}
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				err := answerError(m)
				if err == nil && interrupted {
					err = errInterrupted
				}
				return out, err
			default:
				out = append(out, append([]byte(nil), m.Data...))
			}
		}
	}
}

// eachAttr walks netlink attributes; a malformed rest is ignored.
func eachAttr(b []byte, fn func(kind uint16, value []byte)) {
	ne := nl.NativeEndian()
	for len(b) >= unix.SizeofRtAttr {
		size := int(ne.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		fn(ne.Uint16(b[2:])&attrTypeMask, b[unix.SizeofRtAttr:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}
