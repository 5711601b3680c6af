// Package cni is the CNI plugin: it turns what a container runtime asks for by the Container Network Interface
// (https://github.com/containernetworking/cni/blob/main/SPEC.md, version 1.1) into calls of the daemon's API, and the answers
// back. It decides nothing and touches no kernel object: a plugin lives for milliseconds, the daemon repairs what it made.
//
// Attachments belong to the owner "cni/NAME", NAME being that of the network configuration: GC removes what a runtime does
// not know any more of that name.
package cni
