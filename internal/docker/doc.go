// Package docker is the network and IPAM driver for Docker: dockerd asks by its protocol for remote drivers
// (https://github.com/moby/libnetwork/blob/master/docs/remote.md and ipam.md), and is answered with what the daemon's API
// makes of it. It decides nothing and touches no kernel object.
//
// A network of Docker's is one of the daemon's, made for it or shared with others; an endpoint is an attachment of the owner
// "docker". Docker tells neither which container it is for nor what that is called, and moves the interface itself: see handover in
// the API. The names are asked of Docker afterwards.
package docker
