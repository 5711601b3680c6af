// Command bulkhead-cni is the CNI plugin: container runtimes call it to put a container on a network of the daemon.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/bulkhead-net/bulkhead/internal/cni"
)

// Set by the linker.
var version = "dev"

func main() {
	skel.PluginMainFuncs(cni.Funcs(), cni.Versions(), "bulkhead-cni "+version+": puts containers on networks of bulkhead")
}
