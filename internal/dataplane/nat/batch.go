package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batcher writes elements of sets by a socket of its own: a transaction is one message there and one answer back, where
// the library reads an acknowledgement of each message twice. It is kept open, since opening a socket costs as much as
// writing an element.
type batcher struct {
	fd  int // 0: not open
	seq uint32
	buf []byte
	// port is the socket's address, by which the watch knows what is our own doing. 0 is nobody's.
	port atomic.Uint32
}

// open opens the socket in the calling thread's namespace.
func (b *batcher) open() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	var sa unix.Sockaddr = &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	if err == nil {
		sa, err = unix.Getsockname(fd)
		err = os.NewSyscallError("getsockname", err)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	if at, ok := sa.(*unix.SockaddrNetlink); ok {
		b.port.Store(at.Pid)
	}
	b.fd, b.buf = fd, make([]byte, 64<<10)
	return nil
}

func (b *batcher) close() error {
	if b.fd == 0 {
		return nil
	}
	fd := b.fd
	b.fd = 0
	return os.NewSyscallError("close", unix.Close(fd))
}

// elements is a message that adds elements to a set, or deletes them.
func elementsMessage(kind int, flags netlink.HeaderFlags, set string, keys []elemKey, es elements) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
	ae.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	ae.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list *netlink.AttributeEncoder) error {
		for _, k := range keys {
			list.Nested(unix.NFTA_LIST_ELEM, func(ae *netlink.AttributeEncoder) error {
				value := func(kind uint16, v string) {
					if v != "" {
						ae.Nested(kind, func(ae *netlink.AttributeEncoder) error {
							ae.Bytes(unix.NFTA_DATA_VALUE, []byte(v))
							return nil
						})
					}
				}
				if k.end {
					ae.Uint32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
				}
				value(unix.NFTA_SET_ELEM_KEY, k.key)
				value(nftaSetElemKeyEnd, k.last)
				value(unix.NFTA_SET_ELEM_DATA, es[k].val)
				return nil
			})
		}
		return nil
	})
	data, err := ae.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	}, err
}

// messages turn elements into messages, set by set.
func messages(out []netlink.Message, kind int, flags netlink.HeaderFlags, es elements) ([]netlink.Message, error) {
	for keys := es.sorted(); len(keys) > 0; {
		set, n := keys[0].set, 1
		for n < len(keys) && n < elementsPerMessage && keys[n].set == set {
			n++
		}
		m, err := elementsMessage(kind, flags, set, keys[:n], es)
		if err != nil {
			return nil, fmt.Errorf("encode elements of %s: %w", set, err)
		}
		out, keys = append(out, m), keys[n:]
	}
	return out, nil
}

// commit sends messages as one transaction. The kernel has done it, or refused it, when the call returns.
func (b *batcher) commit(ms []netlink.Message) error {
	first := b.seq + 1
	out, err := b.encode(ms)
	if err != nil {
		return err
	}
	if err := b.send(out); err != nil {
		return err
	}
	return b.answers(first, b.seq)
}

// encode makes one transaction of messages, and numbers them.
func (b *batcher) encode(ms []netlink.Message) ([]byte, error) {
	edge := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	// Of those before the last the kernel tells only what goes wrong.
	ms[len(ms)-1].Header.Flags |= netlink.Acknowledge
	ms = slices.Concat([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, ms, []netlink.Message{edge(unix.NFNL_MSG_BATCH_END)})
	var out []byte
	for i := range ms {
		b.seq++
		ms[i].Header.Sequence = b.seq
		ms[i].Header.Length = uint32(unix.SizeofNlMsghdr + len(ms[i].Data))
		m, err := ms[i].MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode a transaction: %w", err)
		}
		out = append(out, m...)
	}
	return out, nil
}

func (b *batcher) send(out []byte) error {
	// One of more than the socket takes by default is that of thousands of elements.
	if len(out) > 100<<10 {
		_ = unix.SetsockoptInt(b.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(out))
	}
	for {
		err := unix.Sendto(b.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendto", err)
		}
	}
}

var errNoAnswer = errors.New("the kernel did not say what became of the transaction")

// answers reads what the kernel said of the messages from first to the end, the one before which asked for an answer. All of it
// is there, and maybe some of what was said of earlier ones.
func (b *batcher) answers(first, end uint32) error {
	done := false
	var errs []error
	for {
		n, _, err := unix.Recvfrom(b.fd, b.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		ms, err := syscall.ParseNetlinkMessage(b.buf[:n])
		if err != nil {
			return fmt.Errorf("read the kernel's answer: %w", err)
		}
		for _, m := range ms {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 || m.Header.Seq-first > end-first {
				continue
			}
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				errs = append(errs, unix.Errno(-code))
			} else if m.Header.Seq == end-1 {
				done = true
			}
		}
		if done && len(errs) == 0 {
			return nil
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errNoAnswer)
	}
	return errors.Join(errs...)
}
