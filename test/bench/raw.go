package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// firstPort is the host port of endpoint 0; that of endpoint i is i further.
	firstPort     = 20000
	containerPort = 80
	rawTable      = "bench"
)

// raw is the limit: the kernel objects of one endpoint with as few messages as they can be made with, nothing pooled,
// nothing checked, nothing remembered. A namespace with a name, a veth pair born in it and up, an address and a default
// route in each family, an element in an nftables map.
type raw struct {
	home  int
	host  *rawSocket
	nft   *nftables.Conn
	ports *nftables.Set
	made  map[int]string // the paths of their namespaces
}

func newRaw() (*raw, error) {
	cmd := exec.Command("nft", "-f", "-") //nolint:forbidigo // a short set-up in a helper process, which has no context
	cmd.Stdin = strings.NewReader("table inet " + rawTable + " { map ports { type inet_service : ipv4_addr; }\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("nft: %w: %s", err, out)
	}
	r := &raw{made: map[int]string{}}
	var err error
	if r.home, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if r.host, err = openRaw(); err != nil {
		return nil, err
	}
	if r.nft, err = nftables.New(nftables.AsLasting()); err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: rawTable, Family: nftables.TableFamilyINet}
	r.ports = &nftables.Set{Table: table, Name: "ports", IsMap: true, KeyType: nftables.TypeInetService, DataType: nftables.TypeIPAddr}
	return r, nil
}

func (r *raw) attach(i int) error {
	fd := -1
	var inner *rawSocket
	path, err := newNamespace(r.home, fmt.Sprintf("raw-%d", i), func() (err error) {
		if fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		inner, err = openRaw()
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer inner.close()
	name := fmt.Sprintf("raw%d", i)
	if err := r.host.do(rawPair(name, fd)); err != nil {
		return fmt.Errorf("make the pair: %w", err)
	}
	r.made[i] = path
	const lo, eth0 = 1, 2
	err = inner.do(
		rawUp(lo), rawQuiet(eth0), rawUp(eth0),
		rawAddress(eth0, netip.PrefixFrom(rawAddr(i), 16)), rawAddress(eth0, netip.PrefixFrom(rawAddr6(i), 64)),
		rawDefault(eth0, netip.MustParseAddr("10.246.0.1")), rawDefault(eth0, netip.MustParseAddr("fd00:246::1")),
	)
	if err != nil {
		return fmt.Errorf("set up the vNIC: %w", err)
	}
	if err := r.nft.SetAddElements(r.ports, r.element(i)); err != nil {
		return err
	}
	return r.nft.Flush()
}

// detach waits for the kernel, as a plain deletion of a link does.
func (r *raw) detach(i int) error {
	path := r.made[i]
	if path == "" {
		return errors.New("was not made")
	}
	delete(r.made, i)
	if err := r.nft.SetDeleteElements(r.ports, r.element(i)); err != nil {
		return err
	}
	if err := r.nft.Flush(); err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(fmt.Sprintf("raw%d", i))))
	if err := r.host.do(req); err != nil {
		return fmt.Errorf("delete the pair: %w", err)
	}
	return removeNamespace(path)
}

func (r *raw) element(i int) []nftables.SetElement {
	return []nftables.SetElement{{Key: binary.BigEndian.AppendUint16(nil, uint16(firstPort+i)), Val: rawAddr(i).AsSlice()}}
}

func rawAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 246, byte((i + 256) >> 8), byte(i)})
}

func rawAddr6(i int) netip.Addr {
	a := netip.MustParseAddr("fd00:246::1:0").As16()
	binary.BigEndian.PutUint16(a[14:], uint16(i))
	return netip.AddrFrom16(a)
}

// rawPair makes both ends, the near one up, the far one in the namespace.
func rawPair(name string, ns int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Flags, head.Change = unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP|unix.IFF_NOARP
	req.AddData(head)
	one := nl.Uint32Attr(1)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, one))
	req.AddData(nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, one))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0"))
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	req.AddData(info)
	return req
}

func rawUp(index int32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Change = index, unix.IFF_UP, unix.IFF_UP
	req.AddData(head)
	return req
}

// rawQuiet keeps the kernel from giving the link a link-local address of its own.
func rawQuiet(index int32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = index
	req.AddData(head)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{1})
	req.AddData(spec)
	return req
}

func rawAddress(index int32, p netip.Prefix) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	head := nl.NewIfAddrmsg(rawFamily(p.Addr()))
	head.Index, head.Prefixlen = uint32(index), uint8(p.Bits())
	if p.Addr().Is6() {
		head.Flags = unix.IFA_F_NODAD
	}
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	return req
}

func rawDefault(index int32, gateway netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	head := nl.NewRtMsg()
	head.Family = uint8(rawFamily(gateway))
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gateway.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}

func rawFamily(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// rawSocket sends several requests in one system call and reads their acknowledgements.
type rawSocket struct {
	fd  int
	seq uint32
	buf []byte
}

func openRaw() (*rawSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &rawSocket{fd: fd, buf: make([]byte, 16<<10)}, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (s *rawSocket) close() { unix.Close(s.fd) }

func (s *rawSocket) do(reqs ...*nl.NetlinkRequest) error {
	var out []byte
	first := s.seq + 1
	for _, r := range reqs {
		s.seq++
		r.Seq, r.Flags = s.seq, r.Flags|unix.NLM_F_ACK
		out = append(out, r.Serialize()...)
		out = append(out, make([]byte, -len(out)&3)...)
	}
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for answered := 0; answered < len(reqs); {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		msgs, err := syscall.ParseNetlinkMessage(s.buf[:n])
		if err != nil {
			return err
		}
		for _, m := range msgs {
			answered++
			if code := -int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				return fmt.Errorf("message %d: %w", m.Header.Seq-first, unix.Errno(code))
			}
		}
	}
	return nil
}
