package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// HostFacts reads what images are checked against on this host. A kernel configuration that cannot be
// read leaves KernelConfig nil: it only matters to an image that asks.
func HostFacts() (Facts, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Facts{}, fmt.Errorf("read kernel release: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	f := Facts{OS: runtime.GOOS, Architecture: runtime.GOARCH, Variant: hostVariant(), KernelRelease: release}
	if cfg, err := readKernelConfig("/proc/config.gz", "/boot/config-"+release); err == nil {
		f.KernelConfig = cfg
	}
	return f, nil
}

func hostVariant() string {
	switch runtime.GOARCH {
	case "arm64":
		return "v8"
	case "arm":
		if cpu.ARM.HasNEON || cpu.ARM.HasVFPv3 {
			return "v7"
		}
		return "v6"
	case "amd64":
		return amd64Level()
	}
	return ""
}

// amd64Level is the highest microarchitecture level of the x86-64 psABI this processor has.
func amd64Level() string {
	x := cpu.X86
	v2 := x.HasCX16 && x.HasPOPCNT && x.HasSSE3 && x.HasSSSE3 && x.HasSSE41 && x.HasSSE42
	v3 := v2 && x.HasAVX && x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA && x.HasOSXSAVE
	v4 := v3 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL
	switch {
	case v4:
		return "v4"
	case v3:
		return "v3"
	case v2:
		return "v2"
	}
	return "v1"
}

// readKernelConfig parses the first of the files that can be read.
func readKernelConfig(paths ...string) (map[string]string, error) {
	var first error
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(path, ".gz") {
			raw, err = gunzip(raw)
		}
		if err == nil {
			return ParseKernelConfig(raw), nil
		}
		if first == nil {
			first = fmt.Errorf("read kernel configuration: %w", err)
		}
	}
	return nil, first
}

func gunzip(raw []byte) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(zr, maxDocument))
}

// ParseKernelConfig reads the file that a kernel was built from.
func ParseKernelConfig(raw []byte) map[string]string {
	cfg := map[string]string{}
	for sc := bufio.NewScanner(bytes.NewReader(raw)); sc.Scan(); {
		name, value, ok := strings.Cut(sc.Text(), "=")
		if ok && strings.HasPrefix(name, "CONFIG_") {
			cfg[name] = strings.Trim(value, `"`)
		}
	}
	return cfg
}
