//go:build ignore

// The program echo of the image box: echo tcp|udp PORT sends back what it gets, at every address of both families.
package main

import (
	"io"
	"net"
	"os"
)

func main() {
	address := "[::]:" + os.Args[2]
	if os.Args[1] == "udp" {
		serveUDP(address)
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
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
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
