// Package capture reads packets off devices and writes them as pcapng.
//
// It uses plain packet sockets, which see a frame where the device sees it: before the
// switch's program on its way in, after it on its way out. In a compartment both
// directions are seen; at the host side of a container's port only what the container
// sends, because bpf_redirect_peer hands frames to the other end without passing the
// device's own transmit path.
//
// A capture changes nothing on the host: no device is made promiscuous, the filter is
// the socket's own, and all of it ends with the socket. What it may cost is bounded by
// the socket's buffer: a reader that is too slow loses packets, which are counted.
package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

const (
	// MaxSnaplen is the longest part of a packet that is kept: BIG TCP frames are longer,
	// and cut.
	MaxSnaplen = 256 << 10
	// buffer is what the kernel may keep for one socket that is not read.
	buffer = 8 << 20
	// chunk is what is written at once.
	chunk = 64 << 10
	// statsEvery is how often losses are written, so that a file that breaks off has them.
	statsEvery = time.Second
)

// Source is a device to capture on.
type Source struct {
	// Namespace is the path of a compartment, "" the host.
	Namespace, Device string
	// Name and Comment of the interface in the file.
	Name, Comment string
}

// Filter chooses packets. Its zero value takes all.
type Filter struct {
	// Protocol is one of Protocols, or "".
	Protocol string
	// Hosts are groups of prefixes: one of each group must hold source or destination.
	Hosts [][]netip.Prefix
	// Port of TCP, UDP or SCTP, source or destination; 0: any. Fragments after the first
	// and IPv6 packets with extension headers have none.
	Port uint16
}

// Options are a capture.
type Options struct {
	Sources []Source
	Filter  Filter
	// Snaplen bounds what is kept of each packet; 0 is MaxSnaplen.
	Snaplen int
	// Packets and Duration end the capture; 0: they do not.
	Packets  int
	Duration time.Duration
	// Version of the program, for the file.
	Version string
}

// Output is where a capture goes. Flush is called when no packet waits.
type Output interface {
	io.Writer
	Flush() error
}

// Capturer captures.
type Capturer struct {
	// Enter runs fn in a compartment: sockets that it opens stay there.
	Enter func(path string, fn func() error) error
}

// Run captures until a bound is reached, its devices are gone, ctx ends, or the output
// fails. The end of ctx is no error.
func (c *Capturer) Run(ctx context.Context, o Options, out Output) error {
	if o.Snaplen <= 0 || o.Snaplen > MaxSnaplen {
		o.Snaplen = MaxSnaplen
	}
	filter, err := o.Filter.program(uint32(o.Snaplen))
	if err != nil {
		return err
	}
	var socks []*socket
	defer func() {
		for _, s := range socks {
			s.close()
		}
	}()
	for _, src := range o.Sources {
		var s *socket
		open := func() (err error) { s, err = openSocket(src.Device, filter, buffer); return err }
		if src.Namespace == "" {
			err = open()
		} else {
			err = c.Enter(src.Namespace, open)
		}
		if err != nil {
			return fmt.Errorf("capture on %s: %w", src.Name, err)
		}
		socks = append(socks, s)
	}
	f, err := newFile(out, o)
	if err != nil {
		return fmt.Errorf("begin the capture: %w", err)
	}
	return c.pump(ctx, o, socks, f)
}

// pump reads all sockets until the capture ends.
func (c *Capturer) pump(ctx context.Context, o Options, socks []*socket, f *file) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.Duration > 0 {
		t := time.AfterFunc(o.Duration, cancel)
		defer t.Stop()
	}
	var wg sync.WaitGroup
	errs := make([]error, len(socks))
	for i, s := range socks {
		stop := context.AfterFunc(ctx, s.interrupt)
		defer stop()
		wg.Go(func() {
			if errs[i] = s.read(ctx, func(p *packet) error { return f.packet(i, p) }, func() error { return f.idle(i, s) }); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	for i, s := range socks {
		if errors.Is(errs[i], errEnough) {
			errs[i] = nil
		}
		errs[i] = errors.Join(errs[i], f.stats(i, s, true))
	}
	if err := errors.Join(errors.Join(errs...), f.flush()); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// errEnough says that as many packets as were asked for are written.
var errEnough = errors.New("enough packets")

// file is the pcapng that several sockets write to.
type file struct {
	mu    sync.Mutex
	out   Output
	buf   *bufio.Writer
	ng    *pcapgo.NgWriter
	left  int // packets; negative: no bound
	begun time.Time
	told  []told // by source
}

// told is what was written about a source's losses.
type told struct {
	dropped uint64
	at      time.Time
}

func newFile(out Output, o Options) (*file, error) {
	f := &file{out: out, buf: bufio.NewWriterSize(out, chunk), left: -1, begun: time.Now(), told: make([]told, len(o.Sources))}
	if o.Packets > 0 {
		f.left = o.Packets
	}
	for i, s := range o.Sources {
		intf := pcapgo.NgInterface{
			Name: s.Name, Comment: s.Comment, Filter: o.Filter.String(), OS: runtime.GOOS, LinkType: layers.LinkTypeEthernet,
			SnapLength: uint32(o.Snaplen), TimestampResolution: 9,
		}
		var err error
		if i == 0 {
			f.ng, err = pcapgo.NewNgWriterInterface(f.buf, intf, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
				Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "bulkhead " + o.Version,
			}})
		} else {
			_, err = f.ng.AddInterface(intf)
		}
		if err != nil {
			return nil, err
		}
	}
	// The reader learns that the capture is live.
	return f, f.flush()
}

func (f *file) packet(source int, p *packet) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return errEnough
	}
	flags := pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound, Reception: p.reception()}
	if p.outgoing() {
		flags = pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionOutbound}
	}
	err := f.ng.WritePacketWithOptions(gopacket.CaptureInfo{
		Timestamp: p.time, CaptureLength: len(p.data), Length: p.length, InterfaceIndex: source,
	}, p.data, pcapgo.NgPacketOptions{Flags: &flags})
	if err != nil {
		return fmt.Errorf("write a packet: %w", err)
	}
	if f.left > 0 {
		if f.left--; f.left == 0 {
			return errEnough
		}
	}
	return nil
}

// idle hands on what is written: nothing else waits.
func (f *file) idle(source int, s *socket) error {
	f.mu.Lock()
	due := time.Since(f.told[source].at) >= statsEvery
	f.mu.Unlock()
	if due {
		if err := f.stats(source, s, false); err != nil {
			return err
		}
	}
	return f.flush()
}

// stats writes how many packets a source had and lost; unless it is the last word,
// only when more were lost.
func (f *file) stats(source int, s *socket, last bool) error {
	received, dropped, err := s.stats()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.told[source].at = now
	if !last && dropped == f.told[source].dropped {
		return nil
	}
	f.told[source].dropped = dropped
	st := pcapgo.NgInterfaceStatistics{LastUpdate: now, StartTime: f.begun, PacketsReceived: received, PacketsDropped: dropped}
	if last {
		st.EndTime = now
	}
	if err := f.ng.WriteInterfaceStats(source, st); err != nil {
		return fmt.Errorf("write the counters: %w", err)
	}
	return nil
}

func (f *file) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ng.Flush(); err != nil {
		return err
	}
	if err := f.buf.Flush(); err != nil {
		return err
	}
	return f.out.Flush()
}
