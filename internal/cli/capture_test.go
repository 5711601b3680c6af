package cli

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// cannedCapture is what a daemon would send.
func cannedCapture(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, pcapgo.NgInterface{Name: "web/eth0\x1b", LinkType: layers.LinkTypeEthernet, TimestampResolution: 9}, pcapgo.NgWriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const eth4, eth6 = "00155d120002" + "00155d120003" + "0800", "00155d120002" + "00155d120003" + "86dd"
	out, in := pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionOutbound}, pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound}
	for i, f := range []struct {
		hex   string
		flags *pcapgo.NgEpbFlags
	}{
		{eth4 + "4500002c000100004006" + "0000" + "0af60002" + "0af60003" + "1267" + "0050" + "00000007" + "00000000" + "6002ffff00000000" + "020405b4", &out},
		{eth4 + "4500001c000100004011" + "0000" + "0af60003" + "c6336450" + "1267" + "0035" + "00080000", &in},
		{eth6 + "6000000000083a40" + "fd4e05a1007700000000000000000002" + "fd4e05a1007700000000000000000003" + "8000000000010001", &in},
		{"ffffffffffff" + "00155d120003" + "0806" + "0001080006040001" + "00155d120003" + "0af60003" + "000000000000" + "0af60001", &out},
		{"0180c200000e" + "00155d120003" + "88cc" + "0000", &out},
		{"0102", &in},
	} {
		data, err := hex.DecodeString(f.hex)
		if err != nil {
			t.Fatal(err)
		}
		ci := gopacket.CaptureInfo{Timestamp: time.Unix(1700000000+int64(i), 0), CaptureLength: len(data), Length: len(data)}
		if err := w.WritePacketWithOptions(ci, data, pcapgo.NgPacketOptions{Flags: f.flags}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{LastUpdate: time.Unix(1700000009, 0), PacketsReceived: 9, PacketsDropped: 3}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCapture(t *testing.T) {
	d := newDaemon(t)
	d.pcapng = cannedCapture(t)
	var b strings.Builder
	for _, line := range []string{
		"capture web", "capture -w - --point port --proto tcp --address client,10.0.0.0/8 --port 80 -c 3 -s 96 --duration 10s web", "capture web db",
	} {
		out, errs, code := call(t, d.socket, strings.Fields(line)...)
		if strings.Contains(line, "-w -") {
			if out != string(d.pcapng) {
				t.Errorf("%s does not write what the daemon sends", line)
			}
			out = ""
		}
		writeCall(&b, line, out, errs, code)
	}
	for _, r := range d.noted() {
		b.WriteString("> " + r + "\n")
	}
	golden(t, "capture.txt", b.String())
}

// TestCaptureBreaksOff has the daemon die in the middle of a packet: the file ends with
// the packet before, and the command fails.
func TestCaptureBreaksOff(t *testing.T) {
	d := newDaemon(t)
	whole := cannedCapture(t)
	d.pcapng, d.pcapngBreaks = whole[:len(whole)-60], true
	file := filepath.Join(t.TempDir(), "x.pcapng")
	_, errs, code := call(t, d.socket, "capture", "web", "-w", file)
	if code != exitFailed || !strings.Contains(errs, "read the capture") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(whole, b) || len(b) == 0 || len(b) >= len(d.pcapng) {
		t.Errorf("the file has %d bytes of %d", len(b), len(d.pcapng))
	}
	p := &packetPrinter{quiet: true}
	if err := p.run(bytes.NewReader(b), func([]string) {}); err != nil || p.packets == 0 {
		t.Errorf("the file is not whole: %d packets, %v", p.packets, err)
	}
}

func (d *daemon) sendCapture(w http.ResponseWriter, r *http.Request) {
	d.note(r, nil)
	_, _ = w.Write(d.pcapng)
	if d.pcapngBreaks {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}
