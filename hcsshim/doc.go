// Package hcsshim lets Go code that was written against version 1 of the Windows client of the Host Networking Service build and run on
// Linux: with the import
//
//	"github.com/Microsoft/hcsshim"
//
// changed to this one, the functions HNS…, their documents and errors are there, and the daemon answers. Names and documents are those that
// its users know; the implementation is our own. Calls go to the daemon's unix socket, /run/bulkhead/bulkhead.sock, or the one that the
// environment's BULKHEAD_HOST names as the command line does. What that package has besides for containers, processes and layers of Windows
// is not here. Package hcsshim/hcn has version 2.
package hcsshim
