package nat

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How far the search for the process that has a port may go: the search is for an error message.
const (
	searchTime = 300 * time.Millisecond
	searchPIDs = 10000
)

// findProcess names the process that has a port ("nginx (pid 812)"), or "". It has to run in the host's network
// namespace.
func findProcess(k reservation) string {
	inode := findSocket(k)
	if inode == "" {
		return ""
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	deadline, seen := time.Now().Add(searchTime), 0
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if seen++; seen > searchPIDs || time.Now().After(deadline) {
			return ""
		}
		if holdsSocket(pid, inode) {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}

func holdsSocket(pid int, inode string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// findSocket looks a bound socket up in the kernel's tables and gives its inode. An IPv6 socket on all addresses may
// hold the IPv4 port too.
func findSocket(k reservation) string {
	name := protoName(k.proto)
	files := []string{name + "6"}
	if k.bind.Is4() {
		files = []string{name, name + "6"}
	}
	for _, f := range files {
		if inode := scanSockets("/proc/thread-self/net/"+f, k); inode != "" {
			return inode
		}
	}
	return ""
}

func scanSockets(path string, k reservation) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		col := strings.Fields(lines.Text())
		if len(col) < 10 || (col[3] != "0A" && col[3] != "07") { // listening, or an unconnected UDP socket
			continue
		}
		at, ok := parseSocketAddr(col[1])
		if ok && at.Port() == k.port && (at.Addr() == k.bind || at.Addr().IsUnspecified() || k.bind.IsUnspecified()) {
			return col[9]
		}
	}
	return ""
}

// parseSocketAddr reads "0100007F:1F90": the address is in 32-bit words of the host's byte order.
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	host, portText, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	port, portErr := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil || portErr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if littleEndian {
		for w := range slices.Chunk(b, 4) {
			slices.Reverse(w)
		}
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1
