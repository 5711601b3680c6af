//go:build ignore

// The program echo of the image box: echo tcp|udp PORT sends back what it gets, at every address of both families.
// echo proxy PORT [UID] is a transparent proxy, running as that user: it says where a connection was to go, and copies it
// to there. What was for the proxy itself is answered by whom it sees.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

func main() {
	address := "[::]:" + os.Args[2]
	if os.Args[1] == "udp" {
		serveUDP(address)
	}
	serve := echo
	if os.Args[1] == "proxy" {
		serve = proxy
		if len(os.Args) > 3 {
			uid, err := strconv.Atoi(os.Args[3])
			if err == nil {
				err = syscall.Setuid(uid)
			}
			if err != nil {
				panic(err)
			}
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go serve(c)
	}
}

func echo(c net.Conn) {
	defer c.Close()
	io.Copy(c, c)
}

func proxy(c net.Conn) {
	defer c.Close()
	to, self := original(c), netip.MustParseAddrPort(c.LocalAddr().String())
	if !to.IsValid() || to == netip.AddrPortFrom(self.Addr().Unmap(), self.Port()) {
		from := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap()
		c.Read(make([]byte, 4096)) // the request
		fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\nproxy sees %s\n", from)
		return
	}
	fmt.Println("proxied", to)
	up, err := net.Dial("tcp", to.String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer up.Close()
	go func() {
		io.Copy(up, c)
		up.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(c, up)
}

// original asks the kernel where a connection was to go before it was redirected (SO_ORIGINAL_DST).
func original(c net.Conn) (to netip.AddrPort) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return to
	}
	raw.Control(func(fd uintptr) {
		var b [28]byte // struct sockaddr_in6
		size := uint32(len(b))
		level := uintptr(syscall.SOL_IP)
		if netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap().Is6() {
			level = syscall.SOL_IPV6
		}
		const soOriginalDst = 80
		_, _, no := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, level, soOriginalDst, uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&size)), 0)
		port := binary.BigEndian.Uint16(b[2:])
		switch {
		case no != 0:
		case level == syscall.SOL_IP:
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
		default:
			to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
		}
	})
	return to
}

func serveUDP(address string) {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		panic(err)
	}
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			panic(err)
		}
		c.WriteTo(buf[:n], from)
	}
}
