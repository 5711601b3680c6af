package cli

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// packetLine is a frame in a line, with names for addresses where they are known.
func packetLine(data []byte, names map[string]string) string {
	p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	src, dst := packetAddrs(p)
	name := func(a netip.Addr) string { return cmp.Or(names[a.String()], a.String()) }
	var text string
	switch l := p.TransportLayer().(type) {
	case *layers.TCP:
		return withPorts(name(src), uint16(l.SrcPort)) + " → " + withPorts(name(dst), uint16(l.DstPort)) + " tcp " + tcpFlags(l)
	case *layers.UDP:
		return withPorts(name(src), uint16(l.SrcPort)) + " → " + withPorts(name(dst), uint16(l.DstPort)) + " udp"
	}
	if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		return arpLine(l, name)
	}
	switch {
	case p.Layer(layers.LayerTypeICMPv4) != nil:
		text = "icmp " + p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).TypeCode.String()
	case p.Layer(layers.LayerTypeICMPv6) != nil:
		text = "icmp6 " + p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).TypeCode.String()
	case p.NetworkLayer() != nil:
		all := p.Layers()
		text = strings.ToLower(all[len(all)-1].LayerType().String())
	}
	if src.IsValid() {
		return name(src) + " → " + name(dst) + " " + text
	}
	if l, ok := p.LinkLayer().(*layers.Ethernet); ok {
		return fmt.Sprintf("%s → %s ethertype 0x%04x", l.SrcMAC, l.DstMAC, uint16(l.EthernetType))
	}
	return "no Ethernet frame"
}

func packetAddrs(p gopacket.Packet) (src, dst netip.Addr) {
	switch l := p.NetworkLayer().(type) {
	case *layers.IPv4:
		src, _ = netip.AddrFromSlice(l.SrcIP.To4())
		dst, _ = netip.AddrFromSlice(l.DstIP.To4())
	case *layers.IPv6:
		src, _ = netip.AddrFromSlice(l.SrcIP)
		dst, _ = netip.AddrFromSlice(l.DstIP)
	}
	return src, dst
}

func withPorts(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func tcpFlags(l *layers.TCP) string {
	var b strings.Builder
	for _, f := range []struct {
		on   bool
		name string
	}{{l.SYN, "S"}, {l.FIN, "F"}, {l.RST, "R"}, {l.PSH, "P"}, {l.ACK, "."}} {
		if f.on {
			b.WriteString(f.name)
		}
	}
	return "[" + b.String() + "] seq " + strconv.FormatUint(uint64(l.Seq), 10)
}

func arpLine(l *layers.ARP, name func(netip.Addr) string) string {
	src, _ := netip.AddrFromSlice(l.SourceProtAddress)
	dst, _ := netip.AddrFromSlice(l.DstProtAddress)
	if l.Operation == layers.ARPRequest {
		return "arp who has " + name(dst) + ", tell " + name(src)
	}
	return "arp " + name(src) + " is at " + net.HardwareAddr(l.SourceHwAddress).String()
}
