package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newCaptureCmd(a *app) *cobra.Command {
	o := api.CaptureOptions{}
	var file string
	cmd := &cobra.Command{
		Use:   "capture [flags] [NAME]",
		Short: "Capture packets of a container or an endpoint",
		Long: `Captures packets until interrupted, and prints a line for each, or writes pcapng. Points:
vnic sees both directions as the container does; port sees what the container sends,
before the switch judges it; gateway sees what goes between a container (or all of a
network) and the host; uplink, without a NAME, sees the device of the default route, and
with one the NIC of a network on a LAN, or what a container sends and gets there.
Filters are applied in the kernel. Checksums that a NIC would work out show as bad.`,
		Example: `  bulkhead capture web
  bulkhead capture web -w -
  bulkhead capture web --proto tcp --port 80 -c 10 -w web.pcapng
  bulkhead capture --point uplink --address 198.51.100.80 --duration 10s
  bulkhead capture --point uplink --proto arp office`,
		Args: needArgs(0, 1, ""),
	}
	cmd.ValidArgsFunction = a.completeFirst(a.completeEndpoints)
	flags := cmd.Flags()
	flags.StringVarP(&file, "write", "w", "", "write pcapng to a file, or to standard output with -")
	flags.StringVar(&o.Point, "point", api.PointVNIC, "where: vnic, port, gateway or uplink")
	flags.StringVar(&o.Protocol, "proto", "", "only arp, icmp (both families), ip, ip6, sctp, tcp or udp")
	// Not --host, which is the global name of the daemon's socket.
	flags.StringSliceVar(&o.Hosts, "address", nil, "only from or to one of these addresses, prefixes, containers or endpoints")
	flags.Uint16Var(&o.Port, "port", 0, "only this port, at either end")
	flags.IntVarP(&o.Packets, "count", "c", 0, "end after so many packets")
	flags.IntVarP(&o.Snaplen, "snaplen", "s", 0, "keep so many bytes of each packet (default all)")
	flags.DurationVar(&o.Duration, "duration", 0, "end after this time")
	complete(cmd, "point", api.PointVNIC, api.PointPort, api.PointGateway, api.PointUplink)
	complete(cmd, "proto", "arp", "icmp", "ip", "ip6", "sctp", "tcp", "udp")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			o.Target = args[0]
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		return a.capture(cmd.Context(), c, o, file)
	}
	return cmd
}

func (a *app) capture(ctx context.Context, c *client.Client, o api.CaptureOptions, file string) error {
	if _, ok := terminal(a.Stdout); ok && file == "-" {
		return api.Errorf(api.KindInvalid, "packets would be written to the terminal").Hint("pipe them into tcpdump -r -, or name a file")
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	body, err := c.Capture(ctx, o)
	if err != nil {
		return err
	}
	defer body.Close()
	out, err := a.captureFile(file)
	if err != nil {
		return err
	}
	p := &packetPrinter{out: a.Stdout, quiet: file != ""}
	if !p.quiet {
		if p.names, err = packetNames(ctx, c); err != nil {
			return errors.Join(err, out.Close())
		}
	}
	blocks := &blockReader{from: body, to: out}
	err = p.run(blocks, func(names []string) {
		fmt.Fprintln(a.Stderr, "capturing on", clean(strings.Join(names, ", ")))
	})
	err = cmp.Or(blocks.broke, err)
	// Interrupted is how most captures end.
	if ctx.Err() != nil {
		err = nil
	}
	fmt.Fprintf(a.Stderr, "%s, %d lost\n", plural(p.packets, "packet"), p.lost)
	if err != nil {
		err = api.Errorf(api.KindUnavailable, "read the capture: %w", err).Hint("see the daemon's log")
	}
	return errors.Join(err, out.Close())
}

// captureFile opens where pcapng goes.
func (a *app) captureFile(name string) (io.WriteCloser, error) {
	switch name {
	case "":
		return nopCloser{io.Discard}, nil
	case "-":
		return nopCloser{a.Stdout}, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // packets hold secrets
	if err != nil {
		return nil, api.Errorf(api.KindInvalid, "write the capture: %w", err)
	}
	return f, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// maxBlock bounds a block of the file; the largest hold one packet.
const maxBlock = 1 << 20

// blockReader hands on a pcapng file and writes it elsewhere, whole blocks only, so that
// a capture that is interrupted is a whole file.
type blockReader struct {
	from io.Reader
	to   io.Writer
	rest []byte
	// broke is why the file ends, unless it ends as it should. The reader of the file takes
	// any end at the border of a block for its end.
	broke error
}

func (b *blockReader) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		if err := b.next(); err != nil {
			if !errors.Is(err, io.EOF) {
				b.broke = err
			}
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// next reads a block: its kind, its length and the rest. Ours are little endian.
func (b *blockReader) next() error {
	head := make([]byte, 8)
	if _, err := io.ReadFull(b.from, head); err != nil {
		return err
	}
	n := uint32(head[4]) | uint32(head[5])<<8 | uint32(head[6])<<16 | uint32(head[7])<<24
	if n < 12 || n > maxBlock {
		return fmt.Errorf("a block has %d bytes", n)
	}
	block := make([]byte, n)
	copy(block, head)
	if _, err := io.ReadFull(b.from, block[8:]); err != nil {
		return err
	}
	b.rest = block
	if _, err := b.to.Write(block); err != nil {
		return fmt.Errorf("write the capture: %w", err)
	}
	return nil
}

// packetPrinter reads a capture, counts, and prints.
type packetPrinter struct {
	out     io.Writer
	quiet   bool
	names   map[string]string // by address
	packets int
	lost    uint64
}

// run calls live when the capture is under way, with what it is on.
func (p *packetPrinter) run(from io.Reader, live func([]string)) error {
	r, err := pcapgo.NewNgReader(from, pcapgo.NgReaderOptions{})
	if err != nil {
		return err
	}
	live([]string{interfaceName(r, 0)})
	for {
		data, ci, opts, err := r.ReadPacketDataWithOptions()
		p.count(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p.packets++
		if p.quiet {
			continue
		}
		way := "in"
		if opts.Flags != nil && opts.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound {
			way = "out"
		}
		line := strings.Join([]string{
			ci.Timestamp.UTC().Format(packetTime), interfaceName(r, ci.InterfaceIndex), way, packetLine(data, p.names), plural(ci.Length, "byte"),
		}, "  ")
		if _, err := fmt.Fprintln(p.out, clean(line)); err != nil {
			return err
		}
	}
}

const packetTime = "15:04:05.000000"

func (p *packetPrinter) count(r *pcapgo.NgReader) {
	p.lost = 0
	for i := range r.NInterfaces() {
		if intf, err := r.Interface(i); err == nil && intf.Statistics.PacketsDropped != pcapgo.NgNoValue64 {
			p.lost += intf.Statistics.PacketsDropped
		}
	}
}

func interfaceName(r *pcapgo.NgReader, i int) string {
	intf, err := r.Interface(i)
	if err != nil {
		return "?"
	}
	return intf.Name
}

// packetNames are the names of addresses that are the only ones of theirs.
func packetNames(ctx context.Context, c *client.Client) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := c.Addresses(ctx)
	names := map[string]string{}
	for _, one := range list {
		name := one.Name
		if one.Container != "" {
			name = one.Container
		}
		if one.Kind == "gateway" {
			name = "gateway." + one.Network
		}
		if old, ok := names[one.Address]; ok && old != name {
			name = "" // networks may share addresses
		}
		names[one.Address] = name
	}
	return names, err
}
