package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// rogueName is what the test binary is called by a story that wants a DHCP server on its LAN which answers everybody at once, and
// wrongly: rogue-dhcp INTERFACE. It hears by a packet socket, so it takes no port from a server beside it.
const rogueName = "rogue-dhcp"

var (
	rogueAddr   = netip.MustParseAddr("10.66.0.66")
	foreignAddr = netip.MustParseAddr("192.0.2.99")
)

func rogue(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: %s INTERFACE", rogueName)
	}
	nic, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	const ipv4 = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ipv4)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: nic.Index}); err != nil {
		return err
	}
	fmt.Println("listening") //nolint:forbidigo // what bg-out waits for
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		q := dhcpQuestion(buf[:n])
		if q == nil {
			continue
		}
		to := &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: nic.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		for _, answer := range wrongAnswers(q) {
			if err := unix.Sendto(fd, inUDP(answer), 0, to); err != nil {
				return err
			}
		}
	}
}

// dhcpQuestion reads a client's message out of an IPv4 packet.
func dhcpQuestion(b []byte) *dhcpv4.DHCPv4 {
	if len(b) < 20 || b[9] != unix.IPPROTO_UDP || int(b[0]&15)*4+8 > len(b) {
		return nil
	}
	udp := b[int(b[0]&15)*4:]
	if binary.BigEndian.Uint16(udp[2:]) != dhcpv4.ServerPort {
		return nil
	}
	d, err := dhcpv4.FromBytes(udp[8:])
	if err != nil || d.OpCode != dhcpv4.OpcodeBootRequest {
		return nil
	}
	return d
}

// wrongAnswers are those to a question, none of which a client may take: what is malformed, what is no host's address, what answers
// somebody else or something else, and what comes from a server that was not asked.
func wrongAnswers(q *dhcpv4.DHCPv4) [][]byte {
	offer := func(change func(d *dhcpv4.DHCPv4)) []byte {
		d, err := dhcpv4.NewReplyFromRequest(q, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithServerIP(rogueAddr.AsSlice()),
			dhcpv4.WithYourIP(foreignAddr.AsSlice()), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(3600),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(rogueAddr.AsSlice())))
		if err != nil {
			return nil
		}
		d.ClientHWAddr = slices.Clone(d.ClientHWAddr) // the question's
		change(d)
		return d.ToBytes()
	}
	kind := func(t dhcpv4.MessageType) func(d *dhcpv4.DHCPv4) {
		return func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptMessageType(t)) }
	}
	yours := func(ip string) func(d *dhcpv4.DHCPv4) {
		return func(d *dhcpv4.DHCPv4) { d.YourIPAddr = net.IP(netip.MustParseAddr(ip).AsSlice()) }
	}
	cut := offer(func(*dhcpv4.DHCPv4) {})
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return [][]byte{
			offer(func(d *dhcpv4.DHCPv4) { d.TransactionID[0]++ }),
			offer(func(d *dhcpv4.DHCPv4) { d.ClientHWAddr[5]++ }),
			offer(func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootRequest }),
			offer(kind(dhcpv4.MessageTypeAck)), offer(kind(dhcpv4.MessageTypeNak)),
			offer(yours("0.0.0.0")), offer(yours("255.255.255.255")), offer(yours("127.0.0.1")), offer(yours("239.1.1.1")), offer(yours("192.0.2.255")),
			offer(yours(rogueAddr.String())),
			offer(func(d *dhcpv4.DHCPv4) { d.Options.Del(dhcpv4.OptionServerIdentifier) }),
			offer(func(d *dhcpv4.DHCPv4) { d.Options.Del(dhcpv4.OptionIPAddressLeaseTime) }),
			offer(dhcpv4.WithLeaseTime(1)),
			offer(func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptSubnetMask(net.IPMask{255, 0, 255, 0})) }),
			cut[:len(cut)/2], cut[:239], cut[:1], append(cut[:240:240], 53, 200, 2),
		}
	case dhcpv4.MessageTypeRequest: // whoever was chosen by it, it was not this one
		return [][]byte{offer(kind(dhcpv4.MessageTypeNak)), offer(kind(dhcpv4.MessageTypeAck)), offer(func(*dhcpv4.DHCPv4) {})}
	default:
		return nil
	}
}

// inUDP puts a message to a client into a packet, without the checksum of UDP, which may be left out.
func inUDP(payload []byte) []byte {
	b := make([]byte, 28, 28+len(payload))
	size := len(b) + len(payload)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	copy(b[12:], rogueAddr.AsSlice())
	copy(b[16:], net.IPv4bcast.To4())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[20:], dhcpv4.ServerPort)
	binary.BigEndian.PutUint16(b[22:], dhcpv4.ClientPort)
	binary.BigEndian.PutUint16(b[24:], uint16(size-20))
	return append(b, payload...)
}
