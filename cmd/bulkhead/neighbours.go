package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// neighbourChecks look at the kernel's neighbour tables, which all namespaces of
// the host share. Our gateways and the host's entries are permanent and not
// counted; what containers of one network ask each other for is.
func neighbourChecks() []api.Check {
	ports := 0
	if links, err := net.Interfaces(); err == nil {
		for _, l := range links {
			if strings.HasPrefix(l.Name, plan.PortPrefix) {
				ports++
			}
		}
	}
	return []api.Check{
		neighbourCheck("/proc", "IPv4", "net.ipv4.neigh.default.gc_thresh", "arp_cache", ports),
		neighbourCheck("/proc", "IPv6", "net.ipv6.neigh.default.gc_thresh", "ndisc_cache", ports),
	}
}

func neighbourCheck(proc, family, sysctl, cache string, ports int) api.Check {
	c := api.Check{Name: family + " neighbour table", Status: "ok"}
	b, err := os.ReadFile(proc + "/sys/" + strings.ReplaceAll(sysctl, ".", "/") + "3")
	if err != nil {
		// Only the first network namespace of a machine has the setting.
		c.Detail = "its limit is not visible from here"
		return c
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		c.Status, c.Detail = "warn", fmt.Sprintf("%s3: %v", sysctl, err)
		return c
	}
	c.Detail = fmt.Sprintf("room for %d entries, %d ports", limit, ports)
	full := timesFull(proc + "/net/stat/" + cache)
	if full > 0 {
		c.Detail += fmt.Sprintf(", was full %d times since the host started", full)
	}
	// Each port may know several others, so this is early rather than exact.
	if full > 0 || ports*4 >= limit*3 {
		c.Status = "warn"
		size := max(limit, ports) * 4
		c.Next = fmt.Sprintf("make room before containers that speak to each other, or to other devices, are not found: sysctl -w %s3=%d %s2=%d",
			sysctl, size, sysctl, size/2)
	}
	return c
}

// timesFull adds up, over the CPUs, how often an entry found no room; 0 where the
// kernel does not tell.
func timesFull(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	column, sum := -1, uint64(0)
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if column < 0 {
			for i, name := range fields {
				if name == "table_fulls" {
					column = i
				}
			}
			if column < 0 {
				return 0
			}
			continue
		}
		if column < len(fields) {
			n, _ := strconv.ParseUint(fields[column], 16, 64)
			sum += n
		}
	}
	return sum
}
